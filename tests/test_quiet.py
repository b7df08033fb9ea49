"""Where no code of the user can have run between two tasks; never said wrongly."""

from __future__ import annotations

import functools
import io
import pickle
import sys
import threading
from types import ModuleType

import pytest
from gates import Gate

import fastjob
from fastjob import Parallel, delayed
from fastjob._core.quiet import Overhearing, is_quiet_input, is_quiet_value
from fastjob.backends import process_engine

np = pytest.importorskip("numpy")

ITEMS = [1, 2, 3]


class Loud:
    """Of the user's, whatever is done with it."""

    def __repr__(self):
        return "Loud()"  # part of the name of a test: the same in each process

    def __iter__(self):
        return iter([1, 2])

    def __call__(self, *args, **kwargs):
        return delayed(len)

    @property
    def delayed(self):
        return delayed


loud = Loud()


class Property(ModuleType):
    delayed = Loud.delayed


class Override(ModuleType):
    def __getattribute__(self, name):
        return super().__getattribute__(name)


class Named(ModuleType):
    shown = property(str)


class Meta(type):
    pass


def module(kind):
    made = kind("made")
    vars(made)["delayed"] = delayed
    return made


with_property, with_override = module(Property), module(Override)
with_metaclass = module(Meta("OfAnother", (ModuleType,), {}))
quiet_module = module(Named)


def quiet_inputs():
    held = object()
    d = delayed
    yield iter(ITEMS)
    yield iter((1, 2))
    yield iter(range(3))
    yield iter({"a": 1}.items())
    yield iter(enumerate(ITEMS))
    yield zip(ITEMS, (4, 5, 6), strict=True)
    yield zip(ITEMS, enumerate(ITEMS), strict=False)
    yield (delayed(len)(x) for x in ITEMS)
    yield (fastjob.delayed(len)(x) for x in ITEMS)
    yield (fastjob.parallel.delayed(len)(x) for x in ITEMS)
    yield (quiet_module.delayed(len)(x) for x in ITEMS)
    yield (d(len)(x) for x in range(3))
    yield (d(print)(x, held, 1, k=2, z=held) for x in ITEMS)
    yield (d(print)(held, i, x) for i, x in enumerate(ITEMS))
    yield (d(print)(held, [i, x], (a, b)) for i, x, a, b in zip(*[ITEMS] * 4))  # noqa: B905
    yield (d(print)({}, k=v) for k, v in {"a": 1}.items())
    yield (delayed(held)(x) for x in {1, 2})
    yield ((len, (x,), {}) for x in ITEMS)
    yield (x for x in ITEMS)
    yield (delayed(delayed(x))(x) for x in ITEMS)
    yield (delayed(np.sum)(x, np.linalg.norm) for x in ITEMS)


class Given:
    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration


def loud_inputs():
    held = loud
    pair = [(1, 2)]
    from_elsewhere = functools.partial(delayed)
    yield map(len, ITEMS)
    yield filter(None, ITEMS)
    yield iter(Given())
    yield zip(ITEMS, map(len, pair), strict=False)
    yield enumerate(map(len, pair))
    yield iter(np.arange(3))
    yield (delayed(len)(x) for x in map(len, pair))
    yield (delayed(len)(x) for x in (delayed(len)(x) for x in map(len, pair)))
    yield (delayed(len)(x.real) for x in ITEMS)
    yield (delayed(len)(x + 1) for x in ITEMS)
    yield (delayed(len)(x[0]) for x in pair)
    yield (delayed(len)(len(x)) for x in pair)
    yield (delayed(len)(x) for x in ITEMS if x)
    yield (delayed(len)(x or 1) for x in ITEMS)
    yield (delayed(len)(a, b) for a, b in pair)
    yield (delayed(len)(a, b) for i, (a, b) in enumerate(pair))
    yield (delayed(len)(x, y) for x in ITEMS for y in held)
    yield (delayed(len)([y for y in x]) for x in pair)  # noqa: C416
    yield (delayed(len)(*x) for x in pair)
    yield (delayed(len)(**x) for x in [{}])
    yield (delayed(len)({x: 1}) for x in pair)
    yield (delayed(len)({x}) for x in pair)
    yield (delayed(len)(f"{x}") for x in pair)
    yield (delayed(len)(lambda: x) for x in ITEMS)  # noqa: B023
    yield (delayed(len)(y := x) for x in ITEMS)  # noqa: F841
    yield (held(len)(x) for x in ITEMS)
    yield (held.delayed(len)(x) for x in ITEMS)
    yield (loud.delayed(len)(x) for x in ITEMS)
    yield (with_property.delayed(len)(x) for x in ITEMS)
    yield (with_override.delayed(len)(x) for x in ITEMS)
    yield (with_metaclass.delayed(len)(x) for x in ITEMS)
    yield (delayed(np.no_such_thing)(x) for x in ITEMS)
    yield (delayed(loud.delayed)(x) for x in ITEMS)
    yield (delayed(len)(np.sum(x)) for x in ITEMS)
    yield (delayed(len)(np.sum.__name__) for x in ITEMS)
    yield (fastjob.no_such_thing(len)(x) for x in ITEMS)
    yield (no_such_name(len)(x) for x in ITEMS)  # noqa: F821
    yield (from_elsewhere(len)(x) for x in ITEMS)
    yield (d(len)(x) for d, x in zip([delayed, loud], ITEMS))  # noqa: B905
    yield (delayed(x).__wrapped__ for x in ITEMS)
    yield (delayed(x, x)(x) for x in ITEMS)
    yield (x() for x in [delayed])


