"""What tasks print, in whole lines.

``print`` writes its parts one by one, and many workers, each perhaps with threads,
share one terminal or pipe.  So a worker's standard output keeps what a thread has
written until it comes to the end of a line, and writes whole lines at once.  What has
no end of line appears at a ``flush``, which is how progress bars write, and at the end
of a batch.

The system does not tear short writes into a pipe apart, but long ones.  Therefore
workers write one after the other, under a lock on one byte of a file that all of them
have open anyway, the status page.  The system lifts that lock when a worker dies.
(Windows does not tear them.)
"""

from __future__ import annotations

import io
import os
import sys
from _thread import RLock, get_ident

from fastjob._core.forks import register_at_fork

#: Characters that a thread may write without an end of line before they appear.
MOST_HELD = 1 << 20


class Lines(io.TextIOWrapper):
    """A text stream that writes whole lines.

    Parameters
    ----------
    stream : io.TextIOWrapper
        The stream to replace. It stays usable, for those who keep it.
    common : int
        Descriptor of a file that everybody locks who writes to the same place; -1 if
        there is none.
    """

    def __init__(self, stream: io.TextIOWrapper, common: int) -> None:
        buffer = stream.buffer
        if isinstance(buffer, io.RawIOBase):  # of ``python -u``
            buffer = io.BufferedWriter(buffer)
        super().__init__(
            buffer, encoding=stream.encoding, errors=stream.errors, write_through=True
        )
        self.mode = "w"  # type: ignore[misc] # as of the stream that Python makes
        self._replaced = stream  # its end would close the file
        self._common = common
        self._held: dict[int, io.StringIO] = {}
        self._lock = RLock()
        register_at_fork(after_in_child=self._after_fork)

    def write(self, text: str, /) -> int:
        """Write up to the last end of line; hold back what follows it."""
        me = get_ident()
        with self._lock:
            mine = self._held.pop(me, None)
            if mine is None:
                mine = io.StringIO()
            mine.write(text)
            if "\n" in text:
                lines, end, rest = mine.getvalue().rpartition("\n")
                mine = io.StringIO()
                mine.write(rest)
                self._emit(lines + end)
            elif mine.tell() > MOST_HELD:
                self._emit(mine.getvalue())
                mine = io.StringIO()
            if mine.tell():
                self._held[me] = mine
        return len(text)

    def flush(self) -> None:
        """Write what this thread holds back."""
        with self._lock:
            mine = self._held.pop(get_ident(), None)
            if mine is not None:
                self._emit(mine.getvalue())

    def flush_all(self) -> None:
        """Write what any thread holds back."""
        with self._lock:
            while self._held:
                self._emit(self._held.popitem()[1].getvalue())

    def _emit(self, text: str) -> None:
        if sys.platform != "win32" and self._common >= 0:
            os.lockf(self._common, os.F_LOCK, 1)
        try:
            super().write(text)
            super().flush()
        finally:
            if sys.platform != "win32" and self._common >= 0:
                os.lockf(self._common, os.F_ULOCK, 1)

    def _after_fork(self) -> None:
        """In a child of a task: what is held back is the parent's to write."""
        self._lock = RLock()
        self._held = {}


def install(common: int) -> None:
    """Replace the standard streams of this worker process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            lines = Lines(stream, common)
            setattr(sys, name, lines)
            setattr(sys, f"__{name}__", lines)


def flush_all() -> None:
    """Write what tasks have printed without an end of line."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if isinstance(stream, Lines) and stream._held:
            try:
                stream.flush_all()
            except (OSError, ValueError):
                continue  # the other end is gone, or a task has closed it
