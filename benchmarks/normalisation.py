"""Accuracy of layer against batch normalisation, before and after the sublayers, over seeds.

    python benchmarks/normalisation.py [--seeds 3] [--library keras] [--epochs 3] [--json FILE]

Each run is `examples/normalisation.py` in a process of its own: a small Transformer from scratch on
the movie reviews, in which nothing but the normalisation and its place differs. A seed gives the
first weights, dropout and the order of the data; the held-out tenth is always the same.
"""

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent / "examples" / "normalisation.py"
KINDS = list(itertools.product(("layer", "batch"), ("before", "after")))


def accuracy(normalisation, place, seed, *options):
    """The accuracy in percent that a run of the example prints."""
    command = [sys.executable, str(EXAMPLE), "--normalisation", normalisation, "--place", place]
    done = subprocess.run([*command, "--seed", str(seed), *options], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{normalisation}, {place}: {done.stderr[-2000:]}")
    return float(re.search(r"accuracy ([\d.]+)%", done.stdout.splitlines()[-1])[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--library", default="keras", choices=("keras", "tf_keras"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit", type=int, help="use this many records [all]")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    options = ["--library", arguments.library, "--epochs", str(arguments.epochs)]
    options += ["--limit", str(arguments.limit)] if arguments.limit else []
    results = {kind: [] for kind in KINDS}
    for seed in range(arguments.seeds):
        for kind, found in results.items():
            found.append(accuracy(*kind, seed, *options))
            print(*kind, f"seed {seed}: {found[-1]:.2f}", file=sys.stderr)
    print(f"{'accuracy, %':<16} {'mean':>6} {'lowest':>7} {'highest':>8}")
    for kind, found in results.items():
        mean = statistics.mean(found)
        print(f"{', '.join(kind):<16} {mean:>6.2f} {min(found):>7.2f} {max(found):>8.2f}")
    if arguments.json:
        table = {", ".join(kind): found for kind, found in results.items()}
        Path(arguments.json).write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
