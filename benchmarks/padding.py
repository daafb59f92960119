"""Padding, batches and shapes of an epoch over the movie reviews, for each way to make batches.

    python benchmarks/padding.py [--batch-size 32] [--tokens-per-batch 900]

Nothing is trained. The tokenizer is MiniLM's, and texts may have up to 128 tokens.
"""

import argparse

import keras_efficient as ke

LONGEST = 128


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--tokens-per-batch", type=int, default=900)
    arguments = parser.parse_args()
    size = {"batch_size": arguments.batch_size}
    ways = {
        "all batches padded to 128": {**size, "buckets": [LONGEST]},
        "unsorted, each batch padded to its longest text": {
            **size,
            "buckets": range(1, LONGEST + 1),
            "shuffle": False,
        },
        "buckets (default)": size,
        "group_by_length=True": {**size, "group_by_length": True},
        f"tokens_per_batch={arguments.tokens_per_batch}": {
            "tokens_per_batch": arguments.tokens_per_batch
        },
    }
    reviews = ke.data.read_records(ke.data.demo_reviews())
    tokenizer = ke.data.Tokenizer.from_directory(ke.data.demo_model(), inputs=ke.data.KERASHUB)
    print("| batches | padding | number | shapes |\n|---|---|---|---|")
    for name, options in ways.items():
        stats = ke.data.text(reviews, tokenizer, max_length=LONGEST, **options).stats
        share = f"{stats.padding_share:.1%}"
        print(f"| {name} | {share} | {stats.batches} | {len(stats.shapes)} |")


if __name__ == "__main__":
    main()
