"""`Parallel`: resolve what the user said into one `Call`, and have an engine run it.

Everything about a call is settled here, once, before it starts; the engine runs it and
knows nothing of this module.  What a call costs beyond its engine is a warm path of a
few microseconds: nothing is imported, parsed or looked up that the previous call of
the same shape has found already, and nobody is told of completions unless somebody
listens.
"""

from __future__ import annotations

import sys
from _weakref import ref
from itertools import repeat
from os import environ
from time import time

from fastjob import config as _config
from fastjob._core.call import Call
from fastjob._core.delayed import delayed
from fastjob.backends import registry
from fastjob.backends.base import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
)
from fastjob.backends.registry import BACKENDS, register_parallel_backend
from fastjob.config import (
    DEFAULTS,
    effective_n_jobs,
    get_active_backend,
    parallel_backend,
    parallel_config,
)
from fastjob.options import bytes_of, check, choose_backend
from fastjob.reporting import BatchCompletionCallBack, Reporting
from fastjob.results import ResultStream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Generic, Literal, TypeAlias, TypeVar, overload

    T = TypeVar("T")
    Kind = TypeVar("Kind", bound=str)
    Task: TypeAlias = tuple[Callable[..., T], tuple[Any, ...], dict[str, Any]]
    Listed: TypeAlias = Literal["list"]
    Streamed: TypeAlias = Literal["generator", "generator_unordered"]
else:
    Kind = None

    class Generic:
        # Importing typing would double the time that `import fastjob` takes.
        __class_getitem__ = classmethod(type(list[int]))

    def overload(function):
        return function


__all__ = [
    "BACKENDS",
    "DEFAULT_BACKEND",  # noqa: F822
    "AutoBatchingMixin",
    "BatchCompletionCallBack",
    "BatchedCalls",  # noqa: F822
    "FallbackToBackend",
    "LokyBackend",  # noqa: F822
    "MultiprocessingBackend",  # noqa: F822
    "Parallel",
    "ParallelBackendBase",
    "SequentialBackend",  # noqa: F822
    "ThreadingBackend",  # noqa: F822
    "cpu_count",  # noqa: F822
    "delayed",
    "effective_n_jobs",
    "get_active_backend",
    "parallel_backend",
    "parallel_config",
    "register_parallel_backend",
]

# How the default window is spelled; any other value counts tasks, not batches.
_DEFAULT_WINDOW = "2*n_jobs"
# Seconds; progress is shown ten times a second, and looks half as long before.
REPORT_INTERVAL = 0.05

_DROP_GENERATOR = (
    " Before submitting new tasks, you must wait for the completion of all the "
    "previous tasks, or clean all references to the output generator."
)

# Names that extension code imports from here, and that are imported when it does.
_LAZY = {
    "LokyBackend": ("fastjob.backends.processes", "LokyBackend"),
    "MultiprocessingBackend": (
        "fastjob.backends.multiprocessing",
        "MultiprocessingBackend",
    ),
    "SequentialBackend": ("fastjob.backends.sequential", "SequentialBackend"),
    "ThreadingBackend": ("fastjob.backends.threading", "ThreadingBackend"),
    "BatchedCalls": ("fastjob.backends.batch", "BatchedCalls"),
    "cpu_count": ("fastjob._core.cpu", "cpu_count"),
}


def __getattr__(name: str) -> Any:
    if name == "DEFAULT_BACKEND":
        return registry.DEFAULT_BACKEND
    try:
        module, attribute = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    __import__(module)
    value = globals()[name] = getattr(sys.modules[module], attribute)
    return value


# Extension code replaces the name above, in this module, to follow other people's
# calls (the usual recipe for a tqdm bar does); this one tells whether it has.
_OriginalCallBack = BatchCompletionCallBack


