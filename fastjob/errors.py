"""Every error that fastjob itself raises, and the record of a failed task.

Each message says what happened, to which task, and what can be done about it.  The
parts of the message are attributes too.  All of them survive pickling: a nested call
sends them through a worker.

`TaskTimeoutError` is made when it is first asked for, because one of its bases lives
in ``multiprocessing``, which ``import fastjob`` must not import.
"""

from __future__ import annotations

from _pickle import PicklingError, UnpicklingError

TYPE_CHECKING = False  # spares the import of typing; type checkers know the name
if TYPE_CHECKING:
    import multiprocessing
    from typing import Any

__all__ = [
    "ClusterError",
    "FastjobError",
    "NurseryError",
    "RemoteTraceback",
    "ResultPicklingError",
    "ResultUnpicklingError",
    "TaskError",
    "TaskPicklingError",
    "TaskTimeoutError",
    "TerminatedWorkerError",
    "UnpicklableExceptionError",
]

KEEP_GOING = "on_error='return' keeps the other results; retries=1 runs it again."
PLAIN_DATA = (
    "Return plain data instead, or use backend='threading', which pickles nothing."
)


def builtin_base(cls: type[BaseException]) -> Any:
    """The built-in class that an exception's class derives from first."""
    return next(c for c in cls.__mro__ if c.__module__ == "builtins")


def rebuild(
    cls: type[BaseException],
    fields: tuple[Any, ...],
    args: tuple[Any, ...],
    state: dict[str, Any],
) -> BaseException:
    """Make an exception again from its parts, without running its ``__init__``.

    ``pickle`` calls ``cls(*args)``, which fails, or changes the message, when the
    parameters of ``__init__`` are not the ``args`` of the exception.  Only the
    built-in base is initialised here, with ``fields``: it keeps some in C.
    """
    base = builtin_base(cls)
    error: BaseException = base.__new__(cls, *fields)
    base.__init__(error, *fields)
    error.args = args
    base.__setstate__(error, state)
    return error


def format_bytes(n: float) -> str:
    """Write a number of bytes for a person: ``format_bytes(2_500_000) == '2.5 MB'``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} bytes" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


class FastjobError(Exception):
    """Base of every error that fastjob raises on its own account."""

    def __reduce__(self) -> tuple[Any, ...]:
        state = self.__dict__.copy()
        return rebuild, (type(self), self.args, self.args, state)


class RemoteTraceback(Exception):
    """The traceback of a failed task, as text; the cause of the error raised.

    The cause that the task's exception had of its own is the cause of this one.

    Parameters
    ----------
    text : str
        The formatted traceback.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text.rstrip()}\n"


class OfTask(FastjobError):
    """Base of the errors that are about one task: which one, and what to call it.

    Parameters
    ----------
    index : int or None
        Place of the task in the input; None if it is not known.
    function, arguments : str
        The task, shortened.

    Attributes
    ----------
    index, function, arguments
    """

    def __init__(self, index: int | None, function: str, arguments: str = "") -> None:
        self.index = index
        self.function = function
        self.arguments = arguments
        super().__init__(self._message())

    @property
    def _number(self) -> str:
        return "a task" if self.index is None else f"task {self.index}"

    @property
    def _task(self) -> str:
        """The task in a message: ``task 17: f(3, k=2)``."""
        if not self.function:
            return self._number
        return f"{self._number}: {self.function}({self.arguments})"

    def _message(self) -> str:
        """The text of the error, from its attributes."""
        raise NotImplementedError


