"""Fine-tune MiniLM for every task on real texts, through the command line.

python benchmarks/tasks.py                      # all rows of docs/tasks.md, about half an hour
python benchmarks/tasks.py --row regression     # one of them

The texts are those of the archive that the demo's movie reviews are from, each with the mean rating
of twenty people from -4 to 4 (Hutto & Gilbert 2014). Three of the first four rows have labels that
are derived from the ratings and the sources, since the archive has no others: they show that a task
works, and how well these labels are learned, not how well a published benchmark is solved. The rows
of token classification and question answering have the tweets of W-NUT 2016 with named entities,
that of the masked language model the reviews without labels (see also masked_lm.py). With --peer
PYTHON, an interpreter that has PyTorch, transformers and accelerate, their Trainer trains on the
same split of the tweets:

python benchmarks/tasks.py --row "token classification" --peer .venv-peers/bin/python
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
RATE, LONGEST = 1e-4, 64
COMMON = ("--batch-size", 32, "--learning-rate", RATE, "--max-length", LONGEST)


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
    rows = [row for row in ratings("movies") if row[1]]
    order = random.permutation(len(rows))
    labelled = [
        (rows[i][0], rows[j][0], round((rows[i][1] + rows[j][1]) / 2, 4))
        for i, j in zip(order[::2], order[1::2], strict=False)
        if rows[i][1] != rows[j][1]
    ]
    return ("first", "second", "label"), labelled, PAIRS


def tagged(random):
    """Named entities of ten types in all 2,394 tweets."""
    from keras_efficient.data import demo_tagged_tweets

    return None, demo_tagged_tweets(), ("--epochs", TAGGED_EPOCHS, "--batch-size", TAGGED_BATCH)


def asked(random):
    """Questions after the entities of the tweets, of which a type occurs once; 991 questions."""
    from keras_efficient.data import demo_questions

    options = (
        "--epochs",
        ASKED_EPOCHS,
        "--batch-size",
        TAGGED_BATCH,
        "--max-length",
        ASKED_LONGEST,
    )
    return None, demo_questions(), options


#: Settings of question answering: its epochs and the tokens of a window.
ASKED_EPOCHS, ASKED_LONGEST = 6, 96


def unlabelled(random):
    """Movie reviews without labels."""
    texts = [text for text, _ in ratings("movies")]
    options = ("--learning-rate", 5e-4)
    return ("text",), [(texts[i],) for i in random.permutation(len(texts))], options


#: Settings of token classification, which is learned from few entities.
TAGGED_EPOCHS, TAGGED_BATCH = 8, 16

#: By row: task, function of a random generator that returns header, rows and further options; or
#: None and a file in place of header and rows.
ROWS = {
    "regression": ("regression", regression),
    "multi-label": ("multi_label", multi_label),
    "pairs, classification": ("classification", same_source),
    "pairs, regression": ("regression", mean_rating),
    "token classification": ("token_classification", tagged),
    "question answering": ("question_answering", asked),
    "masked language model": ("masked_lm", unlabelled),
}


#: Rows that a peer trains, too.
PEER_ROWS = ("token classification", "question answering")


def run(name, arguments, folder):
    """Run `finetune` for a row; return its report."""
    task, make = ROWS[name]
    header, rows, options = make(np.random.default_rng(0))
    data = folder / "data.csv"
    if header is None:
        data = rows
    else:
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


def tagged_rows(part):
    """Return the words and the tags of records, for the peer."""
    words = zip(part.texts, part.labels.words, strict=True)
    return [
        {"tokens": [text[a:b] for a, b, _ in rows], "tags": rows[:, 2].tolist()}
        for text, rows in words
    ]


def asked_rows(part):
    """Return the questions of records, for the peer."""
    return [
        {
            "question": question,
            "context": context,
            "answers": {"text": [x for x, _ in found], "answer_start": [n for _, n in found]},
        }
        for question, context, found in zip(
            part.texts, part.second_texts, part.labels.answers, strict=True
        )
    ]


def run_peer(python, folder, name):
    """Train with the Trainer of Hugging Face on PyTorch, on the same split; return the report."""
    import keras_efficient as ke

    tags = name == "token classification"
    task = ke.tasks.get(ROWS[name][0])
    records = task.read(ke.data.demo_tagged_tweets() if tags else ke.data.demo_questions())
    parts = ke.data.split(records, validation=0.25, seed=0)
    rows = [(tagged_rows if tags else asked_rows)(part) for part in parts]
    request = {
        "model": str(ke.data.demo_model()),
        "label_names": records.label_names,
        "epochs": TAGGED_EPOCHS if tags else ASKED_EPOCHS,
        "learning_rate": RATE,
        "batch_size": TAGGED_BATCH,
        "max_length": LONGEST if tags else ASKED_LONGEST,
        "train": rows[0],
        "validation": rows[1],
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    script = Path(__file__).with_name("tasks_peer.py")
    subprocess.run([python, str(script), str(folder)], check=True)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if tags:
        report = ke.metrics.entity_report(result["labels"], result["classes"], records.label_names)
    else:
        right = [row["answers"]["text"] for row in rows[1]]
        report = ke.metrics.answer_report(result["answers"], right, parts[1].second_texts)
    facts = {"row": name, "library": result["library"]}
    return facts | {"seconds": result["seconds"], "quality": report.to_dict()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", action="append", choices=ROWS, help="default: all")
    parser.add_argument("--texts", type=int, default=2000, help="a quarter is held out")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
    parser.add_argument("--peer", help="Python with PyTorch: run the Trainer instead")
    arguments = parser.parse_args()
    if arguments.peer:
        for name in arguments.row or PEER_ROWS:
            if name not in PEER_ROWS:
                parser.error(f"--peer is for {' and '.join(PEER_ROWS)}")
            with tempfile.TemporaryDirectory() as folder:
                print(json.dumps(run_peer(arguments.peer, Path(folder), name)), flush=True)
        return
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
