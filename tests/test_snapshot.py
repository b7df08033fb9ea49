"""Snapshots tell whether an object has changed: never a change missed."""

from __future__ import annotations

import array
import collections
import random

import pytest

from fastjob._core.snapshot import Opaque, Snapshot


class Plain:
    def __init__(self, x):
        self.x = x


class Slotted:
    __slots__ = ("x", "y")

    def __init__(self, x):
        self.x = x


class Mixed(Slotted):
    pass


def replace(container, key, value):
    container[key] = value


CHANGES = {
    "list item": ([1, 2], lambda o: replace(o, 0, 5)),
    "list growth": ([1, 2], lambda o: o.append(3)),
    "list order": ([1, 2], lambda o: o.reverse()),
    "dict value": ({"a": 1}, lambda o: replace(o, "a", 2)),
    "dict growth": ({"a": 1}, lambda o: replace(o, "b", 2)),
    "dict order": ({"a": 1, "b": 2}, lambda o: o.update(a=o.pop("a"))),
    "set": ({1, 2}, lambda o: o.add(3)),
    "bytearray": (bytearray(b"ab"), lambda o: replace(o, 0, 0)),
    "attribute": (Plain(1), lambda o: setattr(o, "x", 2)),
    "new attribute": (Plain(1), lambda o: setattr(o, "z", 2)),
    "lost attribute": (Plain(1), lambda o: delattr(o, "x")),
    "other dictionary": (Plain(1), lambda o: setattr(o, "__dict__", {"x": 1, "y": 2})),
    "class": (Plain(1), lambda o: setattr(o, "__class__", type("P", (Plain,), {}))),
    "slot": (Slotted(1), lambda o: setattr(o, "x", 2)),
    "empty slot": (Slotted(1), lambda o: setattr(o, "y", 2)),
    "slot and dictionary": (Mixed(1), lambda o: setattr(o, "z", 2)),
    "deep": ([{"a": (Plain([1]),)}], lambda o: o[0]["a"][0].x.append(2)),
    "key": ({(1, Slotted(1)): 1}, lambda o: setattr(next(iter(o))[1], "x", 9)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_seen(what):
    make, change = CHANGES[what]
    snapshot = Snapshot(make)
    assert snapshot.same()
    change(make)
    assert not snapshot.same()


def test_an_equal_object_in_the_place_of_another_is_a_change():
    inner = [1]
    outer = [inner]
    snapshot = Snapshot(outer)
    outer[0] = [1]
    assert not snapshot.same()


class Named:
    """Equal to whatever has its name; what compares it is counted."""

    n_comparisons = 0

    def __init__(self, name, x):
        self.name = name
        self.x = x

    def __hash__(self):
        return hash(self.name)

    def __eq__(self, other):
        Named.n_comparisons += 1
        return self.name == other.name


@pytest.mark.parametrize(
    ("old", "equal"), [(1, 1.0), (Named("a", 1), Named("a", 2))], ids=["int", "class"]
)
def test_an_equal_member_of_a_set_is_a_change(old, equal):
    members = {old, 2, 3}
    snapshot = Snapshot(members)
    members.remove(old)
    members.add(equal)
    Named.n_comparisons = 0
    assert not snapshot.same()
    assert Named.n_comparisons == 0


def test_a_set_whose_members_stay_is_unchanged():
    members = {Named(str(i), i) for i in range(1000)}
    snapshot = Snapshot(members)
    Named.n_comparisons = 0
    assert snapshot.same()
    assert Named.n_comparisons == 0
    next(iter(members)).x = -1
    assert not snapshot.same()


def test_an_object_that_contains_itself():
    loop = []
    loop.append(loop)
    snapshot = Snapshot(loop)
    assert snapshot.same()
    loop.append(1)
    assert not snapshot.same()


@pytest.mark.parametrize(
    "opaque",
    [
        array.array("i", [1]),
        collections.deque([1]),
        iter([1]),
        memoryview(bytearray(1)),
        [array.array("i", [1])],
        collections.OrderedDict(a=1),
        collections.defaultdict(list),
        [lambda: 1],
        {"f": [].append},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_compared_is_refused(opaque):
    with pytest.raises(Opaque):
        Snapshot(opaque)


def test_functions_that_go_by_their_name_are_compared_by_it():
    functions = [len, collections.Counter.update, replace]
    snapshot = Snapshot(functions)
    assert snapshot.same()
    functions[0] = max
    assert not snapshot.same()


@pytest.mark.parametrize("base", [list, dict, set, bytearray])
def test_subclasses_of_containers_hide_their_items_and_are_refused(base):
    with pytest.raises(Opaque):
        Snapshot(type("Sub", (base,), {})())


def test_random_objects_and_changes():
    """Every change of a random tree of lists and dicts is seen, and nothing else."""
    choose = random.Random(3)

    def tree(depth):
        kind = choose.random()
        if depth == 0 or kind < 0.2:
            return choose.randrange(10_000)
        if kind < 0.6:
            return [tree(depth - 1) for _ in range(choose.randrange(4))]
        return {i: tree(depth - 1) for i in range(choose.randrange(4))}

    def places(node):
        if isinstance(node, list | dict):
            yield node
            for child in node.values() if isinstance(node, dict) else node:
                yield from places(child)

    for _ in range(300):
        root = [tree(4)]
        snapshot = Snapshot(root)
        assert snapshot.same()
        place = choose.choice(list(places(root)))
        if isinstance(place, dict):
            place["new"] = 1
        else:
            place.append(None)
        assert not snapshot.same()
        del place["new" if isinstance(place, dict) else -1]
        assert snapshot.same()