def written_out():
    for x in ITEMS:
        yield delayed(len)(x)


def suspended(make):
    inputs = make()
    return [pytest.param(i, id=str(n)) for n, i in enumerate(inputs)]


@pytest.mark.parametrize("tasks", suspended(quiet_inputs))
def test_an_input_that_only_makes_tasks_is_quiet(tasks):
    assert is_quiet_input(tasks)
    # ... and also when it has begun, and when it has ended.
    next(tasks)
    assert is_quiet_input(tasks)
    list(tasks)
    assert is_quiet_input(tasks)


@pytest.mark.parametrize("tasks", suspended(loud_inputs))
def test_an_input_that_may_run_anything_is_not_quiet(tasks):
    assert not is_quiet_input(tasks)


def test_a_generator_function_is_not_quiet():
    assert not is_quiet_input(written_out())


def test_a_name_that_no_longer_means_delayed_is_seen():
    d = delayed
    assert is_quiet_input(d(len)(x) for x in ITEMS)
    d = loud
    assert not is_quiet_input(d(len)(x) for x in ITEMS)


def test_looking_at_an_input_keeps_none_of_its_items():
    array = np.ones(3)
    tasks = (delayed(len)(x) for x in [array])
    next(tasks)
    before = sys.getrefcount(array)
    assert is_quiet_input(tasks)
    assert sys.getrefcount(array) == before


@pytest.mark.parametrize("hook", ["settrace", "setprofile"])
def test_with_a_hook_nothing_is_quiet(hook):
    found = []

    def watched():
        getattr(sys, hook)(lambda *_: None)
        try:
            found.append(is_quiet_input(iter(ITEMS)))
        finally:
            getattr(sys, hook)(None)

    thread = threading.Thread(target=watched)
    thread.start()
    thread.join()
    assert found == [False]


@pytest.mark.parametrize(
    ("value", "quiet"),
    [
        (1, True),
        ("text", True),
        (None, True),
        ([1, (2.0, {"a": b"x"}), {3}], True),
        (np.ones(3), True),
        (np.float32(1), True),
        (np.array([loud, 1]), False),
        (np.zeros(2, [("a", object)]), False),
        (np.ma.masked_array([1, 2]), False),
        (loud, False),
        ([1, [loud]], False),
        ({1: loud}, False),
        ({loud: 1}, False),
        (len, False),
        ([[[[[[1]]]]]], False),
        (list(range(1000)), False),
    ],
    ids=repr,
)
def test_what_can_be_pickled_without_code_of_the_user(value, quiet):
    assert is_quiet_value(value) is quiet


def test_frames_of_numbers_are_quiet():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [1, 2]})
    assert is_quiet_value(frame)
    assert is_quiet_value(frame["a"])
    assert is_quiet_value(frame.set_index("b"))
    assert not is_quiet_value(pd.DataFrame({"a": [loud]}))
    assert not is_quiet_value(pd.Series([1.0], index=[loud]))
    assert not is_quiet_value(frame.rename(columns={"a": loud}))
    assert not is_quiet_value(pd.Series([1.0], name=(loud,)))
    frame.attrs["x"] = loud
    assert not is_quiet_value(frame)


class Rebuilt:
    def __repr__(self):
        return "Rebuilt()"

    def __reduce__(self):
        return rebuild, ()


def rebuild():
    return 1


