"""`Parallel`, and the names that extension code imports from ``joblib.parallel``.

Here is what the user says and what it means; how a call then runs is in `running`.
"""

from __future__ import annotations

import sys
from itertools import repeat

from fastjob import config as _config
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
from fastjob.reporting import BatchCompletionCallBack
from fastjob.running import Running

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
    try:
        module, attribute = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    __import__(module)
    value = globals()[name] = getattr(sys.modules[module], attribute)
    return value


class _ThisModule(type(sys)):  # type: ignore[misc]
    """Programs set the default as an attribute of the module they find it in."""

    @property
    def DEFAULT_BACKEND(self) -> str:
        return registry.DEFAULT_BACKEND

    @DEFAULT_BACKEND.setter
    def DEFAULT_BACKEND(self, name: str) -> None:
        registry.DEFAULT_BACKEND = name


sys.modules[__name__].__class__ = _ThisModule


class Parallel(Running, Generic[Kind]):
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
        where ``n_jobs`` is 1, with a warning.
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
            self._options["temp_folder"],
            self.verbose,
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
        super().__init__()

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

    def _callback_class(self) -> Any:
        # Extension code replaces the name in this module, to follow other people's
        # calls (the usual recipe for a tqdm bar does).
        return BatchCompletionCallBack

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_jobs={self.n_jobs})"


def _tasks_of(function: Callable[..., Any], rows: Iterable[Any]) -> Iterator[Any]:
    """Return the tasks of `map`: made in C, with one kwargs dict for all of them."""
    return zip(repeat(function), rows, repeat({}))


def _length_of(iterable: Any) -> int | None:
    return len(iterable) if hasattr(iterable, "__len__") else None
