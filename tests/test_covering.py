"""The covering arrays of the tests: every pair of levels is in `make test`, the product in all."""

import itertools

from covering import covering


def rows(params, full):
    return [p.values for p in params if any(m.name == "full" for m in p.marks) == full]


def test_every_pair_of_levels_occurs_without_the_full_product():
    factors = ("abcd", (1, 2, 3), (True, False), "xy")
    params = covering(*factors)
    chosen = rows(params, full=False)
    assert len(params) == 4 * 3 * 2 * 2
    assert len(chosen) < 20
    for i, j in itertools.combinations(range(4), 2):
        assert {(row[i], row[j]) for row in chosen} == set(
            itertools.product(factors[i], factors[j])
        )


def test_strength_one_rotates():
    params = covering("abcd", (1, 2, 3), strength=1)
    chosen = rows(params, full=False)
    assert len(chosen) == 4 and len(params) == 12
    assert {row[0] for row in chosen} == set("abcd") and {row[1] for row in chosen} == {1, 2, 3}


def test_refused_combinations_do_not_exist():
    params = covering("abc", (1, 2), (0, 1), keep=lambda a, b, c: not (a == "a" and b == 1))
    assert len(params) == 10
    chosen = rows(params, full=False)
    pairs = {(row[0], row[1]) for row in chosen}
    assert pairs == set(itertools.product("abc", (1, 2))) - {("a", 1)}