class TerminatedWorkerError(OfTask, RuntimeError):
    """A worker process died while it ran a task.

    Parameters
    ----------
    index : int or None
        Place of the task in the input; None if the worker ran none.
    function, arguments : str
        The task, shortened.
    pid : int or None
        The process that died.
    exitcode : int or None
        Exit code of the process, or minus the number of the signal that killed it.
    peak_memory : int or None
        Largest resident memory of the process, in bytes.
    probably_oom : bool
        Whether the kernel's counters say that memory had run out.
    """

    def __init__(
        self,
        index: int | None = None,
        function: str = "",
        arguments: str = "",
        *,
        pid: int | None = None,
        exitcode: int | None = None,
        peak_memory: int | None = None,
        probably_oom: bool = False,
    ) -> None:
        self.pid = pid
        self.exitcode = exitcode
        self.peak_memory = peak_memory
        self.probably_oom = probably_oom
        super().__init__(index, function, arguments)

    @property
    def signal_name(self) -> str | None:
        """Name of the signal that killed the worker, or None if it exited."""
        if self.exitcode is None or self.exitcode >= 0:
            return None
        import signal

        try:
            return signal.Signals(-self.exitcode).name
        except ValueError:  # a real-time signal has no name of its own
            return f"signal {-self.exitcode}"

    def _message(self) -> str:
        worker = (
            "A worker process" if self.pid is None else f"Worker process {self.pid}"
        )
        name = self.signal_name
        if name is not None:
            ending = f"was killed by {name}"
        elif self.exitcode is not None:
            ending = f"exited with code {self.exitcode}"
        else:
            ending = "died"
        parts = [f"{worker} {ending}"]
        if self.index is not None or self.function:
            parts[0] += f" while it ran {self._task}"
        parts[0] += "."
        if self.peak_memory:
            parts.append(f"Its peak memory was {format_bytes(self.peak_memory)}.")
        if self.probably_oom:
            parts.append(
                "It was probably out of memory: use fewer workers (n_jobs), smaller "
                "tasks, or max_memory_per_worker."
            )
        elif name in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT"):
            parts.append(
                "Compiled code crashed: run this task alone with n_jobs=1 under "
                "'python -X faulthandler' to see where."
            )
        elif name == "SIGKILL":
            parts.append("Somebody killed it, or the system ran out of memory.")
        elif name is None and self.exitcode is not None:
            parts.append("The task, or a library in it, ended the process.")
        parts.append(KEEP_GOING)
        return " ".join(parts)


class _Timeout(OfTask, TimeoutError):
    """A task ran for longer than ``timeout``.

    It is a `TimeoutError` and a ``multiprocessing.TimeoutError``.

    Parameters
    ----------
    index : int or None
        Place of the task in the input.
    function, arguments : str
        The task, shortened.
    timeout : float
        Seconds that it was allowed.
    pid : int or None
        The worker process that ran it, if it was a process.
    """

    def __init__(
        self,
        index: int | None,
        function: str,
        arguments: str,
        timeout: float,
        pid: int | None = None,
    ) -> None:
        self.timeout = timeout
        self.pid = pid
        super().__init__(index, function, arguments)

    def _message(self) -> str:
        ran_in = "" if self.pid is None else f" in worker process {self.pid}"
        return (
            f"{self._task} ran{ran_in} for longer than timeout={self.timeout:g} "
            f"seconds. Raise the timeout, or make the task smaller. {KEEP_GOING}"
        )


class TaskPicklingError(OfTask, PicklingError):
    """A task cannot be sent to another process.

    Parameters
    ----------
    index : int or None
        Place of the task in the input.
    function : str
        Name of its function.
    part : int, str or None
        What cannot be pickled: the position of an argument (from 0), the name of a
        keyword argument, or None for the function itself.
    type_name : str
        Type of that part.
    reason : str
        What pickle said.
    """

    def __init__(
        self,
        index: int | None,
        function: str,
        part: int | str | None,
        type_name: str,
        reason: str,
    ) -> None:
        self.part = part
        self.type_name = type_name
        self.reason = reason
        super().__init__(index, function)

    def _message(self) -> str:
        if self.part is None:
            what = "the function itself"
        elif isinstance(self.part, int):
            what = f"argument {self.part} (counted from 0)"
        else:
            what = f"argument {self.part!r}"
        return (
            f"Cannot send {self._number} ({self.function}) to a worker process: "
            f"{what}, of type {self.type_name}, cannot be pickled: {self.reason}. Make "
            "the object inside the task, pass what it is made from, or use "
            "backend='threading', which pickles nothing."
        )


class ResultPicklingError(OfTask, PicklingError):
    """What a task returned cannot be sent back to the caller.

    Parameters
    ----------
    index : int or None
        Place of the task in the input.
    function, arguments : str
        The task, shortened.
    type_name : str
        Type of the result.
    reason : str
        What pickle said.
    """

    def __init__(
        self,
        index: int | None,
        function: str,
        arguments: str,
        type_name: str,
        reason: str,
    ) -> None:
        self.type_name = type_name
        self.reason = reason
        super().__init__(index, function, arguments)

    def _message(self) -> str:
        return (
            f"The result of {self._task}, of type {self.type_name}, cannot be pickled: "
            f"{self.reason}. {PLAIN_DATA}"
        )


