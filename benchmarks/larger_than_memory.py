"""Memory of an epoch over many texts: in memory, and by `ke.data.tokenize_to_disk`.

    python benchmarks/larger_than_memory.py [--rows 200000 1000000] [--batch-size 256]

Nothing is trained. The texts are movie reviews, each after its number and so different, in gzipped
shards of JSON Lines. The tokenizer is MiniLM's. Each way runs in a process of its own, which reads
or tokenizes, then iterates over one shuffled epoch. Memory is the most that the process itself
holds (RssAnon of Linux) beyond what it holds before; pages of mapped files, which the system
may forget at any time, do not count.
"""

import argparse
import gzip
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import keras_efficient as ke
from keras_efficient.bench._cpu import cpu_name

SHARDS = 8
WAYS = {"memory": "`read_records`", "disk": "`tokenize_to_disk`"}


def write_shards(folder, rows):
    """Write the shards; return the size of the texts in bytes."""
    reviews = ke.data.read_records(ke.data.demo_reviews())
    pairs = itertools.cycle(zip(reviews.texts, reviews.labels.tolist(), strict=True))
    size = 0
    for shard in range(SHARDS):
        with gzip.open(folder / f"train-{shard}.jsonl.gz", "wt", compresslevel=1) as file:
            for number in range(shard, rows, SHARDS):
                text, label = next(pairs)
                text = f"{number} {text}"
                size += len(text.encode())
                file.write(json.dumps({"text": text, "label": label}) + "\n")
    return size


class PeakMemory(threading.Thread):
    """The most bytes that this process holds, from the start of the thread."""

    def __init__(self):
        super().__init__(daemon=True)
        self.before = self.peak = self.now()

    @staticmethod
    def now():
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024

    def run(self):
        while True:
            self.peak = max(self.peak, self.now())
            time.sleep(0.02)


def child(way, folder, batch_size):
    """Print the figures of one way as JSON."""
    tokenizer = ke.data.Tokenizer.from_directory(ke.data.demo_model(), inputs=ke.data.KERASHUB)
    # TensorFlow and the tokenizer are loaded.
    next(iter(ke.data.text(["a film"] * 8, tokenizer, batch_size=2)))
    memory = PeakMemory()
    memory.start()
    start = time.perf_counter()
    records = str(folder / "train-*.jsonl.gz")
    if way == "disk":
        records = ke.data.tokenize_to_disk(records, tokenizer, folder / "tokens")
    batches = ke.data.text(records, tokenizer, batch_size=batch_size, group_by_length=True)
    ready = time.perf_counter()
    seen = sum(len(labels) for _, labels in batches)
    done = time.perf_counter()
    assert seen == batches.stats.examples
    found = {"ready": ready - start, "epoch": done - ready, "peak": memory.peak - memory.before}
    print(json.dumps(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--child", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        way, folder = arguments.child
        return child(way, Path(folder), arguments.batch_size)
    print(cpu_name())
    print("| texts | | ready after | epoch | memory | token files |\n|---|---|---|---|---|---|")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            size = write_shards(folder, rows)
            for way, name in WAYS.items():
                command = [sys.executable, __file__, "--child", way, str(folder)]
                command += ["--batch-size", str(arguments.batch_size)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                found = json.loads(done.stdout.splitlines()[-1])
                files = sum(p.stat().st_size for p in folder.rglob("tokens/*/*"))
                print(
                    f"| {rows:,}, {size / 1e6:,.0f} MB | {name} | {found['ready']:.0f} s | "
                    f"{found['epoch']:.0f} s | {found['peak'] / 1e6:,.0f} MB | "
                    f"{files / 1e6:,.0f} MB |".replace("| 0 MB |", "| |")
                )


if __name__ == "__main__":
    main()
