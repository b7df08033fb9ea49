"""A descriptor in reserve, for what must be done when there is no other.

A task that has opened as many files as it may fails, and its files stay open as long as
its exception refers to them. To tell the caller takes modules that are imported for the
first failure, and a descriptor to read them: one at a time, so that one is enough.
"""

from __future__ import annotations

import os


class Spare:
    """Holds a descriptor; within a ``with`` block another can be had in its place."""

    def __init__(self) -> None:
        self._fd = _opened()

    def __enter__(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __exit__(self, *exc_info: object) -> None:
        self._fd = _opened()


def _opened() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return -1  # somebody was faster
