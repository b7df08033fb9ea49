"""A large object in a small container: pickled once a call, and never torn apart."""

from __future__ import annotations

import os
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastjob import Parallel, delayed, share

LETTERS = "x" * 100


class Counted:
    """A value that counts in this process how often it is pickled."""

    n_pickles = 0

    def __reduce__(self):
        Counted.n_pickles += 1
        return Counted, ()


def large(n=2000):
    return {i: f"{i:08d}{LETTERS}" for i in range(n)}


def found_in(where, i):
    table = where["table"] if type(where) is dict else where[0]
    return table[i]


CONTAINERS = {
    "tuple": lambda table, i: (table, i),
    "list": lambda table, i: [table, i],
    "dict": lambda table, i: {"table": table, "i": i},
    "with a list": lambda table, i: (table, [i]),
}


@pytest.fixture
def pickled_bytes(run_captured):
    """A function that runs tasks, and tells how many bytes were pickled for them."""

    def run(tasks):
        capture, results = run_captured(tasks)
        return capture.bytes_pickled, results

    return run


@pytest.mark.parametrize("kind", ["tuple", "list", "dict"])
@pytest.mark.parametrize("anew", [True, False], ids=["new each time", "the same"])
@pytest.mark.parametrize("named", [False, True], ids=["by place", "by name"])
def test_it_is_pickled_once_a_call(kind, anew, named):
    table = large() | {"counted": Counted()}
    make = CONTAINERS[kind]
    one = make(table, 0)
    before = Counted.n_pickles
    tasks = []
    for i in range(200):
        where = make(table, i) if anew else one
        tasks.append(
            delayed(found_in)(i=i, where=where)
            if named
            else delayed(found_in)(where, i)
        )
    assert Parallel(2)(tasks) == [table[i] for i in range(200)]
    assert Counted.n_pickles == before + 1


@pytest.mark.parametrize("kind", CONTAINERS)
def test_what_each_task_adds_to_the_pickles_is_small(kind, pickled_bytes):
    table = large()
    size = len(pickle.dumps(table, 5))
    make = CONTAINERS[kind]
    spent, results = pickled_bytes(
        [delayed(found_in)(make(table, i), i) for i in range(200)]
    )
    assert results == [table[i] for i in range(200)]
    # Beside a list that may change it is known to be worth sharing once it is pickled.
    assert spent < (2 if kind == "with a list" else 1) * size + 200 * 200


@pytest.mark.parametrize("kind", CONTAINERS)
def test_each_task_sees_the_object_as_it_was_when_the_task_was_made(kind):
    table = large(400)
    make = CONTAINERS[kind]

    def tasks():
        for i in range(30):
            if i % 3 == 0:
                table[i] = f"changed {i}"
            yield delayed(found_in)(make(table, i), i)

    expected = [
        f"changed {i}" if i % 3 == 0 else f"{i:08d}{LETTERS}" for i in range(30)
    ]
    assert Parallel(2, batch_size=4)(tasks()) == expected


@pytest.mark.parametrize("kind", ["tuple", "list", "dict"])
def test_what_the_user_has_shared_is_found_there_too(kind, pickled_bytes):
    table = large()
    make = CONTAINERS[kind]
    with share(table):
        spent, results = pickled_bytes(
            [delayed(found_in)(make(table, i), i) for i in range(50)]
        )
    assert results == [table[i] for i in range(50)]
    assert spent < 50 * 200


def test_the_callers_containers_stay_as_they_are():
    table = large()
    inside, named = [table, 1], {"table": table}
    tasks = [delayed(len)(inside) for _ in range(5)]
    tasks += [delayed(len)(named) for _ in range(5)]
    assert Parallel(2)(tasks) == [2] * 5 + [1] * 5
    assert inside[0] is table and inside[1:] == [1]
    assert named == {"table": table} and named["table"] is table


def shape(*args, **kwargs):
    """What can be told of objects by comparing: contents, and which are one object."""
    numbers = {}

    def of(value):
        if not isinstance(value, (list, dict, tuple)):
            return value
        if not isinstance(value, tuple):
            if id(value) in numbers:
                return f"<{numbers[id(value)]}>"
            numbers[id(value)] = len(numbers)
        if isinstance(value, dict):
            return "{", *((key, of(member)) for key, member in value.items())
        return (
            type(value).__name__,
            len(value),
            *map(of, value[:3]),
            *map(of, value[-1:]),
        )

    return repr([of(value) for value in (*args, *kwargs.values())])


