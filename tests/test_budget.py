"""The share of the cores that code has, wherever it runs."""

from __future__ import annotations

import sys
import threading
from contextvars import copy_context

import pytest

from fastjob import budget
from fastjob._core.cpu import cpu_count


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(budget, "cpu_count", lambda: 8)
    yield
    budget.set_core_budget(None)


def test_outside_of_a_worker_the_budget_is_the_machine(monkeypatch):
    monkeypatch.setattr(budget, "cpu_count", cpu_count)
    assert budget.core_budget() == cpu_count()
    assert not budget.has_share()


def test_a_worker_process_has_its_share_until_it_is_told_another():
    budget.set_core_budget(3)
    assert (budget.core_budget(), budget.has_share()) == (3, True)
    budget.set_core_budget(2)
    assert budget.core_budget() == 2
    budget.set_core_budget(None)
    assert (budget.core_budget(), budget.has_share()) == (8, False)


def test_a_share_is_never_more_than_the_machine():
    budget.set_core_budget(100)
    assert budget.core_budget() == 8


@pytest.mark.parametrize("n_jobs, share", [(1, 8), (2, 4), (3, 2), (8, 1), (50, 1)])
def test_workers_share_the_budget(n_jobs, share):
    assert budget.default_share(n_jobs) == share


def test_nested_workers_share_the_share():
    budget.set_core_budget(budget.default_share(2))
    assert budget.default_share(2) == 2


def test_threads_divide_the_budget_in_their_context_only():
    context = copy_context()
    context.run(budget.share_with, 2)
    assert context.run(budget.core_budget) == 4
    inner = context.run(copy_context)
    inner.run(budget.share_with, 3)
    assert inner.run(budget.core_budget) == 1
    assert budget.core_budget() == 8


def test_a_thread_that_a_task_starts_has_the_budget_of_the_process():
    budget.set_core_budget(6)
    context = copy_context()
    context.run(budget.share_with, 2)
    found = []
    thread = threading.Thread(target=lambda: found.append(budget.core_budget()))
    context.run(thread.start)
    thread.join()
    # A free-threaded interpreter hands the context on to the thread, from 3.14 on.
    inherits = getattr(sys.flags, "thread_inherit_context", False)
    assert found == [3 if inherits else 6]


@pytest.mark.parametrize("cores", [0, -1])
def test_a_wrong_number_is_named(cores):
    with pytest.raises(ValueError, match="cores must be at least 1"):
        budget.set_core_budget(cores)
    with pytest.raises(ValueError, match="n_threads must be at least 1"):
        budget.share_with(cores)
    with pytest.raises(ValueError, match="n_jobs must be at least 1"):
        budget.default_share(cores)
    assert budget.core_budget() == 8
