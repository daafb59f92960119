"""Two workers on one machine: bytes on the wire per update, and the speed of two workers.

    python benchmarks/workers.py [--library both] [--rounds 3] [--parts we] [--quick] [--json FILE]

MiniLM in float32, movie reviews padded to 64 tokens, microbatches of 8 per worker, AdamW.

w. Bytes that cross the loopback interface while both workers make one update from k microbatches
   each, in units of the parameters' bytes, per microbatch: with `ke.accumulate`, with k plain steps
   under `ke.strategy`, and with Keras 3's own accumulation. Loopback traffic of other programs is
   counted too.
e. Examples per second of two workers with a core each, relative to twice those of one worker on one
   core: 1 is perfect scaling. All three processes are alive and take
   turns; a figure is the median of the rounds' ratios.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import traceback

LENGTH, SLICE = 64, 8
LIBRARIES = ("keras", "tf_keras")
TITLES = {
    "w": "bytes on the wire per microbatch, in units of the parameters' bytes",
    "e": "two workers of one core each, relative to twice one worker of one core",
}


class Trainer:
    """Trains in this process what it is told to; one model per alternative."""

    def __init__(self, library):
        import keras_efficient as ke

        self.ke, self.library, self.models = ke, library, {}
        self.strategy = ke.strategy("auto", seed=0)
        self.replicas = self.strategy.num_replicas_in_sync
        records = ke.data.read_records(ke.data.demo_reviews())
        with self.strategy.scope():
            self.load = lambda: ke.models.load(ke.data.demo_model(), library=library)
            self.models["ours"], tokenizer = self.load()
            self.compile("ours")
            ke.accumulate(self.models["ours"], microbatch_size=SLICE)
        self.text = lambda batch: ke.data.text(
            records.take(range(16 * SLICE * self.replicas)),
            tokenizer,
            batch_size=batch,
            max_length=LENGTH,
            buckets=[LENGTH],
            shuffle=False,
        )

    def compile(self, name, **optimizer):
        keras = self.ke.flavor.get(self.library).keras
        self.models[name].compile(
            keras.optimizers.AdamW(1e-5, **optimizer),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )

    def run(self, name, k, updates):
        """Seconds of so many updates from k microbatches, without the iterator's start."""
        key = name if name in ("ours", "plain") else f"{name}, {k}"
        if key not in self.models:
            with self.strategy.scope():
                self.models[key], _ = self.load()
                options = {} if name == "plain" else {"gradient_accumulation_steps": k}
                self.compile(key, **options)
        per_step = k if name == "ours" else 1
        data = self.text(per_step * SLICE * self.replicas).repeat()
        times = []
        clock = self.ke.flavor.get(self.library).keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda *_: times.append(time.perf_counter()),
            on_epoch_end=lambda *_: times.append(time.perf_counter()),
        )
        steps = updates * k // per_step
        fit = self.models[key].fit
        fit(data, steps_per_epoch=steps, verbose=0, shuffle=False, callbacks=[clock])
        return times[1] - times[0]

    @property
    def parameter_bytes(self):
        variables = self.models["ours"].trainable_variables
        return 4 * sum(v.shape.num_elements() for v in variables)