@pytest.mark.parametrize(
    ("value", "heard"),
    [
        ([1, "a", {2.0: None}], False),
        ({1, 2}, False),
        (np.ones(3), False),
        (np.float64(1), False),
        (bytearray(b"x"), False),
        (Rebuilt(), True),
        (getattr, True),
        (loud, True),
    ],
    ids=repr,
)
def test_what_can_be_unpickled_without_code_of_the_user(value, heard):
    told = []
    data = pickle.dumps(value, 5)
    Overhearing(lambda: told.append(1), io.BytesIO(data)).load()
    assert bool(told) is heard


# Through a whole call.


def first(array, *others):
    return float(array[0])


def made_here(array, *others):
    return Rebuilt()


def warn(array):
    import warnings

    warnings.warn("from a task", stacklevel=1)
    return float(array[0])


class Refilling:
    """Changes an array when it is pickled."""

    def __init__(self, array):
        self.array = array

    def __getstate__(self):
        self.array += 1
        return {}


@pytest.fixture
def comparisons(monkeypatch):
    """What the sharers of the calls count, summed."""
    made = []

    class Counting:
        def __call__(self, *args):
            made.append(real(*args))
            return made[-1]

    real = process_engine.Sharer
    monkeypatch.setattr(process_engine, "Sharer", Counting())
    return lambda: sum(sharer.comparisons for sharer in made)


def test_an_array_of_a_quiet_call_is_never_compared(comparisons):
    array = np.ones(1 << 18)
    tasks = [array] * 20
    assert Parallel(2)(delayed(first)(x) for x in tasks) == [1.0] * 20
    assert Parallel(2)([delayed(first)(array, i) for i in range(20)]) == [1.0] * 20
    assert Parallel(2).map(first, [array] * 20) == [1.0] * 20
    assert comparisons() == 0


def test_a_quiet_call_with_results_of_numpy_is_not_compared(comparisons):
    array = np.ones(1 << 18)
    sums = Parallel(2)(delayed(np.sum)(x) for x in [array] * 20)
    assert sums == [1 << 18] * 20
    assert comparisons() == 0


def test_a_generator_that_refills_an_array_is_compared(comparisons):
    array = np.zeros(1 << 18)

    def refill(i):
        array[:] = i
        return array

    tasks = (delayed(first)(refill(i)) for i in range(20))
    assert Parallel(2)(tasks) == list(range(20))
    assert comparisons() == 19


def test_an_array_that_is_refilled_while_arguments_are_pickled_is_seen():
    array = np.zeros(1 << 18)
    tasks = [delayed(first)(array, Refilling(array)) for _ in range(12)]
    seen = Parallel(2, batch_size=1)(tasks)
    # Each task is pickled with what the one before it has left.
    assert seen == sorted(seen)
    assert seen[11] >= 11


def test_an_array_that_a_callback_refills_is_seen():
    array = np.zeros(1 << 18)

    class Refiller(Parallel):
        def print_progress(self):
            array[:] = self.n_completed_tasks

    seen = Refiller(2, batch_size=1, pre_dispatch=1)([delayed(first)(array)] * 6)
    assert seen == [0, 1, 2, 3, 4, 5]


def test_an_array_that_unpickling_a_result_refills_is_seen(comparisons):
    array = np.zeros(1 << 18)
    Parallel(2, batch_size=1, pre_dispatch=1)([delayed(made_here)(array)] * 6)
    assert comparisons() == 5


def test_an_array_that_showing_a_warning_refills_is_seen(monkeypatch):
    import warnings

    array = np.zeros(1 << 18)

    def show(*args, **kwargs):
        array[:] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show)
        seen = Parallel(2, batch_size=1, pre_dispatch=1)([delayed(warn)(array)] * 4)
    assert seen == [0, 1, 2, 3]


def first_behind(array, gate):
    value = first(array)
    gate.wait()
    return value


def test_an_array_that_the_reader_of_a_stream_refills_is_seen():
    array = np.zeros(1 << 18)
    with Gate() as gate:
        tasks = [delayed(first)(array)] * 8
        tasks[1] = delayed(first_behind)(array, gate)
        stream = Parallel(2, batch_size=1, pre_dispatch=1, return_as="generator")(tasks)
        seen = []
        for value in stream:
            seen.append(value)
            array[:] = len(seen)
            gate.open()
    assert seen == sorted(seen)
    # Those behind the second task are taken from the list when it has ended.
    assert min(seen[2:]) > 0
