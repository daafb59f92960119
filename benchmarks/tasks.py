"""Fine-tune MiniLM for every task on real texts, through the command line.

python benchmarks/tasks.py                      # all rows of docs/tasks.md, about half an hour
python benchmarks/tasks.py --row regression     # one of them

The texts are those of the archive that the demo's movie reviews are from, each with the mean rating
of twenty people from -4 to 4 (Hutto & Gilbert 2014). Three of the first four rows have labels that
are derived from the ratings and the sources, since the archive has no others: they show that a task
works, and how well these labels are learned, not how well a published benchmark is solved. The rows
of token classification and question answering have the tweets of W-NUT 2016 with named entities,
that of the masked language model the reviews without labels (see also masked_lm.py). With --peer
PYTHON, an interpreter that has PyTorch, transformers and accelerate, their Trainer trains with the
same split, epochs, batch size and learning rate:

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


#: Rows that no peer trains here; see masked_lm.py.
NO_PEER = ("masked language model",)
#: What transformers calls the losses of labels of texts.
PROBLEMS = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


def data_of(name, arguments, folder):
    """Return the file of a row's data, and its further options."""
    header, rows, options = ROWS[name][1](np.random.default_rng(0))
    if header is None:
        return rows, options
    path = folder / "data.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows[: arguments.texts]])
    return path, options


def run(name, arguments, folder):
    """Run `finetune` for a row; return its report."""
    task = ROWS[name][0]
    data, options = data_of(name, arguments, folder)
    from keras_efficient.data import demo_model

    command = ["finetune", data, "--model", demo_model(), "--output", folder / "model"]
    command += ["--task", task, "--validation", "0.25", "--library", arguments.library]
    command += ["--precision", "float32", "--epochs", arguments.epochs, *COMMON, *options]
    command += ["--quantize", arguments.quantize] if arguments.quantize else []
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


def labelled_rows(part):
    """Return the texts and the labels of records, for the peer."""
    seconds = part.second_texts or ((),) * len(part)
    labels = part.labels.tolist()
    if part.labels.ndim > 1:
        # The loss of several labels takes floats.
        labels = part.labels.astype(float).tolist()
    return [
        {"texts": [text, second] if second else [text], "label": label}
        for text, second, label in zip(part.texts, seconds, labels, strict=True)
    ]


def run_peer(name, arguments, folder):
    """Train with the Trainer of Hugging Face on PyTorch, on the same split; return the report."""
    import keras_efficient as ke

    data, options = data_of(name, arguments, folder)
    pairs = list(zip(options[::2], options[1::2], strict=True))
    columns = [value for flag, value in pairs if flag == "--text-column"]
    settings = dict(pairs)
    task = ke.tasks.get(ROWS[name][0], texts=len(columns) or None)
    records = task.read(data, **({"text_column": tuple(columns)} if columns else {}))
    parts = ke.data.split(records, validation=0.25, seed=0)
    rows_of = {"token_classification": tagged_rows, "question_answering": asked_rows}
    rows = [rows_of.get(task.name, labelled_rows)(part) for part in parts]
    request = {
        "kind": PROBLEMS.get(task.name, task.name),
        "model": str(ke.data.demo_model()),
        "label_names": records.label_names,
        "epochs": settings.get("--epochs", arguments.epochs),
        "learning_rate": RATE,
        "batch_size": settings.get("--batch-size", 32),
        "max_length": settings.get("--max-length", LONGEST),
        "train": rows[0],
        "validation": rows[1],
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    script = Path(__file__).with_name("tasks_peer.py")
    subprocess.run([arguments.peer, str(script), str(folder)], check=True)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if task.name == "token_classification":
        report = ke.metrics.entity_report(result["labels"], result["classes"], records.label_names)
    elif task.name == "question_answering":
        right = [row["answers"]["text"] for row in rows[1]]
        report = ke.metrics.answer_report(result["answers"], right, parts[1].second_texts)
    else:
        labels = task.batch_labels(parts[1].labels, "labels")
        report = task.report(
            labels, np.array(result["logits"], "float32"), records.label_names or None
        )
    facts = {"row": name, "library": result["library"]}
    return facts | {"seconds": result["seconds"], "quality": quality(report.to_dict())}


def quality(report):
    """Return the measures of a report."""
    return {k: v for k, v in report.items() if k not in ("classes", "confusion")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", action="append", choices=ROWS, help="default: all")
    parser.add_argument("--texts", type=int, default=2000, help="a quarter is held out")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
    parser.add_argument("--quantize", help="format of the export, such as int8")
    parser.add_argument("--peer", help="Python with PyTorch: run the Trainer instead")
    arguments = parser.parse_args()
    if arguments.peer:
        for name in arguments.row or set(ROWS) - set(NO_PEER):
            if name in NO_PEER:
                parser.error(f"--peer is not for {name}: see masked_lm.py")
            with tempfile.TemporaryDirectory() as folder:
                print(json.dumps(run_peer(name, arguments, Path(folder))), flush=True)
        return
    for name in arguments.row or ROWS:
        with tempfile.TemporaryDirectory() as folder:
            report = run(name, arguments, Path(folder))
        facts = {
            "row": name,
            "library": arguments.library,
            "difference": report["max_abs_difference"],
            "quality": quality(report["quality"]),
        }
        if arguments.quantize:
            facts |= {"quantize": arguments.quantize, "evaluation": report["evaluation"]}
        print(json.dumps(facts, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
