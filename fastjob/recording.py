"""Who records: a ``with timeline(...)`` block, ``timeline=``, or the environment.

`record_call` is what the front end asks at the begin of each call at nesting level 0
(workers inherit the environment, and must not write the file as well).  Until one of
the three is used, nothing of this is imported.

A path given to one call is written when that call ends.  A block is written at its
end, with all calls made inside it by any thread; so is ``FASTJOB_TIMELINE`` at the end
of the process.  A forked child records nothing of what its parent began.
"""

from __future__ import annotations

import os
import threading

from fastjob._core.forks import register_at_fork
from fastjob.recorder import CallTimeline, Recorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["record_call", "recorder_for", "timeline"]

VARIABLE = "FASTJOB_TIMELINE"


class timeline:
    """Record all calls inside a ``with`` block, in whichever thread they are made.

    Parameters
    ----------
    path : str or path
        File to write at the end: ``.html`` for a page that needs nothing else, or
        ``.json`` for the trace format of Chrome and Perfetto.  ``{pid}`` in it is
        replaced by the process id.

    Examples
    --------
    >>> import os, tempfile
    >>> from fastjob import timeline
    >>> path = os.path.join(tempfile.mkdtemp(), "run.html")
    >>> with timeline(path):
    ...     pass  # calls of Parallel
    >>> os.path.exists(path)
    True
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._recorder = Recorder(path)

    def __enter__(self) -> Recorder:
        with _lock:
            _active.append(self._recorder)
        return self._recorder

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with _lock:
            _active.remove(self._recorder)
        self._recorder.write_or_warn()


_lock = threading.Lock()
_active: list[Recorder] = []
_from_environment: dict[str, Recorder] = {}  # by path; never more than one in use


def recorder_for(option: str | os.PathLike[str] | Recorder | None) -> Recorder | None:
    """The recorder that a call reports to, or None.

    Parameters
    ----------
    option : str, path, Recorder or None
        What the user gave as ``timeline=``; it wins over a surrounding `timeline`
        block, which wins over the variable ``FASTJOB_TIMELINE``.
    """
    if option is not None:
        return option if isinstance(option, Recorder) else Recorder(option)
    if _active:
        with _lock:
            for recorder in reversed(_active):
                if recorder.pid == os.getpid():
                    return recorder
    path = os.environ.get(VARIABLE)
    return _environment_recorder(path) if path else None


def record_call(
    option: str | os.PathLike[str] | Recorder | None,
    *,
    backend: str,
    n_jobs: int,
    total: int | None,
) -> CallTimeline | None:
    """Begin to record a call if somebody wants that; its ``end()`` must be called.

    Parameters
    ----------
    option : str, path, Recorder or None
        What the user gave as ``timeline=``.  A path is written when this call ends.
    backend : str
        Name of the backend.
    n_jobs : int
        Number of workers.
    total : int or None
        Number of tasks, if it is known.
    """
    recorder = recorder_for(option)
    if recorder is None:
        return None
    own = option is not None and recorder is not option
    return recorder.begin_call(backend, n_jobs, total, write=own)


def _environment_recorder(path: str) -> Recorder:
    """The one for ``FASTJOB_TIMELINE``, which is written when the process exits."""
    with _lock:
        recorder = _from_environment.get(path)
        if recorder is None or recorder.pid != os.getpid():
            import atexit

            recorder = _from_environment[path] = Recorder(path)
            atexit.register(recorder.write_or_warn)
        return recorder


def _forget_after_fork() -> None:
    """A child has none of its parent's recordings, and no thread that holds a lock."""
    global _lock
    _lock = threading.Lock()
    _active.clear()
    _from_environment.clear()


register_at_fork(after_in_child=_forget_after_fork)
