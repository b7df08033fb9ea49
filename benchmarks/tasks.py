"""Task functions of the benchmark rows; importable by every kind of worker.

Nothing heavier than ``time`` is imported here: the cold rows measure a worker that
needs this module and nothing else.  Functions on arrays are in `array_tasks`.
"""

import os
import time


def tiny(number):
    """Add one: a task that costs nothing beside its own dispatch."""
    return number + 1


def make_closure(offset):
    """Return a function that plain pickle cannot carry."""

    def closure(number):
        return number + offset

    return closure


def spin(seconds):
    """Keep a core busy for `seconds` by the clock, and return them.

    A busy wait, and not a calculation: its length does not depend on the speed of
    the core, so total work over workers is the ideal time on every machine.
    """
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return seconds


def nap(seconds):
    """Sleep, and return `seconds`."""
    time.sleep(seconds)
    return seconds


def spin_or_return(seconds):
    """Return at once for 0 seconds, else `spin`."""
    return spin(seconds) if seconds else 0.0


def lookup(job):
    """Look one key up in a large dictionary; `job` is (dictionary, key)."""
    table, key = job
    return table[key]


def worker_id(seconds):
    """Stay busy long enough for every worker to get a task; return the process id."""
    time.sleep(seconds)
    return os.getpid()