class Parallel(Reporting, Generic[Kind]):
    """Run many calls of functions in parallel.

    Parameters
    ----------
    n_jobs : int, optional
        Number of workers. -1 is all cores that this process may use, -2 one less, and
        so on. 1 runs a plain loop in the caller. None is what the surrounding
        `parallel_config` says, else 1. Floats are cut.
    backend : str or ParallelBackendBase or multiprocessing context, optional
        ``"processes"`` (the default, also known as ``"loky"``), ``"threading"``,
        ``"sequential"``, ``"multiprocessing"``, ``"dask"``, ``"ray"``, a name given to
        `register_parallel_backend`, or a backend.
    return_as : {"list", "generator", "generator_unordered"}
        A list in the order of the tasks; an iterator in that order; or an iterator in
        order of completion. An iterator computes ahead of its consumer, but never by
        more than `pre_dispatch` allows.
    verbose : int
        0 is silent, above 10 reports every completion, from 50 on to stdout.
    timeout : float, optional
        Seconds that a single task may run, from its start in the worker. Not applied
        where ``n_jobs`` is 1.
    pre_dispatch : int or str
        How many tasks are taken from the input and not yet completed at any time: a
        number, ``"all"``, or an expression in ``n_jobs``. The default counts batches.
    batch_size : int or "auto"
        Tasks sent to a worker at once; ``"auto"`` measures.
    temp_folder : str, optional
        Folder for large arrays; None keeps them in anonymous shared memory.
    max_nbytes : int or str, optional
        Size in bytes, or like ``"1M"``, from which an array goes through shared
        memory; None is never.
    mmap_mode : {"r", "r+", "w+", "c", None}
        How a task sees such an array.
    prefer : {"processes", "threads"}, optional
        A hint, where no backend is named.
    require : {"sharedmem"}, optional
        A constraint: the tasks share the memory of the caller.
    inner_max_num_threads : int, optional
        Native threads (BLAS, OpenMP, ...) that one worker may use; by default an equal
        share of the cores.
    on_error : {"raise", "return"}
        Whether a failed task ends the call, or leaves a `TaskError` in its place.
    retries : int
        How many more times a failed task is run.
    progress : bool or str or callable, optional
        Show a progress bar, or call something with a record of the progress.
    timeline : str, optional
        File that receives a picture of the call (``.html``) or a trace (``.json``).
    show_values : bool
        Whether tracebacks show the values of parameters.
    forward_logs : bool
        Whether warnings and log records of worker processes go to the filters and
        handlers of this process, as they would from a plain loop; if not, the workers
        show them on their standard error.
    **backend_params
        Options of the backend.

    Raises
    ------
    ValueError
        If an argument has no meaning.
    TypeError
        If the backend does not know one of the options.

    Attributes
    ----------
    n_jobs : int
    n_tasks : int or None
        Length of the input of the current or last call, if it has one.
    n_dispatched_tasks, n_dispatched_batches, n_completed_tasks : int
        Counts of the current or last call.

    Examples
    --------
    >>> from math import sqrt
    >>> from fastjob import Parallel, delayed
    >>> Parallel(n_jobs=1)(delayed(sqrt)(i**2) for i in range(5))
    [0.0, 1.0, 2.0, 3.0, 4.0]
    """

    @overload
    def __init__(
        self: Parallel[Listed],
        n_jobs: Any = ...,
        backend: Any = ...,
        return_as: Listed = ...,
        *args: Any,
        **kwargs: Any,
    ) -> None: ...
    @overload
    def __init__(  # noqa: F811
        self: Parallel[Streamed],
        n_jobs: Any,
        backend: Any,
        return_as: Streamed,
        *args: Any,
        **kwargs: Any,
    ) -> None: ...
    @overload
    def __init__(  # noqa: F811
        self: Parallel[Streamed],
        n_jobs: Any = ...,
        backend: Any = ...,
        *,
        return_as: Streamed,
        **kwargs: Any,
    ) -> None: ...
    @overload
    def __init__(  # noqa: F811
        self: Parallel[str],
        n_jobs: Any = ...,
        backend: Any = ...,
        return_as: str = ...,
        *args: Any,
        **kwargs: Any,
    ) -> None: ...
    def __init__(  # noqa: F811
        self,
        n_jobs: Any = DEFAULTS["n_jobs"],
        backend: Any = DEFAULTS["backend"],
        return_as: str = "list",
        verbose: Any = DEFAULTS["verbose"],
        timeout: float | None = None,
        pre_dispatch: Any = "2 * n_jobs",
        batch_size: Any = "auto",
        temp_folder: Any = DEFAULTS["temp_folder"],
        max_nbytes: Any = DEFAULTS["max_nbytes"],
        mmap_mode: Any = DEFAULTS["mmap_mode"],
        prefer: Any = DEFAULTS["prefer"],
        require: Any = DEFAULTS["require"],
        *,
        inner_max_num_threads: Any = DEFAULTS["inner_max_num_threads"],
        on_error: Any = DEFAULTS["on_error"],
        retries: Any = DEFAULTS["retries"],
        progress: Any = DEFAULTS["progress"],
        timeline: Any = DEFAULTS["timeline"],
        show_values: Any = DEFAULTS["show_values"],
        forward_logs: Any = DEFAULTS["forward_logs"],
        **backend_params: Any,
    ) -> None:
        config = _config.active()
        resolve = _config.resolve
        self.verbose = resolve("verbose", verbose, config)
        self.timeout = timeout
        self.pre_dispatch = pre_dispatch
        self.return_as = return_as
        self.return_generator = return_as != "list"
        self.return_ordered = return_as != "generator_unordered"
        self.batch_size = batch_size
        prefer = resolve("prefer", prefer, config)
        require = resolve("require", require, config)
        max_nbytes = resolve("max_nbytes", max_nbytes, config)
        self._options: dict[str, Any] = {
            "max_nbytes": (1 << 20) if max_nbytes == "1M" else bytes_of(max_nbytes),
            "mmap_mode": resolve("mmap_mode", mmap_mode, config),
            "temp_folder": resolve("temp_folder", temp_folder, config),
            "show_values": bool(resolve("show_values", show_values, config)),
            "forward_logs": bool(resolve("forward_logs", forward_logs, config)),
            "ordered": self.return_ordered,
            "retries": resolve("retries", retries, config),
        }
        self.on_error = resolve("on_error", on_error, config)
        self.progress = resolve("progress", progress, config)
        self.timeline = resolve("timeline", timeline, config)
        check(
            return_as,
            batch_size,
            timeout,
            self._options["retries"],
            self.on_error,
            self._options["mmap_mode"],
        )
        self._options["return_errors"] = self.on_error == "return"
        self._backend, usual_n_jobs = choose_backend(
            backend, backend_params, config, prefer, require, self.verbose
        )
        threads = resolve("inner_max_num_threads", inner_max_num_threads, config)
        if threads is None:
            threads = getattr(self._backend, "inner_max_num_threads", None)
        self._options["inner_max_num_threads"] = threads
        if n_jobs is None or n_jobs is DEFAULTS["n_jobs"]:
            n_jobs = usual_n_jobs
        try:
            self.n_jobs = int(n_jobs)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(
                f"n_jobs could not be converted to int: {n_jobs!r}"
            ) from None
        if self.return_generator and not getattr(
            self._backend, "supports_return_generator", True
        ):
            raise ValueError(
                f"Backend {self._backend} does not support return_as={return_as}"
            )

        # What `configure` of a backend is given beside n_jobs and parallel.
        self._backend_kwargs = {
            **backend_params,
            "max_nbytes": None if max_nbytes is None else self._options["max_nbytes"],
            "temp_folder": self._options["temp_folder"],
            "mmap_mode": self._options["mmap_mode"],
            "prefer": prefer,
            "require": require,
            "verbose": max(0, self.verbose - 50),
        }
        self._options["options"] = {
            **getattr(self._backend, "backend_kwargs", {}),
            **backend_params,
        }
        self._config = config
        self._running: dict[str, object] = {}
        self._stream: ref[ResultStream] | None = None
        self._managed_backend = self._configured = False
        self._listening = self._each = False
        self._recording: Any = None

    # The life of a call

    def __enter__(self) -> Parallel[Kind]:
        self._managed_backend = True
        self._configure()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._managed_backend = False
        self._configured = False
        stream = self._stream() if self._stream is not None else None
        if stream is not None:
            stream.close()
        self._backend.terminate()

    @overload
    def __call__(self: Parallel[Listed], iterable: Iterable[Task[T]]) -> list[T]: ...
    @overload
    def __call__(  # noqa: F811
        self: Parallel[Streamed], iterable: Iterable[Task[T]]
    ) -> Iterator[T]: ...
    @overload
    def __call__(  # noqa: F811
        self: Parallel[str], iterable: Iterable[Task[T]]
    ) -> Any: ...
    def __call__(self, iterable: Iterable[Task[Any]]) -> Any:  # noqa: F811
        """Run the tasks of an iterable.

        Parameters
        ----------
        iterable : iterable of tuple
            What calls of `delayed` functions return: ``(function, args, kwargs)``.

        Returns
        -------
        list or iterator
            The results, as `return_as` says.

        Raises
        ------
        RuntimeError
            If this object is running another call.
        TaskTimeoutError
            If a task has run for longer than `timeout`.
        TerminatedWorkerError
            If a worker has died.
        Exception
            Whatever a task raises, with its traceback in the worker as the cause.
        """
        return self._run(iterable, _length_of(iterable))

    @overload
    def map(
        self: Parallel[Listed], function: Callable[..., T], /, *iterables: Iterable[Any]
    ) -> list[T]: ...
    @overload
    def map(  # noqa: F811
        self: Parallel[Streamed],
        function: Callable[..., T],
        /,
        *iterables: Iterable[Any],
    ) -> Iterator[T]: ...
    @overload
    def map(  # noqa: F811
        self: Parallel[str], function: Callable[..., T], /, *iterables: Iterable[Any]
    ) -> Any: ...
    def map(  # noqa: F811
        self, function: Callable[..., Any], /, *iterables: Iterable[Any]
    ) -> Any:
        """Call a function with the items of iterables, as the built-in ``map`` does.

        Parameters
        ----------
        function : callable
        *iterables : iterable
            One for each argument of the function; the shortest ends the call.

        Returns
        -------
        list or iterator
            The results, as `return_as` says.

        Examples
        --------
        >>> Parallel(n_jobs=1).map(pow, [2, 3], [5, 2])
        [32, 9]
        """
        if not iterables:
            raise TypeError("map() needs at least one iterable.")
        lengths = [n for n in map(_length_of, iterables) if n is not None]
        n_tasks = min(lengths) if len(lengths) == len(iterables) else None
        return self._run(_tasks_of(function, zip(*iterables)), n_tasks)  # noqa: B905

    @overload
    def starmap(
        self: Parallel[Listed],
        function: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        /,
    ) -> list[T]: ...
    @overload
    def starmap(  # noqa: F811
        self: Parallel[Streamed],
        function: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        /,
    ) -> Iterator[T]: ...
    @overload
    def starmap(  # noqa: F811
        self: Parallel[str],
        function: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        /,
    ) -> Any: ...
    def starmap(  # noqa: F811
        self, function: Callable[..., Any], iterable: Iterable[Iterable[Any]], /
    ) -> Any:
        """Call a function with each item of an iterable as its arguments.

        Parameters
        ----------
        function : callable
        iterable : iterable of tuple

        Returns
        -------
        list or iterator
            The results, as `return_as` says.

        Examples
        --------
        >>> Parallel(n_jobs=1).starmap(pow, [(2, 5), (3, 2)])
        [32, 9]
        """
        rows = map(tuple, iterable)
        return self._run(_tasks_of(function, rows), _length_of(iterable))

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
            or BatchCompletionCallBack is not _OriginalCallBack
            or type(self).print_progress is not Reporting.print_progress
        )
        self._listening = listening = bool(each or self.progress)
        if not self._backend.nesting_level and (
            self.timeline is not None
            or "fastjob.recording" in sys.modules
            or "FASTJOB_TIMELINE" in environ
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
        if self.timeout is not None and n_jobs > 1 and not backend.supports_timeout:
            import warnings

            name = type(backend).__name__
            warnings.warn(
                f"The backend class {name!r} does not support timeout. You have set "
                f"'timeout={self.timeout}' in Parallel but the 'timeout' parameter "
                "will not be used.",
                UserWarning,
                stacklevel=5,
            )
        self._configured = True
        return n_jobs

    def _end(self, caller: object, failed: bool) -> None:
        """End a call, whose engine has left nothing behind; harmless when repeated."""
        if self._running.get("call") is not caller:
            return
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
        if BatchCompletionCallBack is not _OriginalCallBack:
            BatchCompletionCallBack(self._start_time, n_tasks, self)(None)
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

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_jobs={self.n_jobs})"


_sequential_backend: Any = None


def _sequential() -> Any:
    """Return the backend of calls with one worker."""
    global _sequential_backend
    if _sequential_backend is None:
        _sequential_backend = registry.create("sequential", nesting_level=0)
    return _sequential_backend


def _tasks_of(function: Callable[..., Any], rows: Iterable[Any]) -> Iterator[Any]:
    """Return the tasks of `map`: made in C, with one kwargs dict for all of them."""
    return zip(repeat(function), rows, repeat({}))


def _length_of(iterable: Any) -> int | None:
    return len(iterable) if hasattr(iterable, "__len__") else None
