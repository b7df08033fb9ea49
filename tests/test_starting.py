"""Threads that an exception set in their starter, from outside, does not reach."""

import ctypes
import sys
import threading
from threading import get_ident

import pytest

from fastjob._core.starting import start_bare_thread, start_thread


class Interrupt(BaseException):
    pass


def interrupt(ident):
    set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
    return set_exception(ctypes.c_ulong(ident), ctypes.py_object(Interrupt))


@pytest.fixture
def alone():
    """No other thread gets the interpreter unless this one gives it up."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


def test_an_interrupt_of_the_starter_neither_hits_the_thread_nor_gets_lost(
    monkeypatch, alone
):
    ran = threading.Event()
    names = {"_start_new_thread", "_start_joinable_thread"} & set(vars(threading))

    def interrupted(real):
        def start(*args, **kwargs):
            made = real(*args, **kwargs)
            # The new thread is there and has not begun.
            assert interrupt(get_ident()) == 1
            return made

        return start

    for name in names:
        monkeypatch.setattr(threading, name, interrupted(getattr(threading, name)))
    with pytest.raises(Interrupt):
        start_thread(ran.set, "one")
    assert ran.wait(60)


def test_a_thread_has_its_name_and_arguments_and_is_a_daemon():
    seen = []

    def note(*args):
        thread = threading.current_thread()
        seen.append((thread.name, thread.daemon, args))

    start_thread(note, "noting", (1, 2)).join(60)
    assert seen == [("noting", True, (1, 2))]


def test_a_bare_thread_runs_with_its_arguments():
    seen = []
    ran = threading.Event()
    start_bare_thread(lambda *args: (seen.append(args), ran.set()), 1, 2)
    assert ran.wait(60)
    assert seen == [(1, 2)]
