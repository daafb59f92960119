"""Combine the factors of a test by covering arrays; the full product runs under `make test-all`."""

import itertools

import pytest
from allpairspy import AllPairs

#: Which contracts of a method `make test` checks; `make test-all` checks all of them. The code
#: behind a contract (replicas, XLA, microbatches and so on) is largely shared by the methods, so
#: they take turns. All contracts of a file that is not listed are checked.
CONTRACTS = {
    "callbacks/test_gradual_unfreezing.py": {"xla"},
    "compression/test_cluster.py": {"files", "mixed_precision"},
    "compression/test_prune.py": {"replicas", "mixed_precision"},
    "compression/test_quantize_training.py": {"files", "mixed_precision"},
    "compression/test_share_weights.py": {"files"},
    "optimizers/test_optimizers_training.py": {"replicas", "microbatches"},
    "peft/test_adalora.py": {"files"},
    "peft/test_adapters.py": {"xla"},
    "peft/test_bitfit.py": {"export", "mixed_precision"},
    "peft/test_lora_training.py": {"mixed_precision"},
    "peft/test_prefix_tuning.py": {"export"},
    "training/test_remat.py": {"xla", "microbatches"},
}


def covering(*factors, strength=2, keep=lambda *levels: True):
    """Return the full product of `factors` as parameters; `make test` runs a covering array of it.

    Args:
        factors: sequences of levels, one per argument of the test. A level may be a
            `pytest.param`, whose value, id and marks are kept.
        strength: 2: every pair of levels of two factors occurs in `make test`. 1: every level of
            every factor occurs; the shorter factors are rotated along the longest.
        keep: predicate of one level of each factor; combinations it refuses do not exist.

    Returns:
        List of `pytest.param`; those outside the covering array have the marker `full`.

    Example:
        >>> import pytest
        >>> from zoo import ZOO
        >>> pytest.mark.parametrize("specimen, replicas, k", covering(ZOO, (1, 2), (1, 4)))
    """
    factors = [list(factor) for factor in factors]
    values = [[_value(level) for level in factor] for factor in factors]

    def valid(row):
        return keep(*(values[i][j] for i, j in enumerate(row)))

    product = [row for row in itertools.product(*(range(len(f)) for f in factors)) if valid(row)]
    chosen = set()
    if strength == 1 or len(factors) == 1:
        missing = {(i, j) for row in product for i, j in enumerate(row)}
        rotated = [tuple(n % len(f) for f in factors) for n in range(max(map(len, factors)))]
        for row in [*(r for r in rotated if valid(r)), *product]:
            new = set(enumerate(row)) & missing
            if new:
                chosen.add(row)
                missing -= new
    else:
        found = AllPairs(
            [list(range(len(f))) for f in factors],
            filter_func=lambda row: len(row) < len(factors) or valid(row),
        )
        chosen = {tuple(row) for row in found}
        # allpairspy may leave out pairs that a filter makes hard to reach.
        missing = {pair for row in product for pair in _pairs(row)}
        missing -= {pair for row in chosen for pair in _pairs(row)}
        for row in product:
            if new := set(_pairs(row)) & missing:
                chosen.add(row)
                missing -= new
    return [_param(factors, row, full=row not in chosen) for row in product]


def sampled(cases: int = 1):
    """Return a marker: `make test` runs `cases` of a test's parameter sets, `make test-all` all.

    Which ones follows from the position of the test among the sampled tests of its file, so the
    tests of a file together cover both libraries. See `sample`.
    """
    return pytest.mark.sampled(cases)


def contract(*names):
    """Return a marker: the test checks these contracts, any of which may be shared by methods.

    `make test` runs it if `CONTRACTS` lists one of `names` for its file, `make test-all` always.

    Args:
        names: among "replicas" (two are one device), "xla" (it computes the same), "microbatches"
            (they are one batch), "mixed_precision", "resume" (to the last bit), "export" and
            "files" (a trained model is saved, loaded and merged).
    """
    return pytest.mark.contract(*names)


def sample(items):
    """Mark as `full` what `contract` and `sampled` leave out; called on collection."""
    for item in items:
        marker = item.get_closest_marker("contract")
        file = "/".join(item.path.parts[-2:])
        if marker is not None and not CONTRACTS.get(file, set(marker.args)) & set(marker.args):
            item.add_marker(pytest.mark.full)
    cases, positions = {}, {}
    for item in items:
        marker = item.get_closest_marker("sampled")
        if marker is not None and item.get_closest_marker("full") is None:
            cases.setdefault((item.fspath, item.originalname, marker.args[0]), []).append(item)
    for (path, _, wanted), found in cases.items():
        first = positions[path] = positions.get(path, -1) + 1
        kept = {(first + i * len(found) // wanted) % len(found) for i in range(wanted)}
        for index, item in enumerate(found):
            if index not in kept:
                item.add_marker(pytest.mark.full)


def _pairs(row):
    return itertools.combinations(enumerate(row), 2)


def _is_param(level):
    return hasattr(level, "values") and hasattr(level, "marks") and hasattr(level, "id")


def _value(level):
    return level.values[0] if _is_param(level) else level


def _param(factors, row, full):
    levels = [factor[j] for factor, j in zip(factors, row, strict=True)]
    marks = [mark for level in levels if _is_param(level) for mark in level.marks]
    if full:
        marks.append(pytest.mark.full)
    ids = [level.id if _is_param(level) else None for level in levels]
    name = "-".join(
        str(i if i is not None else _name(_value(level)))
        for i, level in zip(ids, levels, strict=True)
    )
    return pytest.param(*(_value(level) for level in levels), marks=marks, id=name)


def _name(value):
    return getattr(value, "__name__", None) or str(value)
