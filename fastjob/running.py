"""The life of a call: from a `Parallel` whose arguments are settled to its results.

A call is set up (the backend made ready, one `Call` filled in, whoever listens noted),
run by its engine, and ended, whatever has happened.  What this costs beyond the engine
is a few microseconds: nothing is imported, parsed or looked up that the previous call
of the same shape has found already, and nobody is told of completions unless somebody
listens.
"""

from __future__ import annotations

import sys
from _weakref import ref
from time import time

from fastjob import config as _config
from fastjob._core.call import Call
from fastjob._core.environment import variable
from fastjob.backends import registry
from fastjob.reporting import BatchCompletionCallBack, Reporting
from fastjob.results import ResultStream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, TypeVar

    Self = TypeVar("Self", bound="Running")

# How the default window is spelled; any other value counts tasks, not batches.
_DEFAULT_WINDOW = "2*n_jobs"
# Seconds; progress is shown ten times a second, and looks half as long before.
REPORT_INTERVAL = 0.05

_DROP_GENERATOR = (
    " Before submitting new tasks, you must wait for the completion of all the "
    "previous tasks, or clean all references to the output generator."
)


class Running(Reporting):
    """The part of `Parallel` that runs calls; what it reads, `Parallel` sets."""

    n_jobs: int
    timeout: float | None
    pre_dispatch: Any
    batch_size: Any
    timeline: Any
    return_generator: bool

    _options: dict[str, Any]
    _backend_kwargs: dict[str, Any]
    _config: dict[str, Any]

    _managed_backend = False  # in a ``with`` block: configured once for all its calls
    _configured = False
    _listening = _each = False
    _recording: Any = None
    _stream: ref[ResultStream] | None = None
    # Ends, from another thread, a call that cannot go on without the backend.
    _cut: Callable[[], None] | None = None

    def __init__(self) -> None:
        self._running: dict[str, object] = {}

    def __enter__(self: Self) -> Self:
        self._managed_backend = True
        self._configure()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._managed_backend = False
        self._configured = False
        stream = self._stream() if self._stream is not None else None
        if stream is not None:
            stream.cut()
        cut = self._cut
        if cut is not None:
            cut()
        self._backend.terminate()

    def _run(self, iterable: Iterable[Any], n_tasks: int | None) -> Any:
        tasks: Iterator[Any] = iter(iterable)
        # Whoever is in the dictionary runs. An interrupt may come between any two
        # lines; the call is over for those who are not in it, and `_end` may be
        # called again.
        me = object()
        failed = True
        results: Any = None
        try:
            if self._running.setdefault("call", me) is not me:
                raise RuntimeError(
                    "This Parallel instance is already running !"
                    + (_DROP_GENERATOR if self.return_generator else "")
                )
            self.n_tasks = n_tasks
            self._start_time = time()
            self._listening = self._each = False
            call, backend = self._open()
            engine = registry.open_engine(backend, call)
            if self._each:
                tasks = self._watch(tasks)
            self._cut = getattr(engine, "cut", None)
            if self.return_generator:
                stream = engine.stream(tasks)
                results = ResultStream(stream, lambda early: self._end(me, early))
                self._stream = ref(results)
            else:
                results = engine.run(tasks)
            failed = False
            return results
        finally:
            if not isinstance(results, ResultStream):
                self._end(me, failed)
            elif failed:
                results.close()

    def _open(self) -> tuple[Call, Any]:
        """Return the call, and the backend that runs it."""
        if self._managed_backend:
            n_jobs = self._backend.effective_n_jobs(self.n_jobs)
        else:
            n_jobs = self._configure()
        backend = self._backend
        if n_jobs > 1:
            nested = _config.nested(backend, self._config)
        elif n_jobs == 1:
            backend, nested = _sequential(), None
        else:
            raise RuntimeError(f"{type(backend).__name__} has no active worker.")

        pre_dispatch = self.pre_dispatch
        if pre_dispatch == "2 * n_jobs" or (
            isinstance(pre_dispatch, str)
            and pre_dispatch.replace(" ", "") == _DEFAULT_WINDOW
        ):
            ahead, in_batches = 2 * n_jobs, True
        else:
            from fastjob.pre_dispatch import window_of

            ahead, in_batches = window_of(pre_dispatch, n_jobs), False

        # Whoever is told of each completion; a progress bar only looks now and then.
        self._each = each = bool(
            self.verbose
            or self._callback_class() is not BatchCompletionCallBack
            or type(self).print_progress is not Reporting.print_progress
        )
        self._listening = listening = bool(each or self.progress)
        if not self._backend.nesting_level and (
            self.timeline is not None
            or "fastjob.recording" in sys.modules
            or variable(b"FASTJOB_TIMELINE") is not None
        ):
            from fastjob.recording import record_call

            self._recording = record_call(
                self.timeline,
                backend=type(backend).__name__,
                n_jobs=n_jobs,
                total=self.n_tasks,
            )
        call = Call(
            n_jobs,
            ahead=ahead,
            ahead_in_batches=in_batches,
            timeout=self.timeout or 0.0,
            batch_size=0 if self.batch_size == "auto" else self.batch_size,
            nested=nested,
            on_batch=self._on_batch if listening else None,
            report_interval=0.0 if each else REPORT_INTERVAL,
            timeline=self._recording,
            **self._options,
        )
        self._counters = call.counters
        if listening:
            self._begin_report(n_jobs, ahead)
        return call, backend

    def _configure(self) -> int:
        """Make the backend ready and return the number of workers."""
        backend = self._backend
        try:
            n_jobs: int = backend.configure(
                n_jobs=self.n_jobs, parallel=self, **self._backend_kwargs
            )
        except Exception as error:
            # By name: joblib's backends raise joblib's class of this name.
            if type(error).__name__ != "FallbackToBackend":
                raise
            self._backend = registry.native(error.backend)  # type: ignore[attr-defined]
            return self._configure()
        if self.timeout is not None:
            runs = backend if n_jobs > 1 else _sequential()
            if not runs.supports_timeout:
                import warnings

                name = type(runs).__name__
                warnings.warn(
                    f"The backend class {name!r} does not support timeout. You have "
                    f"set 'timeout={self.timeout}' in Parallel but the 'timeout' "
                    "parameter will not be used.",
                    UserWarning,
                    stacklevel=5,
                )
        self._configured = True
        return n_jobs

    def _end(self, caller: object, failed: bool) -> None:
        """End a call, whose engine has left nothing behind; harmless when repeated."""
        if self._running.get("call") is not caller:
            return
        self._cut = None
        try:
            if self._listening:
                self._end_report(failed)
        finally:
            recording, self._recording = self._recording, None
            try:
                if recording is not None:
                    recording.end()
                if self._configured and not self._managed_backend:
                    self._configured = False
                    self._backend.terminate()
            finally:
                self._running.pop("call", None)

    def _on_batch(self, n_tasks: int) -> None:
        """Be told by the engine that more tasks have completed."""
        callback_class = self._callback_class()
        if callback_class is not BatchCompletionCallBack:
            callback_class(self._start_time, n_tasks, self)(None)
        if self._reporter is not None:
            self._reporter.update(n_tasks)
        self.print_progress()
        # After the message: it is about the tasks that were known when these ended.
        if self._input_done:
            self._original_iterator = None

    @property
    def _id(self) -> str:
        """Name that joblib's process backend gives to what it makes for this object."""
        if "_own_id" not in self.__dict__:
            from uuid import uuid4

            self._own_id = uuid4().hex
        return self._own_id

    def _effective_n_jobs(self) -> int:
        return self._backend.effective_n_jobs(self.n_jobs)  # type: ignore[no-any-return]

    def _callback_class(self) -> Any:
        """Return what is made and called on each completion, if it was replaced."""
        return BatchCompletionCallBack


_sequential_backend: Any = None


def _sequential() -> Any:
    """Return the backend of calls with one worker."""
    global _sequential_backend
    if _sequential_backend is None:
        _sequential_backend = registry.create("sequential", nesting_level=0)
    return _sequential_backend
