"""Has a module that this worker imported changed on disk since?

A caller who edits a module and reloads it expects the new code to run in its workers,
as it would in new ones. So a worker that has imported a file which has changed ends
before it runs a task of the next call; the caller replaces it.

Only files outside of the Python installation are watched: those a person edits. The
modification time at the moment of the import is not known when the file is first
looked at, at the start of the next call. A file that was written after the call in
which it was imported had begun therefore counts as changed: a worker too many may end,
but none runs old code. Times of files are rough:

1. a call begins, at 7.002 by the clock that is read here, and imports the file;
2. the file is written, at 7.003; the system stamps it with 7.000, its last tick;
3. the next call begins, and finds a file that is older than the call before.

So a file also counts as changed if it was written at most a tick before that call.

Looking at a name writes to its reference count, and so copies a page that all workers
share; to look at all names copies half a megabyte. So the nursery notes the names
before it forks, and a worker looks at those that have come since: the last ones, since
the table keeps the order in which modules were entered. Where that cannot be all, as a
module was taken out of the table, it looks at the whole table.
"""

from __future__ import annotations

import os
import sys
import time
from itertools import islice

INSTALLED = tuple(
    os.path.join(prefix, "")
    for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix}
)


#: How far the time of a file may be behind, in ns: a tick of the kernel is 10 ms at
#: most; some file systems know whole seconds only, or even ones.
TICK = 20_000_000
WHOLE_SECONDS = 2_000_000_000

#: What a nursery had imported when it began to fork.
_inherited: set[str] = set()


def note_modules() -> None:
    """Before workers are forked: note what they will have without importing it."""
    _inherited.clear()
    _inherited.update(sys.modules)


class ModuleWatch:
    """The modules that a process has imported since the watch was made.

    In a fork of a nursery: since the nursery noted its own.
    """

    def __init__(self) -> None:
        self._known = _inherited or set(sys.modules)
        self._n_modules = len(self._known)
        self._times: dict[str, int] = {}
        self._since = time.time_ns()

    def changed(self) -> bool:
        """Whether a watched file has changed; call it at the start of each call."""
        now = time.time_ns()
        if len(sys.modules) != self._n_modules:
            for name in self._new_names():
                self._known.add(name)
                path = getattr(sys.modules[name], "__file__", None)
                if not path or path.startswith(INSTALLED):
                    continue
                written = modified(path)
                late = TICK if written % 1_000_000_000 else WHOLE_SECONDS
                if written + late >= self._since:
                    return True
                self._times[path] = written
        self._since = now
        return any(modified(path) != was for path, was in self._times.items())

    def _new_names(self) -> list[str]:
        """Return the names that were not there when this was called last."""
        n_more = len(sys.modules) - self._n_modules
        self._n_modules += n_more
        # The new ones and the one before them.
        last = list(islice(reversed(sys.modules), max(0, n_more) + 1))
        new = [name for name in last if name not in self._known]
        if n_more > 0 and new == last[:-1]:
            return new
        return [name for name in list(sys.modules) if name not in self._known]


def modified(path: str) -> int:
    """When a file was last written, in ns; 0 if it is gone."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
