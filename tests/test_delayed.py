"""Tasks as users write them."""

from __future__ import annotations

import functools
import gc
import inspect
import pickle
import weakref

import pytest

from fastjob._core.call import Call
from fastjob._core.delayed import delayed
from fastjob._core.sequential import SequentialEngine


def power(base: int, exponent: int = 2) -> int:
    """Raise to a power."""
    return base**exponent


power.unit = "none"


class Recorder:
    def __call__(self, /, *args, **kwargs):
        return args, kwargs


def run_one(task):
    return SequentialEngine(Call(1)).run([task])[0]


def test_a_call_is_recorded_and_not_made():
    def never(*args):
        raise AssertionError("called")

    assert delayed(never)(1, 2) == (never, (1, 2), {})


def test_arguments_are_kept_by_kind():
    assert delayed(power)(3, exponent=4) == (power, (3,), {"exponent": 4})


def test_each_task_has_a_dict_of_its_own():
    make = delayed(power)
    first, second = make(1), make(1)
    first[2]["exponent"] = 3
    assert second[2] == {}


def test_the_callers_dict_is_not_shared():
    keywords = {"exponent": 3}
    task = delayed(power)(2, **keywords)
    keywords["exponent"] = 0
    assert task[2] == {"exponent": 3}


def test_no_name_is_taken_from_the_keywords():
    task = delayed(Recorder())(function=1, self=2, args=3, kwargs=4, cls=5)
    assert run_one(task) == (
        (),
        {"function": 1, "self": 2, "args": 3, "kwargs": 4, "cls": 5},
    )


def test_the_function_can_be_given_by_keyword():
    assert delayed(function=power)(2) == (power, (2,), {})


@pytest.mark.parametrize(
    "name", ["__name__", "__qualname__", "__doc__", "__module__", "__annotations__"]
)
def test_it_looks_like_the_function(name):
    assert getattr(delayed(power), name) == getattr(power, name)


def test_signature_wrapped_function_and_attributes_are_those_of_the_function():
    wrapper = delayed(power)
    assert inspect.signature(wrapper) == inspect.signature(power)
    assert wrapper.__wrapped__ is power
    assert inspect.unwrap(wrapper) is power
    assert wrapper.unit == "none"
    assert functools.wraps(wrapper)(lambda: 0).__name__ == "power"
    assert repr(wrapper) == f"delayed({power!r})"


class Counter:
    def __init__(self, start):
        self.start = start

    @delayed
    def plus(self, n, times=1):
        return self.start + n * times


def test_a_method_that_it_decorates_is_bound():
    assert run_one(Counter(3).plus(4, times=2)) == 11
    assert run_one(Counter.plus(Counter(3), 4)) == 7


def test_callables_without_a_name_are_fine():
    wrapper = delayed(functools.partial(power, 2))
    assert run_one(wrapper(3)) == 8
    with pytest.raises(AttributeError, match="__name__"):
        wrapper.__name__  # noqa: B018


def test_it_survives_pickling():
    assert pickle.loads(pickle.dumps(delayed(power)))(3) == (power, (3,), {})


def test_it_can_be_collected():
    def function():
        pass

    function.itself = delayed(function)
    gone = weakref.ref(function.itself)
    del function
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    "task",
    [
        (power, (3,), {}),
        [power, (3,), {}],
        (power, [3], {}),
        (power, (3,), {"exponent": 2}),
        (power, iter([3]), functools.reduce(lambda a, b: a, [{}])),
    ],
)
def test_tasks_written_by_hand_are_taken(task):
    assert run_one(task) == 9


@pytest.mark.parametrize(
    "item",
    [3, None, "abc", (power,), (power, (3,)), (power, (3,), {}, 1), power,
     (power, 3, {}), (power, (3,), 4), delayed(power)],
)  # fmt: skip
def test_what_is_no_task_is_refused_with_its_place(item):
    with pytest.raises(TypeError, match=r"Task 1 .*\(function, args, kwargs\)") as info:
        SequentialEngine(Call(1)).run([delayed(power)(2), item])
    assert type(item).__name__ in str(info.value)
    assert info.value.__cause__ is None