def serve(library):
    """Do what the lines of stdin say; answer each with a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Whatever else is printed is no answer.
    trainer = Trainer(library)
    print(json.dumps({"parameter_bytes": trainer.parameter_bytes}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = {"seconds": trainer.run(*json.loads(line))}
        except Exception as error:
            traceback.print_exc()
            answer = {"failed": (str(error).splitlines() or [type(error).__name__])[0]}
        print(json.dumps(answer), file=answers, flush=True)


class Team:
    """Processes that train together: a cluster of workers with a core each, or one alone."""

    def __init__(self, library, workers):
        ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(workers)]
        addresses = [f"127.0.0.1:{port.getsockname()[1]}" for port in ports]
        for port in ports:
            port.close()
        self.workers, self.processes = workers, []
        for index in range(workers):
            env = dict(os.environ) | {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
            env |= {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
            env.pop("TF_CONFIG", None)
            if workers > 1:
                task = {"type": "worker", "index": index}
                env["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
            command = [sys.executable, __file__, "--serve", library]
            command = ["taskset", "-c", str(index), *command]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.processes.append(subprocess.Popen(command, env=env, **pipes))
        self.parameter_bytes = self._answers()[0]["parameter_bytes"]

    def run(self, *order):
        """(seconds of the slowest, bytes on the loopback), or None if it failed."""
        before = loopback()
        for process in self.processes:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        answers = self._answers()
        if any("failed" in answer for answer in answers):
            print(f"{order}: {answers[0]['failed']}", file=sys.stderr)
            return None
        return max(answer["seconds"] for answer in answers), loopback() - before

    def _answers(self):
        return [json.loads(process.stdout.readline()) for process in self.processes]

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()


def loopback():
    """Bytes received on this machine's loopback interface so far."""
    with open("/proc/net/dev") as file:
        (line,) = (line for line in file if line.strip().startswith("lo:"))
    return int(line.partition(":")[2].split()[0])


def wire(pair, library, ks):
    names = ["ours", "plain"] + (["Keras' own"] if library == "keras" else [])
    result = {}
    for name in names:
        for k in ks:
            if k == 1 and name == "Keras' own":
                continue
            # Tracing and creating an iterator send bytes too: they cancel in the difference of two
            # runs.
            ran = pair.run(name, k, 1) and [pair.run(name, k, updates) for updates in (1, 3)]
            ratio = None
            if ran and all(ran):
                ratio = (ran[1][1] - ran[0][1]) / 2 / k / pair.parameter_bytes
            result[f"{name}, k = {k}"] = ratio
    return result


def efficiency(pair, alone, rounds, ks):
    result = {}
    for k in ks:
        updates = max(1, 8 // k)
        for team in (pair, alone):
            team.run("ours", k, 1)
        ratios = []
        for number in range(rounds):
            teams = (pair, alone) if number % 2 else (alone, pair)
            seconds = {team.workers: team.run("ours", k, updates)[0] for team in teams}
            # Twice the examples in the time of the pair.
            ratios.append(seconds[1] / seconds[2])
            print(f"k = {k}, round {number}: {ratios[-1]:.3f}", file=sys.stderr, flush=True)
        result[f"ours, k = {k}"] = [statistics.median(ratios), min(ratios), max(ratios)]
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", default="both", choices=(*LIBRARIES, "both"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default="we", help="which of them")
    parser.add_argument("--quick", action="store_true", help="1 round, k = 1 and 4")
    parser.add_argument("--json")
    parser.add_argument("--serve", choices=LIBRARIES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.serve)
    rounds = 1 if arguments.quick else arguments.rounds
    results = {part: {} for part in arguments.parts}
    for library in LIBRARIES if arguments.library == "both" else (arguments.library,):
        pair, found = Team(library, 2), {}
        try:
            if "w" in arguments.parts:
                found["w"] = wire(pair, library, (1, 4) if arguments.quick else (1, 4, 16))
            if "e" in arguments.parts:
                alone = Team(library, 1)
                ks = (1, 4) if arguments.quick else (1, 4, 8)
                found["e"] = efficiency(pair, alone, rounds, ks)
                alone.close()
        finally:
            pair.close()
        for part, table in found.items():
            results[part] |= {f"{library}: {name}": row for name, row in table.items()}
        if arguments.json:
            with open(arguments.json, "w") as file:
                json.dump(results, file, indent=2)
    for part, table in results.items():
        print(f"\n{part}. {TITLES[part]}\n")
        for name, row in table.items():
            cells = row if isinstance(row, list) else [row]
            print(f"{name:<32}", *("failed" if c is None else f"{c:>8.3f}" for c in cells))


if __name__ == "__main__":
    main()
