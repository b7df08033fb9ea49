"""What is remembered of the functions of earlier calls."""

from __future__ import annotations

import gc

from fastjob import Parallel, delayed
from fastjob._core.history import recalled, remember


def function():
    def made_anew():
        pass

    return made_anew


def negative(x):
    return -x


def absolute(x):
    return abs(x)


def test_nothing_is_known_of_a_function_that_was_never_called():
    assert recalled(function()) == 0


def test_a_rise_is_remembered_at_once_and_a_fall_by_half():
    f = function()
    for took, known in ((10.0, 10.0), (80.0, 80.0), (10.0, 40.0), (10.0, 20.0)):
        remember(f, took)
        assert recalled(f) == known


def test_a_function_is_not_kept_alive_and_not_taken_for_another():
    seen = set()
    for _ in range(100):
        f = function()
        assert recalled(f) == 0
        seen.add(id(f))
        remember(f, 5.0)
        del f
        gc.collect()
    assert len(seen) < 100  # some had the address of an earlier one


def test_what_cannot_be_referred_to_weakly_is_not_remembered():
    assert remember(3, 5.0) == 0
    assert recalled(3) == 0


def test_what_is_remembered_has_a_bound():
    functions = [function() for _ in range(1000)]
    for f in functions:
        remember(f, 5.0)
    assert recalled(functions[-1]) == 5.0
    assert sum(recalled(f) > 0 for f in functions) <= 256


def test_a_call_of_one_function_leaves_behind_how_long_its_tasks_took():
    Parallel(2, "processes")(delayed(negative)(i) for i in range(100))
    assert recalled(negative) > 0


def test_a_call_of_several_functions_leaves_nothing_behind():
    Parallel(2, "processes")(delayed(f)(-1) for f in [absolute, negative] * 4)
    assert recalled(absolute) == 0
