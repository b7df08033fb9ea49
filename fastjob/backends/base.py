"""The protocol between `Parallel` and a backend that somebody else wrote.

A backend written against joblib's documented protocol (`submit` with a callback) is
driven by `callback.CallbackEngine`.  The native backends define `open_call`, and need
none of the callback methods.  A class may derive from a native one: if it has a
`submit` of its own, that is what runs its batches; if it has only what is called around
each call (`start_call`, `stop_call`, `retrieval_context`), that surrounds the native
engine (`around.py`).
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any, ClassVar, Protocol

    from fastjob.parallel import Parallel

    class Engine(Protocol):
        """What runs one call."""

        def run(self, tasks: Iterator[Any]) -> list[Any]: ...
        def stream(self, tasks: Iterator[Any]) -> Any: ...


class FallbackToBackend(Exception):
    """Raised by `configure` to have another backend run the call.

    Parameters
    ----------
    backend : ParallelBackendBase
        The backend to use instead.
    """

    def __init__(self, backend: ParallelBackendBase) -> None:
        super().__init__(backend)
        self.backend = backend


def count_workers(n_jobs: int | None) -> int:
    """Return the number of workers that `n_jobs` stands for.

    Parameters
    ----------
    n_jobs : int or None
        A positive number is taken at its word; -1 is the core budget of this process
        (all the cores it may use, or its share when it is itself a worker), -2 one
        less, and so on; None is 1.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    ValueError
        If `n_jobs` is 0.
    """
    if n_jobs is None:
        return 1
    if n_jobs > 0:
        return n_jobs
    if n_jobs == 0:
        raise ValueError("n_jobs == 0 in Parallel has no meaning")
    from fastjob.budget import core_budget

    return max(core_budget() + 1 + n_jobs, 1)


def nested_name(level: int) -> tuple[str, int]:
    """Return the backend of calls at a nesting level: threads, then a plain loop."""
    return ("threading" if level == 1 else "sequential", level)


class ParallelBackendBase(metaclass=ABCMeta):
    """Where the tasks of a call run.

    A subclass defines at least `effective_n_jobs` and `submit`, sets
    `supports_retrieve_callback` and defines `retrieve_result_callback`.

    Parameters
    ----------
    nesting_level : int, optional
        0 for a call in the user's own thread, 1 in its tasks, and so on; None takes
        the level of the surrounding configuration.
    inner_max_num_threads : int, optional
        Native threads (BLAS, OpenMP, ...) that one task may use.
    **backend_kwargs
        Options of the backend.
    """

    default_n_jobs: int = 1
    supports_inner_max_num_threads: bool = False
    supports_retrieve_callback: bool = False
    supports_sharedmem: bool = False
    uses_threads: bool = False
    nesting_level: int | None = None
    parallel: Parallel[Any] | None = None

    #: Whether calls run through `submit`; else `open_call` makes their engine.
    by_submit: ClassVar[bool] = True
    #: Whether something is to be called around each call of the engine.
    surrounds: ClassVar[bool] = False

    #: Names of the options that this backend knows; None accepts any.
    valid_options: ClassVar[frozenset[str] | None] = None

    MAX_NUM_THREADS_VARS: ClassVar[list[str]] = [
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMBA_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
    ]
    TBB_ENABLE_IPC_VAR: ClassVar[str] = "ENABLE_IPC"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        newest: set[str] = set()
        for base in cls.__mro__:
            newest.update(vars(base))
            if not newest.isdisjoint({"open_call", "submit", "apply_async"}):
                break
        cls.by_submit = "open_call" not in newest
        cls.surrounds = not newest.isdisjoint(
            {"start_call", "stop_call", "retrieval_context"}
        )

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **backend_kwargs: Any,
    ) -> None:
        super().__init__()
        self.nesting_level = nesting_level
        self.inner_max_num_threads = inner_max_num_threads
        self.backend_kwargs = backend_kwargs
        if backend_kwargs:
            self.check_options(backend_kwargs)

    @property
    def supports_return_generator(self) -> bool:
        return self.supports_retrieve_callback

    @property
    def supports_timeout(self) -> bool:
        return self.supports_retrieve_callback

    @classmethod
    def unavailable(cls) -> str | None:
        """Return why this backend cannot be used here, or None if it can."""
        return None

    @classmethod
    def check_options(cls, options: dict[str, Any]) -> None:
        """Refuse options that this backend does not know.

        Raises
        ------
        TypeError
            Naming the unknown options and the valid ones.
        """
        valid = cls.valid_options
        if valid is None:
            return
        unknown = sorted(set(options) - valid)
        if unknown:
            raise TypeError(
                f"{cls.__name__} has no option {', '.join(map(repr, unknown))}; "
                + (
                    f"its options are: {', '.join(sorted(valid))}."
                    if valid
                    else "it has no options."
                )
            )

    @abstractmethod
    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many tasks would run at the same time.

        Parameters
        ----------
        n_jobs : int or None
            What the user asked for; -1 is all there is.

        Returns
        -------
        int
            1 runs the call as a plain loop in the caller.
        """

    def apply_async(
        self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None
    ) -> Any:
        """Start `func` (older name of `submit`)."""
        raise NotImplementedError(
            f"{type(self).__name__} defines neither submit nor apply_async, and "
            "fastjob's own backends, which run whole calls, have none to inherit."
        )

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None
    ) -> Any:
        """Start `func` and return at once.

        Parameters
        ----------
        func : callable
            Takes no argument; runs one batch of tasks. It can be pickled.
        callback : callable
            To be called with one argument, the future or its result, when `func` is
            done, in any thread.

        Returns
        -------
        object
            A future, handed back to `retrieve_result`.
        """
        if type(self).apply_async is not ParallelBackendBase.apply_async:
            import warnings

            warnings.warn(
                f"{type(self).__name__}.apply_async is deprecated, name it submit.",
                DeprecationWarning,
                stacklevel=2,
            )
        return self.apply_async(func, callback)

    def retrieve_result_callback(self, out: Any) -> Any:
        """Return the result of a batch, or raise its error.

        Called within the callback that was given to `submit`.

        Parameters
        ----------
        out : object
            What the callback was called with.
        """
        raise NotImplementedError(
            f"{type(self).__name__} sets supports_retrieve_callback and does not "
            "define retrieve_result_callback."
        )

    def retrieve_result(self, out: Any, timeout: float | None = None) -> Any:
        """Wait for a batch and return its result, or raise its error.

        Used when `supports_retrieve_callback` is False.

        Parameters
        ----------
        out : object
            What `submit` returned.
        timeout : float, optional
            Seconds to wait.
        """
        if self.supports_timeout:
            return out.get(timeout=timeout)
        return out.get()

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Parallel[Any] | None = None,
        prefer: str | None = None,
        require: str | None = None,
        **backend_kwargs: Any,
    ) -> int:
        """Get ready for a call and return the number of workers.

        Raises
        ------
        FallbackToBackend
            To have another backend run the call.
        """
        if self.by_submit:
            # A native backend has no use for it, and it makes a cycle of references.
            self.parallel = parallel
        return self.effective_n_jobs(n_jobs)

    def start_call(self) -> None:  # noqa: B027
        """Be told that a call begins."""

    def stop_call(self) -> None:  # noqa: B027
        """Be told that a call has ended."""

    def terminate(self) -> None:  # noqa: B027
        """Release the workers."""

    def compute_batch_size(self) -> int:
        """Return how many tasks the next batch should hold."""
        return 1

    def batch_completed(self, batch_size: int, duration: float) -> None:  # noqa: B027
        """Be told how long a batch took, in seconds from submission."""

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: B027
        """Stop the tasks that run; the call has failed.

        Parameters
        ----------
        ensure_ready : bool
            Whether further calls will follow.
        """

    def get_nested_backend(self) -> tuple[ParallelBackendBase, int | None]:
        """Return the backend and n_jobs of calls made inside a task.

        Threads one level down, a plain loop below that.
        """
        from fastjob.backends import registry

        name, level = nested_name((self.nesting_level or 0) + 1)
        return registry.create(name, nesting_level=level), None

    def retrieval_context(self) -> AbstractContextManager[Any]:
        """Return a context manager that is held while results are waited for."""
        from contextlib import nullcontext

        return nullcontext()

    @staticmethod
    def in_main_thread() -> bool:
        """Tell whether the calling thread is the main one."""
        import threading

        return threading.current_thread() is threading.main_thread()


