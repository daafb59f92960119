"""What a student of MiniLM should learn from, and which sizes it should have.

    python benchmarks/distillation.py --folder FOLDER [--only ROW …] [--texts N] [--json FILE]

`FOLDER` is that of `python benchmarks/shrink.py --quick --folder FOLDER`, which leaves the teacher.
Each student starts from the teacher's weights and sees the same number of texts, counting
repetitions; its accuracy is that of the float32 model on the 1,605 held-out movie reviews. Students
differ in their sizes, and in what they learn:

- "logits": the teacher's, by their squared distance, on the training texts.
- "labels": the labels, without a teacher.
- "hidden states": logits, and the hidden states after every second block of the teacher.
- "altered copies": logits, also on two altered copies of each text.
- "other texts": logits, also on the editorials, products and tweets of the same archive.

A second stage has half of the texts, and so has the first. Each student is trained in a process of
its own, on one thread.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import shrink

THREE, FOUR = {"layers": [1, 3, 5]}, {"layers": [0, 2, 3, 5]}
#: name: (stages of sizes, what is learned).
ROWS = {
    "3 blocks, labels": ([THREE], "labels"),
    "3 blocks, logits": ([THREE], "logits"),
    "3 blocks, hidden states": ([THREE], "hidden states"),
    "3 blocks, altered copies": ([THREE], "altered copies"),
    "3 blocks, other texts": ([THREE], "other texts"),
    "6 blocks, 384 neurons": ([{"feed_forward": 384}], "logits"),
    "4 blocks, 384 neurons": ([{**FOUR, "feed_forward": 384}], "logits"),
    "3 blocks, 384 neurons": ([{**THREE, "feed_forward": 384}], "logits"),
    "3 blocks, 1,024 neurons, width 288": (
        [{**THREE, "feed_forward": 1024, "hidden": 288}],
        "logits",
    ),
    "2 blocks": ([{"layers": [2, 5]}], "logits"),
    "2 blocks, 1,024 neurons": ([{"layers": [2, 5], "feed_forward": 1024}], "logits"),
    "2 blocks by way of 3": ([THREE, {"layers": [1, 2]}], "logits"),
}


def records_for(run, what, teacher, tokenizer):
    """The texts that a student learns from. Labels of other texts have no effect."""
    import keras_efficient as ke

    train = run.train
    if what == "altered copies":
        return run.with_altered(teacher, tokenizer, copies=2)
    if what == "other texts":
        names = ("news", "products", "tweets")
        others = [text for name in names for text in shrink.rated(name).texts]
        texts = [*train.texts, *others]
        return ke.data.Records(texts, [*train.labels, *[0] * len(others)], train.label_names)
    return train


def student(run, name, texts, folder):
    """Train a student; return its accuracy, parameters and seconds per text."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    import keras_efficient as ke

    ke.tune_process()
    ke.mixed_precision("float32")
    stages, what = ROWS[name]
    teacher, tokenizer = run.teacher()
    model, seconds = teacher, 0.0
    few = run.batches(run.train, tokenizer).take(8).cache()
    records = records_for(run, what, teacher, tokenizer)
    ke.unpad(teacher)
    for number, sizes in enumerate(stages):
        model, _ = ke.shrink(model, **sizes, data=few, importance="reconstruction")
        if what == "hidden states":
            ke.distill(model, teacher, **shrink.RECIPE, hidden=1.0)
        elif what != "labels":
            if not number:
                batches = run.batches(records, tokenizer, 64)
                outputs = ke.distillation.cache(teacher, batches, folder)
            ke.distill(model, outputs, **shrink.RECIPE)
        data = run.batches(records, tokenizer)
        seconds += run.fit(model, data, texts // len(stages), shrink.RATE)
        ke.distill(model, None)
    return {
        "accuracy": run.accuracy(model, tokenizer),
        "parameters": model.count_params(),
        "seconds": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="that of shrink.py --quick")
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--texts", type=int, default=72_000, help="seen by each student [72,000]")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    run = shrink.Run.quick_one(arguments.folder)
    if arguments.one:
        with tempfile.TemporaryDirectory() as scratch:
            result = student(run, arguments.one, arguments.texts, Path(scratch) / "outputs")
        arguments.json.write_text(json.dumps(result))
        return
    teacher = run.result("teacher")["accuracy"]
    print(f"{'teacher':<36} {teacher:.2%}", flush=True)
    results = {}
    for name in arguments.only:
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            options = ["--folder", str(arguments.folder), "--texts", str(arguments.texts)]
            command = [sys.executable, __file__, *options, "--json", file.name, "--one", name]
            subprocess.run(command, check=True)
            found = results[name] = json.loads(Path(file.name).read_text())
        print(
            f"{name:<36} {found['accuracy']:.2%} {found['accuracy'] / teacher:7.1%} "
            f"{found['parameters'] / 1e6:6.2f}M {found['seconds']:6.0f} s",
            flush=True,
        )
        if arguments.json:
            arguments.json.write_text(json.dumps({"teacher": teacher, **results}, indent=2))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