def objects():
    """Small and large objects that refer to each other, and containers of them."""
    small = [["small"], {"key": 1}]
    tables = [large(500), [f"{i}{LETTERS}" for i in range(500)]]
    tables += [{"inside": small[0], **large(500)}, [small[0]] * 500, [small[1]] * 500]
    tables += [[tables[0], *range(9000)]]
    basic = [*small, *tables]
    holders = [[tables[0], 1], {"table": tables[1]}, [tables[3], small[0]]]
    tables.append([holders[0], *tables[1]])
    holders.append([tables[-1], holders[0]])
    holders.append([tables[1]])
    holders[-1].append(holders[-1])
    return [*basic, tables[-1], *holders, "text", 7]


MANY = len(objects())
one_argument = st.one_of(
    st.integers(0, MANY - 1),
    st.tuples(st.sampled_from("tld"), st.lists(st.integers(0, MANY - 1), max_size=3)),
)


def build(plan, pool):
    if isinstance(plan, int):
        return pool[plan]
    kind, members = plan
    values = [pool[i] for i in members]
    if kind == "t":
        return tuple(values)
    return values if kind == "l" else dict(enumerate(values))


@given(
    st.lists(st.lists(one_argument, min_size=1, max_size=3), min_size=1, max_size=5),
    st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_tasks_arrive_as_one_pickle_would_bring_them(plans, named):
    pool = objects()
    tasks = []
    expected = []
    for plan in plans:
        args = [build(part, pool) for part in plan]
        args, kwargs = (
            (args[:1], {"named": args[1]})
            if len(args) == 2 and named
            else (
                args,
                {},
            )
        )
        copy = pickle.loads(pickle.dumps((args, kwargs)))
        expected += [shape(*copy[0], **copy[1])] * 2
        tasks += [delayed(shape)(*args, **kwargs)] * 2
    assert Parallel(2, "processes")(tasks) == expected


def same_inside(a, b):
    a, b = (x[0] if type(x) is tuple else x for x in (a, b))
    return a[0] is b[0]


@pytest.mark.parametrize("first_in_tuple", [False, True])
@pytest.mark.parametrize("second_in_tuple", [False, True])
def test_an_object_that_two_shared_ones_have_stays_one(first_in_tuple, second_in_tuple):
    inner = ["inner"]
    first, second = ([inner, *large(500).values()] for _ in range(2))
    both = (
        (first,) if first_in_tuple else first,
        (second,) if second_in_tuple else second,
    )
    tasks = [delayed(len)(first), delayed(len)(second)]
    tasks += [delayed(same_inside)(*both) for _ in range(5)]
    assert Parallel(2, batch_size=1)(tasks) == [501] * 2 + [True] * 5


def apply(parts, i):
    return parts["f"](i)


def test_a_task_sees_what_a_closure_in_a_large_object_refers_to():
    factor = 0
    table = large(400) | {"f": lambda i: i * factor}

    def tasks():
        nonlocal factor
        for i in range(10):
            factor = i
            yield delayed(apply)(table, 7)

    assert Parallel(2)(tasks()) == [7 * i for i in range(10)]


GIVEN_UP = """
import sys
import weakref
import numpy as np
from fastjob import Parallel, delayed

class Rows:
    def __init__(self, i):
        self.rows = [f"{i:0250000d}" for j in range(40)]

class Matrix:
    def __init__(self, i):
        self.rows = [f"{i:02000d}" for j in range(40)]
        self.matrix = np.full(1_250_000, i)

class Always(Rows):
    n_pickles = 0

    def __getstate__(self):
        Always.n_pickles += 1
        return self.__dict__

def first(always, table):
    return int(table.rows[0][-9:])

alive = weakref.WeakSet()
most = early = 0

def tasks(make, times):
    global most, early
    always = Always(0)
    for i in range(24):
        table = make(i)
        alive.add(table)
        most = max(most, len(alive))
        for _ in range(times):
            yield delayed(first)(always, table)
        if i == 1:
            early = Always.n_pickles

if __name__ == "__main__":
    times = int(sys.argv[2])
    found = Parallel(2, "processes")(tasks(globals()[sys.argv[1]], times))
    assert found == [i for i in range(24) for _ in range(times)]
    assert most < 16, most
    assert 0 < early == Always.n_pickles
    print("done")
"""


@pytest.mark.parametrize(("kind", "times"), [("Rows", 2), ("Matrix", 1)])
def test_large_objects_that_no_task_has_any_more_are_given_up(run_python, kind, times):
    small = {**os.environ, "FASTJOB_WARM_BYTES": "0"}
    done = run_python(GIVEN_UP, kind, str(times), env=small)
    assert done.stdout == "done\n", done.stderr


class Model:
    """An object that holds an array, as most of those that compute do."""

    def __init__(self, array, n_rows=0):
        self.array = array
        self.rows = list(range(n_rows))
        self.table = {}

    def first_after(self, array):
        return first_after(self, array)


def first_after(model, array):
    """What the model has once the array is written to."""
    array[0] = 9
    return float(model.array[0])


def named(model, *, array):
    return first_after(model, array)


def first_of(array, rows):
    array[0] = 9
    return float(rows[0][0])


def is_that(model, frame):
    return model.array is frame


@pytest.mark.parametrize("n_rows", [0, 100_000], ids=["small", "large"])
@pytest.mark.parametrize("size", [10, 20_000])
def test_an_array_is_one_with_that_inside_an_object(size, n_rows):
    np = pytest.importorskip("numpy")
    one = Model(np.zeros(size), n_rows)
    models = [one, one, Model(np.zeros(size), n_rows)]
    tasks = [delayed(m.first_after)(m.array) for m in models]
    tasks += [delayed(first_after)(m, m.array) for m in models]
    tasks += [delayed(named)(m, array=m.array) for m in models]
    tasks += [delayed(first_of)(m.array, [m.array, *m.rows]) for m in models]
    with Parallel(2, "processes") as parallel:
        assert parallel(tasks) == [9.0] * 12
        assert parallel(reversed(tasks)) == [9.0] * 12


def test_an_array_is_one_with_that_inside_what_the_user_has_shared():
    np = pytest.importorskip("numpy")
    model = Model(np.zeros(10))
    with share(model):
        tasks = [delayed(first_after)(model, model.array) for _ in range(3)]
        assert Parallel(2, "processes")(tasks) == [9.0] * 3


def test_an_array_that_replaced_an_equal_one_in_a_shared_object_is_found():
    np = pytest.importorskip("numpy")
    model = Model(np.zeros(5000), 100_000)

    def tasks():
        for _ in range(4):
            yield delayed(len)(model.rows)
            yield delayed(first_after)(model, np.zeros(1))
            model.array = np.zeros(5000)
            yield delayed(first_after)(model, model.array)

    assert Parallel(2, "processes")(tasks()) == [100_000, 0.0, 9.0] * 4


def pair_length(array, counted):
    return len(array)


@pytest.mark.parametrize("size", [10, 20_000, 200_000])
def test_an_array_beside_an_object_costs_no_more_pickling(size, run_captured):
    np = pytest.importorskip("numpy")
    array, counted = np.ones(size), Counted()
    before = Counted.n_pickles
    capture, results = run_captured(
        [delayed(pair_length)(array, counted) for _ in range(50)]
    )
    assert results == [size] * 50
    assert Counted.n_pickles == before + 50
    assert capture.n_pickles == 101  # and the function


def test_an_array_beside_a_large_object_costs_one_pickle_of_it(run_captured):
    np = pytest.importorskip("numpy")
    array, table = np.ones(10), large() | {"counted": Counted()}
    before = Counted.n_pickles
    _, results = run_captured([delayed(pair_length)(array, table) for _ in range(50)])
    assert results == [10] * 50
    assert Counted.n_pickles == before + 1


def test_a_frame_is_one_with_that_inside_an_object():
    pandas = pytest.importorskip("pandas")
    models = [Model(pandas.DataFrame({"a": [1]}), n) for n in (0, 0, 100_000)]
    tasks = [delayed(is_that)(m, m.array) for m in models]
    assert Parallel(2, "processes")(tasks) == [True] * 3
