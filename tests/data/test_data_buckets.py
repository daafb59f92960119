import itertools

import numpy as np
import pytest

from keras_efficient._errors import InputError
from keras_efficient.data import choose_buckets, padded_tokens


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_other_buckets_pad_less(seed, count):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 45, size=60)
    top = -(-lengths.max() // 8) * 8
    best = min(
        padded_tokens(lengths, (*combination, top))
        for size in range(count)
        for combination in itertools.combinations(range(8, top, 8), size)
    )
    chosen = choose_buckets(lengths, max_length=64, count=count)
    assert padded_tokens(lengths, chosen) == best
    assert len(chosen) <= count and all(bucket % 8 == 0 for bucket in chosen)


def test_last_bucket_is_capped_and_none_is_idle():
    assert choose_buckets([3, 30], max_length=30, count=5) == (8, 30)
    assert choose_buckets([30] * 9, max_length=64) == (32,)
    assert choose_buckets([1, 2, 3], max_length=9, count=9, multiple=1) == (1, 2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: choose_buckets([], max_length=8), "positive integers, at least one"),
        (lambda: choose_buckets([0], max_length=8), "positive integers, at least one"),
        (lambda: choose_buckets([1.5], max_length=8), "positive integers, at least one"),
        (lambda: choose_buckets([9], max_length=8), "not exceed max_length=8. Received: 9"),
        (lambda: choose_buckets([9], max_length=0), "`max_length` must be a positive integer"),
        (lambda: choose_buckets([9], max_length=9, count=0), "`count` must be"),
        (lambda: choose_buckets([9], max_length=9, multiple=True), "`multiple` must be"),
        (lambda: padded_tokens([9], (8,)), "must hold the longest text, 9"),
        (lambda: padded_tokens([9], (16, 16)), "must ascend"),
        (lambda: padded_tokens([9], (-1, 16)), "must be positive integers"),
        (lambda: padded_tokens([9], ()), "must be positive integers"),
        (lambda: padded_tokens([9], 16), "must be positive integers"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(InputError, match=message):
        call()
