"""Fine-tune MiniLM for every task on real texts, through the command line.

python benchmarks/tasks.py                      # all rows of docs/tasks.md, about half an hour
python benchmarks/tasks.py --row regression     # one of them

The texts are those of the archive that the demo's movie reviews are from, each with the mean rating
of twenty people from -4 to 4 (Hutto & Gilbert 2014). Three of the four rows have labels that are
derived from the ratings and the sources, since the archive has no others: they show that a task
works, and how well these labels are learned, not how well a published benchmark is solved.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

#: Sources of `ke.data.demo_ratings`, and how a text's source is called as a label.
SOURCES = {"movies": "movie", "news": "news", "products": "product", "tweets": "tweet"}
PAIRS = ("--text-column", "first", "--text-column", "second")
COMMON = ("--batch-size", "32", "--learning-rate", "1e-4", "--max-length", "64")


def ratings(source):
    """Return the texts of a source and their mean ratings."""
    import keras_efficient as ke

    with open(ke.data.demo_ratings(source), encoding="utf-8", newline="") as file:
        return [(row["text"], float(row["rating"])) for row in csv.DictReader(file)]


def regression(random):
    """The mean rating of a movie review."""
    rows = ratings("movies")
    return ("text", "label"), [rows[i] for i in random.permutation(len(rows))], ()


def multi_label(random):
    """Where a text is from, whether it is positive, and whether its rating is beyond ±2."""
    rows = [
        (text, "|".join([label] + ["positive"] * (x > 0) + ["strong"] * (abs(x) > 2)))
        for source, label in SOURCES.items()
        for text, x in ratings(source)
    ]
    return ("text", "label"), [rows[i] for i in random.permutation(len(rows))], ()


def same_source(random):
    """Whether two texts are from the same source; no text is in two pairs."""
    texts = {source: [text for text, _ in ratings(source)] for source in SOURCES}
    for rows in texts.values():
        random.shuffle(rows)
    labelled = []
    while min(map(len, texts.values())) > 1:
        one, other = random.choice(list(SOURCES), 2, replace=False)
        label = ("different", "same")[len(labelled) % 2]
        second = texts[one if label == "same" else other]
        labelled.append((texts[one].pop(), second.pop(), label))
    return ("first", "second", "label"), labelled, PAIRS


def mean_rating(random):
    """The mean rating of two movie reviews."""
    rows = ratings("movies")
    both = random.permutation(len(rows))[: len(rows) // 2 * 2].reshape(-1, 2)
    labelled = [(rows[i][0], rows[j][0], round((rows[i][1] + rows[j][1]) / 2, 4)) for i, j in both]
    return ("first", "second", "label"), labelled, PAIRS


#: By row: task, function of a random generator that returns header, rows and further options.
ROWS = {
    "regression": ("regression", regression),
    "multi-label": ("multi_label", multi_label),
    "pairs, classification": ("classification", same_source),
    "pairs, regression": ("regression", mean_rating),
}


def run(name, arguments, folder):
    """Run `finetune` for a row; return its report."""
    task, make = ROWS[name]
    header, rows, options = make(np.random.default_rng(0))
    data = folder / "data.csv"
    with open(data, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows[: arguments.texts]])
    from keras_efficient.data import demo_model

    command = ["finetune", data, "--model", demo_model(), "--output", folder / "model"]
    command += ["--task", task, "--validation", "0.25", "--library", arguments.library]
    command += ["--precision", "float32", "--epochs", arguments.epochs, *COMMON, *options]
    command = [sys.executable, "-m", "keras_efficient", *map(str, command)]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)
    return json.loads((folder / "model" / "1" / "report.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", action="append", choices=ROWS, help="default: all")
    parser.add_argument("--texts", type=int, default=2000, help="a quarter is held out")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
    arguments = parser.parse_args()
    for name in arguments.row or ROWS:
        with tempfile.TemporaryDirectory() as folder:
            report = run(name, arguments, Path(folder))
        quality = {k: v for k, v in report["quality"].items() if k not in ("classes", "confusion")}
        facts = {
            "row": name,
            "library": arguments.library,
            "difference": report["max_abs_difference"],
        }
        print(json.dumps(facts | {"quality": quality}, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
