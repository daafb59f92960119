"""Requests per second of a SavedModel, by the threads that TensorFlow has within an operation.

    python benchmarks/concurrency.py DIR [DIR ...] [--batch 1 8] [--length 64] [--json FILE]

A v1 session, as TensorFlow Serving has one, answers requests from as many callers as there are
processors. Three settings take turns, in processes of their own: one caller and all processors
within an operation; as many callers as processors with the same setting, which is TensorFlow
Serving's own; and as many callers with one thread within an operation, which is `keras-efficient
serve --threads 1`. The figures are medians over the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from optimizer_step import cpu

PROCESSORS = len(os.sched_getaffinity(0))
#: By name: threads within an operation, callers.
SETTINGS = {
    "one caller": (PROCESSORS, 1),
    "default": (PROCESSORS, PROCESSORS),
    "--threads 1": (1, PROCESSORS),
}


def rate(folder, batch, length, threads, callers, seconds):
    """Requests per second of a version."""
    import tensorflow as tf

    from keras_efficient.bench._inputs import synthetic_inputs

    v1 = tf.compat.v1
    config = v1.ConfigProto(
        intra_op_parallelism_threads=threads, inter_op_parallelism_threads=PROCESSORS
    )
    graph = tf.Graph()
    with graph.as_default(), v1.Session(graph=graph, config=config) as session:
        meta = v1.saved_model.loader.load(session, ["serve"], folder)
        signature = meta.signature_def["serving_default"]
        types = {name: tf.as_dtype(x.dtype).name for name, x in signature.inputs.items()}
        shapes = {name: (dtype, (batch, length)) for name, dtype in types.items()}
        arrays = synthetic_inputs(shapes, vocabulary=1000).values()
        feeds = [tensor.name for tensor in signature.inputs.values()]
        run = session.make_callable([t.name for t in signature.outputs.values()], feeds)

        def answered(seconds):
            counts, end = [0] * callers, time.monotonic() + seconds

            def ask(caller):
                while time.monotonic() < end:
                    run(*arrays)
                    counts[caller] += 1

            asking = [threading.Thread(target=ask, args=(caller,)) for caller in range(callers)]
            start = time.monotonic()
            for thread in asking:
                thread.start()
            for thread in asking:
                thread.join()
            return sum(counts) / (time.monotonic() - start)

        answered(1.0)
        return answered(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directories", nargs="+", metavar="DIR", help="folder of a version")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="per setting and round")
    parser.add_argument("--json")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        batch, length, threads, callers = map(int, arguments.one)
        folder = arguments.directories[0]
        print(rate(folder, batch, length, threads, callers, arguments.seconds))
        return
    facts = {"cpu": cpu(), "processors": PROCESSORS, "load_before": os.getloadavg()[0]}
    print(f"{facts['cpu']}; load {facts['load_before']:.1f}; requests per second")
    results = {}
    for folder in arguments.directories:
        for batch in arguments.batch:
            found = {name: [] for name in SETTINGS}
            for _ in range(arguments.rounds):
                for name, numbers in SETTINGS.items():
                    words = [str(n) for n in (batch, arguments.length, *numbers)]
                    command = [sys.executable, __file__, folder, "--one", *words]
                    command += ["--seconds", str(arguments.seconds)]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    found[name].append(float(done.stdout.split()[-1]))
            case = f"{folder} {batch}x{arguments.length}"
            results[case] = {name: statistics.median(rates) for name, rates in found.items()}
            rates = "  ".join(f"{name} {value:.1f}" for name, value in results[case].items())
            print(f"{case}: {rates}", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(facts | {"results": results}, indent=2))


if __name__ == "__main__":
    main()
