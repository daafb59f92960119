"""Search the sizes of MiniLM for a speed-up of its int8 export, and measure what it takes.

    python benchmarks/shrink_search.py [--speedup 5] [--limit 800] [--json FILE]

MiniLM is trained on movie reviews for one epoch and shrunk by `ke.shrink` with
`ke.bench.ExportLatency`, twice: the second call finds the latencies in the cache. The result is
trained for one epoch, and its export is timed in turns with those of the whole model by `ke.bench`.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any


def processor_seconds():
    """Return the processor time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", default="keras", choices=["keras", "tf_keras"])
    parser.add_argument("--speedup", type=float, default=5)
    parser.add_argument("--baseline", choices=["keras"], help="Keras' float32 export [int8 whole]")
    parser.add_argument("--quantize", default="int8")
    parser.add_argument("--format", default="saved_model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--limit", type=int, default=800, help="texts for training [800]")
    parser.add_argument("--test", type=int, default=1600, help="other texts for accuracy [1600]")
    parser.add_argument("--importance", default="magnitude")
    parser.add_argument("--threads", type=int, default=2, help="for training and the search [2]")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    import tensorflow as tf

    import keras_efficient as ke

    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    train, test = ke.data.split(ke.data.read_records(ke.data.demo_reviews()), validation=0.15)
    train = train.take(range(min(arguments.limit, len(train))))
    test = test.take(range(min(arguments.test, len(test))))
    model, tokenizer = ke.models.load(
        ke.data.demo_model(), num_labels=2, library=arguments.library, seed=0
    )
    keras = ke.flavor.of(model).keras
    batches = ke.data.text(train, tokenizer, batch_size=16, max_length=64)
    held_out = ke.data.text(test, tokenizer, batch_size=64, max_length=64, shuffle=False)

    def tune(model, rate):
        model.compile(
            ke.optimizers.AdamW(rate, library=arguments.library),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        model.fit(batches, verbose=0)
        return model.evaluate(held_out, verbose=0, return_dict=True)["accuracy"]

    found: dict[str, Any] = {"arguments": {k: v for k, v in vars(arguments).items() if k != "json"}}
    found["accuracy_whole"] = tune(model, 5e-5)
    measure = ke.bench.ExportLatency(
        quantize=arguments.quantize,
        format=arguments.format,
        batch=arguments.batch,
        length=arguments.length,
        baseline=arguments.baseline,
    )
    few = batches.take(4)
    with tempfile.TemporaryDirectory() as folder:
        # Nothing that an earlier run measured.
        os.environ["KERAS_EFFICIENT_CACHE"] = folder
        for call in ("first", "second"):
            begin, processor = time.perf_counter(), processor_seconds()
            small, report = ke.shrink(
                model,
                speedup=arguments.speedup,
                measure=measure,
                data=few,
                importance=arguments.importance,
            )
            found[f"{call}_call"] = {
                "seconds": time.perf_counter() - begin,
                "processor_seconds": processor_seconds() - processor,
            }
            print(f"{call} call: {found[f'{call}_call']}\n{report}", file=sys.stderr)
        found["sizes"] = {name: after for name, (_, after) in report.sizes.items()}
        found["layers"] = report.layers
        found["parameters"] = report.parameters
        found["milliseconds"] = {"whole": report.latency_ms_before, "small": report.latency_ms}
        found["accuracy_small"] = tune(small, 1e-4)
        exports = {}
        for name, each in {"whole": model, "small": small}.items():
            exports[name] = ke.export(
                each,
                f"{folder}/{name}",
                sample=next(iter(held_out)),
                quantize=arguments.quantize,
                format=arguments.format,
                latency=False,
            ).directory
        if arguments.library == "keras":
            exports["keras"] = Path(folder) / "keras_export"
            model.export(str(exports["keras"]), verbose=False)
        cases = ke.bench.bench(
            exports, batches=[arguments.batch], lengths=[arguments.length], seconds=5
        )
        case = f"batch {arguments.batch}, length {arguments.length}"
        for figure in ("median_ms", "processor_ms"):
            found[f"bench_{figure}"] = {
                name: target["cases"][case][figure] for name, target in cases.targets.items()
            }
        found["bytes"] = {name: target["bytes"] for name, target in cases.targets.items()}
        found["cpu"] = cases.cpu
    print(json.dumps(found, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
