"""A small argument that task after task has: pickled once, and a copy for each task."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from fastjob import Parallel, delayed
from fastjob._core.snapshot import Opaque, Snapshot

VALUES = {
    "array": lambda: np.arange(12.0),
    "columns": lambda: np.asfortranarray(np.arange(12).reshape(3, 4)),
    "bytes swapped": lambda: np.arange(5, dtype=">i4"),
    "a number": lambda: np.array(2.5),
    "records": lambda: np.ones(3, [("x", "f8"), ("n", "i2")]),
    "list": lambda: [1, 2.0, "three", [4]],
    "dict": lambda: {"a": [1], "b": np.ones(3)},
    "set": lambda: {1, 2},
    "dates": lambda: np.array(["2026-11-22"], "M8[D]"),
    "read-only": lambda: np.frombuffer(b"abcd", "u1"),
    "every second": lambda: np.arange(12)[::2],
    "empty": lambda: np.empty((0, 3)),
}


def look(value, i):
    if isinstance(value, np.ndarray):
        flags = value.flags
        return value.dtype.str, value.shape, flags.f_contiguous, flags.writeable, i
    return repr(value), i


@pytest.mark.parametrize("kind", VALUES)
def test_each_task_sees_what_a_plain_loop_would_show_it(kind):
    value = VALUES[kind]()
    found = Parallel(2)(delayed(look)(value, i) for i in range(300))
    alone = Parallel(2)([delayed(look)(value, 0)])
    assert found == [(*alone[0][:-1], i) for i in range(300)]
    assert Parallel(2)(delayed(repr)(value) for _ in range(50)) == [repr(value)] * 50


def spoil(value, i):
    before = repr(value)
    if isinstance(value, np.ndarray):
        value.fill(0)
    elif isinstance(value, dict):
        value["b"][:] = 0
        value["a"].append(i)
    else:
        value.clear()
    return before


@pytest.mark.parametrize("kind", ["array", "records", "list", "dict", "set"])
def test_what_a_task_does_to_its_copy_is_seen_by_no_other(kind):
    value = VALUES[kind]()
    shown = repr(value)
    found = Parallel(2)(delayed(spoil)(value, i) for i in range(300))
    assert found == [shown] * 300
    assert repr(value) == shown


def fill(value, i):
    value[0] = i


def reshape(value, i):
    value.shape = (4, 3) if i % 2 else (3, 4)


def change_type(value, i):
    value.dtype = "i8" if i % 2 else "f8"


def protect(value, i):
    value.flags.writeable = i % 2 == 0


def append_inside(value, i):
    value[3].append(i)


def exchange_equal(value, i):
    value[1] = 2.0 if i % 2 else 2


def add_key(value, i):
    value[i] = i


def fill_inside(value, i):
    value["b"][1] = i


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("array", fill),
        ("columns", reshape),
        ("array", change_type),
        ("array", protect),
        ("list", append_inside),
        ("list", exchange_equal),
        ("dict", add_key),
        ("dict", fill_inside),
    ],
)
@pytest.mark.parametrize("quiet_until", [0, 1, 5, 100])
# From numpy 2.5 on it is discouraged, and still done.
@pytest.mark.filterwarnings(
    "ignore:Setting the (shape|dtype) on a NumPy:DeprecationWarning"
)
def test_each_task_sees_the_value_as_it_was_when_the_task_was_made(
    kind, change, quiet_until
):
    value = VALUES[kind]()
    if change is reshape:
        value = np.arange(12)
    expected = []

    def tasks():
        for i in range(120):
            if i >= quiet_until:
                change(value, i)
            expected.append((repr(value), *look(value, i)))
            yield delayed(shown_and_looked)(value, i)

    assert Parallel(2)(tasks()) == expected


def shown_and_looked(value, i):
    return (repr(value), *look(value, i))


def same(a, b, i):
    return a is b, i


def test_two_arguments_that_are_one_object_stay_one_object():
    value = [1, 2]
    found = Parallel(2)(delayed(same)(value, value, i) for i in range(100))
    assert found == [(True, i) for i in range(100)]


@pytest.fixture
def captured(run_captured):
    """A function that runs tasks, and tells how often something was pickled for it."""

    def run(tasks):
        capture, results = run_captured(tasks)
        return capture.n_pickles, results

    return run


def first(value, i):
    return value[0]


@pytest.mark.parametrize("kind", ["array", "list"])
def test_it_is_pickled_a_fixed_number_of_times_a_call(kind, captured):
    value = VALUES[kind]()
    few, _ = captured([delayed(first)(value, i) for i in range(10)])
    many, results = captured([delayed(first)(value, i) for i in range(2000)])
    assert few == many
    assert results == [value[0]] * 2000


def test_a_buffer_that_is_filled_for_each_task_is_pickled_once_a_task(captured):
    value = np.zeros(3)

    def tasks():
        for i in range(500):
            value[0] = i
            yield delayed(first)(value, i)

    pickles, results = captured(tasks())
    assert results == list(range(500))
    assert pickles <= 500 + 4


def test_what_is_too_long_to_be_copied_is_tried_once(captured):
    value = [f"{i:060d}" for i in range(200)]
    pickles, results = captured([delayed(first)(value, i) for i in range(500)])
    assert results == [value[0]] * 500
    assert pickles <= 500 + 4


def die(value, i):
    if i == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return float(value.sum())


def test_an_error_names_the_value_and_the_others_are_run_again():
    found = Parallel(2, on_error="return", batch_size=5)(
        delayed(die)(np_ones, i) for i in range(20)
    )
    assert found[:7] + found[8:] == [3.0] * 19
    assert "array" in str(found[7].exception)
    assert "Copied" not in str(found[7].exception)


np_ones = np.ones(3)


@pytest.mark.parametrize("kind", VALUES)
def test_a_snapshot_of_a_value_is_the_same_until_it_changes(kind):
    value = VALUES[kind]()
    if kind in ("dates", "every second"):
        with pytest.raises(Opaque):
            Snapshot(value)
        return
    assert Snapshot(value).same()


@pytest.mark.parametrize(
    "value", [np.array([1, "a"], object), np.zeros(5000)], ids=["objects", "large"]
)
def test_there_is_no_snapshot_of_such_an_array(value):
    with pytest.raises(Opaque):
        Snapshot(value)
