"""Has a module that this worker imported changed on disk since?

A caller who edits a module and reloads it expects the new code to run in its workers,
as it would in new ones. So a worker that has imported a file which has changed ends
before it runs a task of the next call; the caller replaces it.

Only files outside of the Python installation are watched: those a person edits. The
modification time at the moment of the import is not known when the file is first
looked at, at the start of the next call. A file that was written after the call in
which it was imported had begun therefore counts as changed: a worker too many may end,
but none runs old code.
"""

from __future__ import annotations

import os
import sys
import time

INSTALLED = tuple(
    os.path.join(prefix, "")
    for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix}
)


class ModuleWatch:
    """The modules that a process has imported since the watch was made."""

    def __init__(self) -> None:
        self._known = set(sys.modules)
        self._n_modules = len(sys.modules)
        self._times: dict[str, int] = {}
        self._since = time.time_ns()

    def changed(self) -> bool:
        """Whether a watched file has changed; call it at the start of each call."""
        now = time.time_ns()
        if len(sys.modules) != self._n_modules:
            self._n_modules = len(sys.modules)
            for name in set(sys.modules) - self._known:
                self._known.add(name)
                path = getattr(sys.modules[name], "__file__", None)
                if not path or path.startswith(INSTALLED):
                    continue
                written = modified(path)
                if written >= self._since:
                    return True
                self._times[path] = written
        self._since = now
        return any(modified(path) != was for path, was in self._times.items())


def modified(path: str) -> int:
    """When a file was last written, in ns; 0 if it is gone."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
