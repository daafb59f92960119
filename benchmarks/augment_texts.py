"""Processor time of altered copies of the movie reviews, with MiniLM's embeddings.

    python benchmarks/augment_texts.py [--limit 10000] [--copies 5] [--show 3]

Nothing is trained. Prints the number of distinct copies, and those of the first reviews.
"""

import argparse
import time

import numpy as np

import keras_efficient as ke


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=10_000, help="number of reviews [10000]")
    parser.add_argument("--copies", type=int, default=5, help="copies of each [5]")
    parser.add_argument("--show", type=int, default=3, help="reviews to print copies of [3]")
    arguments = parser.parse_args()
    reviews = ke.data.read_records(ke.data.demo_reviews())
    reviews = reviews.take(np.arange(min(arguments.limit, len(reviews))))
    model, tokenizer = ke.models.load(ke.data.demo_model(), library="keras")
    started = time.process_time()
    new = ke.data.augment_texts(reviews, tokenizer, embeddings=model, copies=arguments.copies)
    seconds = time.process_time() - started
    print(
        f"{seconds:.1f} s of processor time for {len(new.records):,} distinct copies of "
        f"{len(reviews):,} reviews; {new.dropped:,} identical ones dropped"
    )
    for number in range(arguments.show):
        print(f"\n{reviews.texts[number]}")
        for place in np.flatnonzero(new.origins == number):
            print(f"    {new.records.texts[place]}")


if __name__ == "__main__":
    main()