class AutoBatchingMixin:
    """Batch sizes that follow the measured duration of a batch.

    A batch should last long enough to hide the cost of sending it and be short
    enough to leave no worker idle at the end.  For backends whose round trip is
    slow; the native ones have a tuner of their own.
    """

    MIN_IDEAL_BATCH_DURATION = 0.2
    MAX_IDEAL_BATCH_DURATION = 2
    _DEFAULT_EFFECTIVE_BATCH_SIZE = 1
    _DEFAULT_SMOOTHED_BATCH_DURATION = 0.0

    parallel: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reset_batch_stats()

    def reset_batch_stats(self) -> None:
        """Forget what was measured."""
        self._effective_batch_size = self._DEFAULT_EFFECTIVE_BATCH_SIZE
        self._smoothed_batch_duration = self._DEFAULT_SMOOTHED_BATCH_DURATION

    def compute_batch_size(self) -> int:
        """Return how many tasks the next batch should hold."""
        size = self._effective_batch_size
        duration = self._smoothed_batch_duration
        if 0 < duration < self.MIN_IDEAL_BATCH_DURATION:
            # Aim for twice the least useful duration, but at most double: the
            # first batches may not be like the later ones.
            aim = 2 * int(size * self.MIN_IDEAL_BATCH_DURATION / duration)
            wanted, verdict = max(min(2 * size, aim), 1), "fast"
        elif duration > self.MAX_IDEAL_BATCH_DURATION and size >= 2:
            aim = 2 * int(size * self.MIN_IDEAL_BATCH_DURATION / duration)
            wanted, verdict = max(aim, 1), "slow"
        else:
            return size
        if self.parallel is not None and self.parallel.verbose >= 10:
            self.parallel._print(
                f"Batch computation too {verdict} ({duration}s.) "
                f"Setting batch_size={wanted}."
            )
        if wanted != size:
            self._effective_batch_size = wanted
            self._smoothed_batch_duration = self._DEFAULT_SMOOTHED_BATCH_DURATION
        return wanted

    def batch_completed(self, batch_size: int, duration: float) -> None:
        """Take the duration of a batch into account.

        Parameters
        ----------
        batch_size : int
            Tasks in the batch; only batches of the current size count.
        duration : float
            Seconds from submission to completion.
        """
        if batch_size != self._effective_batch_size:
            return
        smoothed = self._smoothed_batch_duration
        if smoothed == self._DEFAULT_SMOOTHED_BATCH_DURATION:
            self._smoothed_batch_duration = duration
        else:
            self._smoothed_batch_duration = 0.8 * smoothed + 0.2 * duration
