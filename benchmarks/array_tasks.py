"""Task functions of the array rows, in a module that imports numpy.

The functions touch as little of their arrays as they can: the rows measure how
data travels, and a task that reads all of it would hide that.
"""

import time

import numpy as np


def ends(array):
    """Return the first and the last item of `array`."""
    return float(array[0]), float(array[-1])


def filled(job):
    """Return a fresh float64 array; `job` is (length, value)."""
    length, value = job
    return np.full(length, value, dtype=np.float64)


def same(array):
    """Return the argument itself."""
    return array


def corner(frame):
    """Return the shape and the last cell of a pandas frame."""
    return frame.shape, float(frame.iat[-1, -1])


def root(number):
    """A small numpy calculation on one number."""
    return float(np.sqrt(np.float64(number)))


def root_after(number):
    """The same, after a short sleep, so that every worker of a pool gets one."""
    time.sleep(0.05)
    return root(number)


def product(job):
    """Multiply two float64 matrices; return the trace. `job` is (seed, rows)."""
    seed, size = job
    left = np.full((size, size), 1.0 + seed, dtype=np.float64)
    right = np.eye(size, dtype=np.float64)
    return float(np.trace(left @ right))