class ResultUnpicklingError(OfTask, UnpicklingError):
    """What a task returned arrived at the caller but cannot be rebuilt there.

    Parameters
    ----------
    index : int or None
        Place of the task in the input.
    function, arguments : str
        The task, shortened.
    reason : str
        What was raised when the result was unpickled; it is the cause, too.
    """

    def __init__(
        self, index: int | None, function: str, arguments: str, reason: str
    ) -> None:
        self.reason = reason
        super().__init__(index, function, arguments)

    def _message(self) -> str:
        return (
            f"The result of {self._task} was sent, but cannot be unpickled here: "
            f"{self.reason}. {PLAIN_DATA}"
        )


class UnpicklableExceptionError(FastjobError, RuntimeError):
    """Stands for an exception of a task that could not be brought to the caller.

    Parameters
    ----------
    type_name : str
        Full name of the original exception's type.
    text : str
        What the original exception said.
    traceback : str
        Formatted traceback of the task.
    reason : str
        Why the original could not be brought over.
    """

    def __init__(
        self, type_name: str, text: str, traceback: str = "", reason: str = ""
    ) -> None:
        self.type_name = type_name
        self.text = text
        self.traceback = traceback
        self.reason = reason
        original = f"{type_name}: {text}" if text else type_name
        super().__init__(
            f"A task raised {original}\n(The exception itself could not be pickled and "
            f"rebuilt here: {reason or 'unknown reason'}. Give its class a __reduce__ "
            "that works, or raise one made of plain data.)"
        )


class NurseryError(FastjobError, RuntimeError):
    """The process that starts the workers cannot be started, or has died.

    Parameters
    ----------
    what : str
        What happened.
    hint : str
        What can be done about it.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        self.what = what
        self.hint = hint or (
            "The next call starts a new one; if this happens again, look at the limits "
            "on processes, descriptors and memory ('ulimit -a'), or use "
            "backend='threading'."
        )
        super().__init__(f"{what} {self.hint}")


class ClusterError(FastjobError, RuntimeError):
    """A cluster (dask, ray) cannot be reached, or has lost what it was given.

    Parameters
    ----------
    what : str
        What happened, and what can be done about it.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(what)


class TaskError:
    """Stands in the results in the place of a task that failed.

    Parameters
    ----------
    index : int
        Place of the task in the input.
    exception : BaseException
        What the last attempt ended with.
    traceback : str
        Its formatted traceback, from where the task ran.
    attempts : int
        How many times it failed: one, and as often as ``retries`` had it run again.
    elapsed : float
        Seconds that the last attempt took; 0.0 if what failed was sending the task, or
        bringing its result back.

    Examples
    --------
    >>> TaskError(3, ValueError("negative"), "", 1, 0.25)
    TaskError(index=3, exception=ValueError('negative'), attempts=1, elapsed=0.25)
    """

    __slots__ = ("attempts", "elapsed", "exception", "index", "traceback")

    def __init__(
        self,
        index: int,
        exception: BaseException,
        traceback: str = "",
        attempts: int = 1,
        elapsed: float = 0.0,
    ) -> None:
        self.index = index
        self.exception = exception
        self.traceback = traceback
        self.attempts = attempts
        self.elapsed = elapsed

    def __repr__(self) -> str:
        return (
            f"TaskError(index={self.index}, exception={self.exception!r}, "
            f"attempts={self.attempts}, elapsed={self.elapsed:.3g})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return TaskError, (
            self.index,
            self.exception,
            self.traceback,
            self.attempts,
            self.elapsed,
        )


if TYPE_CHECKING:

    class TaskTimeoutError(_Timeout, multiprocessing.TimeoutError): ...


def _make_timeout_error() -> type[_Timeout]:
    import multiprocessing

    return type(
        "TaskTimeoutError",
        (_Timeout, multiprocessing.TimeoutError),
        {"__doc__": _Timeout.__doc__, "__module__": __name__},
    )


def __getattr__(name: str) -> Any:
    if name == "TaskTimeoutError":
        # Of two threads that come here at once, both get the class that is stored:
        # setdefault stores and returns in one step.
        return globals().setdefault(name, _make_timeout_error())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
