"""The covering arrays of the tests: every pair of levels is in `make test`, the product in all."""

import collections
import itertools
import re
from pathlib import Path

from covering import CONTRACTS, contract, covering, sample, sampled

TESTS = Path(__file__).parent


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


class Item:
    """A test as pytest collects it, as far as `sample` looks at it."""

    def __init__(self, file, function, *markers):
        self.path = self.fspath = TESTS / file
        self.originalname, self.markers = function, [m.mark for m in markers]

    def get_closest_marker(self, name):
        return next((m for m in self.markers if m.name == name), None)

    def add_marker(self, marker):
        self.markers.append(marker.mark)

    def runs(self):
        return self.get_closest_marker("full") is None


def test_the_sampled_tests_of_a_file_take_turns_with_the_cases():
    items = [Item("test_a.py", name, sampled()) for name in "fgh" for _ in range(2)]
    sample(items)
    assert [item.runs() for item in items] == [True, False, False, True, True, False]


def test_methods_take_turns_with_the_contracts(monkeypatch):
    monkeypatch.setitem(CONTRACTS, "peft/test_a.py", {"xla", "export"})
    wanted = {
        Item("peft/test_a.py", "f", contract("xla")): True,
        Item("peft/test_a.py", "g", contract("replicas")): False,
        Item("peft/test_a.py", "h", contract("replicas", "export")): True,
        Item("peft/test_a.py", "i"): True,
        # Of a file that is not listed, all are checked.
        Item("peft/test_b.py", "g", contract("replicas")): True,
        Item("test_a.py", "g", contract("replicas")): True,
    }
    sample(list(wanted))
    assert [item.runs() for item in wanted] == list(wanted.values())


def test_a_case_is_sampled_among_the_contracts_that_are_checked(monkeypatch):
    """One that is left out is no turn of the libraries."""
    monkeypatch.setitem(CONTRACTS, "peft/test_a.py", {"xla"})
    marked = ("f", "xla"), ("g", "replicas"), ("h", "xla")
    items = [
        Item("peft/test_a.py", name, sampled(), contract(what))
        for name, what in marked
        for _ in range(2)
    ]
    sample(items)
    assert [item.runs() for item in items] == [True, False, False, False, False, True]


def contracts_of_files():
    """`{file: contracts that its tests name}`, read from the source."""
    found = {}
    for path in TESTS.glob("*/test_*.py"):
        names = re.findall(r"^@contract\((.*)\)$", path.read_text(), re.MULTILINE)
        if names:
            text = ", ".join(names)
            found["/".join(path.parts[-2:])] = set(re.findall(r'"(\w+)"', text))
    return found


def test_every_method_has_a_contract_checked_and_every_contract_is_checked():
    there, times = contracts_of_files(), collections.Counter()
    for file, chosen in CONTRACTS.items():
        assert chosen and chosen <= there[file], file
    for file, names in there.items():
        times.update(CONTRACTS.get(file, names))
    named = set.union(*there.values())
    assert (
        set(times)
        == named
        == {"replicas", "xla", "microbatches", "mixed_precision", "resume", "export", "files"}
    )
    assert min(times.values()) >= 2, times
