"""Objects that are shared across calls."""

from __future__ import annotations

import gc

import pytest

from fastjob import Parallel, delayed, errors, share
from fastjob._pool.pool import pool


class Counted:
    """Counts how often it is pickled."""

    pickles = 0

    def __init__(self, value):
        self.value = value
        self.payload = list(range(1000))

    def __getstate__(self):
        Counted.pickles += 1
        return self.__dict__


def place(obj, i):
    """Value, and where this worker keeps the object."""
    import os

    return obj.value, os.getpid(), id(obj)


def value_of(obj, i=0):
    return obj.value


@pytest.fixture
def processes():
    pool.shutdown()
    return Parallel(n_jobs=2, batch_size=1)


def test_a_shared_object_is_pickled_once_for_many_calls(processes):
    obj = Counted(7)
    Counted.pickles = 0
    places = {}
    with share(obj) as same:
        assert same is obj
        for _ in range(5):
            for value, pid, address in processes(
                delayed(place)(obj, i) for i in range(6)
            ):
                assert value == 7
                places.setdefault(pid, set()).add(address)
    assert Counted.pickles == 1
    assert all(len(addresses) == 1 for addresses in places.values())


def test_a_change_is_seen_again_once_sharing_has_ended(processes):
    obj = Counted(1)
    handle = share(obj)
    assert handle.value is obj
    assert processes([delayed(value_of)(obj)] * 2) == [1, 1]
    obj.value = 2
    assert processes([delayed(value_of)(obj)] * 2) == [1, 1]
    handle.close()
    assert processes([delayed(value_of)(obj)] * 2) == [2, 2]


def test_a_dropped_handle_ends_sharing(processes):
    obj = Counted(1)
    handle = share(obj)
    assert processes([delayed(value_of)(obj)] * 2) == [1, 1]
    obj.value = 3
    del handle
    gc.collect()
    assert processes([delayed(value_of)(obj)] * 2) == [3, 3]


def test_sharing_an_object_again_shares_what_it_has_become(processes):
    obj = Counted(1)
    first = share(obj)
    assert processes([delayed(value_of)(obj)] * 2) == [1, 1]
    obj.value = 2
    second = share(obj)
    first.close()  # is about the first only
    obj.value = 5
    assert processes([delayed(value_of)(obj)] * 2) == [2, 2]
    second.close()


def test_a_shared_array_arrives_whole(processes):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(100_000, dtype="f8")
    with share({"array": array}) as table:
        sums = processes(delayed(total)(table, i) for i in range(4))
    assert sums == [array.sum()] * 4


def total(table, i):
    return float(table["array"].sum())


def test_a_worker_that_replaces_a_dead_one_gets_the_object_too(processes):
    obj = Counted(4)
    with share(obj):
        assert processes([delayed(value_of)(obj)] * 2) == [4, 4]
        pool.shutdown()
        assert processes([delayed(value_of)(obj)] * 2) == [4, 4]


@pytest.mark.parametrize("backend", ["threading", "sequential"])
def test_threads_and_loops_get_the_object_itself(backend):
    obj = Counted(4)
    with share(obj):
        got = Parallel(n_jobs=2, backend=backend)(delayed(id)(obj) for _ in range(3))
    assert got == [id(obj)] * 3


def test_what_cannot_be_pickled_is_refused_at_once():
    with pytest.raises(errors.TaskPicklingError, match="generator"):
        share(i for i in range(3))


def test_what_share_returns_is_refused_as_an_argument_with_advice():
    shared = share({"a": 1})
    with pytest.raises(errors.TaskPicklingError, match="pass the shared object itself"):
        Parallel(2, "processes")(delayed(len)(shared) for _ in range(2))
    assert Parallel(2, "processes")([delayed(len)(shared.value)] * 2) == [1, 1]
    shared.close()
