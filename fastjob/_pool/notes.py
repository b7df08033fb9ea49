"""Warnings and log records of tasks, on their way to the caller.

In a worker, `Notes` takes the place of what would show a warning or handle a record.
Each note is sent at once, as a frame of its own between the replies: whoever looks at
a log sees it in time, nothing gathers, and a worker that says more than its caller
reads waits for it.  In the caller, `hear` gives a warning to the caller's filters and
a record to the caller's loggers, in the thread that runs the call.

What is left to the worker:

- its warning filters, which are the caller's, have the first word, so that
  ``catch_warnings`` in a task works; "once a place" means once a call in each worker,
  and the caller's own filters see to the rest;
- a record that a handler of the worker takes (``logging.basicConfig`` in a task or an
  initializer, a library that writes a file) is not sent to be shown twice.

Who may write to the socket
---------------------------
Notes may only be sent while the worker has a batch: an idle worker is expected to be
silent.  Tasks may have threads, and an object's end can say something in the middle of
anything.  So whoever writes holds `lock`:

1. The worker takes the lock for each reply; with the last one of a batch, `open`
   becomes False before the lock is released.
2. Any thread takes it to send a note, and looks at `open` when it has it.  If that is
   False the note waits, for the next batch; of those the newest `MOST_WAITING` stay.
3. A thread that already holds the lock (an object's end, while a frame is put together)
   leaves its note to wait.
"""

from __future__ import annotations

import _pickle as pickle  # the module around it takes 4 ms to import
import sys
import warnings
from _thread import RLock
from collections import deque

from fastjob._core.forks import register_at_fork
from fastjob._core.pickling import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from collections.abc import Callable
    from typing import Any

#: Notes that are kept while no batch is there to send them with.
MOST_WAITING = 1000

#: Characters of a message that are sent.
MOST_TEXT = 1 << 20

#: What every log record has; all else was added by the user.
_CORE = frozenset(
    {
        *("name", "msg", "args", "levelname", "levelno", "pathname", "filename"),
        *("module", "exc_info", "exc_text", "stack_info", "lineno", "funcName"),
        *("created", "msecs", "relativeCreated", "thread", "threadName"),
        *("processName", "process", "taskName"),
    }
)


# -- in a worker ----------------------------------------------------------------------


class Notes:
    """Sends what the tasks of this worker say.

    Attributes
    ----------
    send : callable or None
        Writes one note to the caller; set by the worker's loop.
    open : bool
        Whether the worker has a batch; set by the worker's loop.
    """

    def __init__(self) -> None:
        self.send: Callable[[bytes], object] | None = None
        self.open = False
        self.forwarding = False
        self.lock = RLock()
        self.waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
        self.show = warnings.showwarning
        self.call_handlers: Any = None
        self.by_default: list[logging.Handler] = []
        register_at_fork(after_in_child=self._after_fork)

    def patch_logging(self) -> None:
        """See every record before the handlers do; harmless when repeated."""
        if self.call_handlers is not None:
            return
        import logging

        root = logging.root
        basic_config = logging.basicConfig
        self.call_handlers = call_handlers = logging.Logger.callHandlers

        def taken_or_sent(logger: logging.Logger, record: logging.LogRecord) -> None:
            if self.forwarding and not has_handler(logger, self.by_default):
                self._say(packed_record(record))
            else:
                call_handlers(logger, record)

        def configure(**options: Any) -> None:
            if options:
                basic_config(**options)
            elif not self.forwarding and not root.handlers:
                # What `logging.error` does of itself: nobody has asked for it.
                basic_config()
                self.by_default = root.handlers[:]

        logging.Logger.callHandlers = taken_or_sent  # type: ignore
        logging.basicConfig = configure

    def forward(self) -> None:
        """Begin to forward; harmless when repeated."""
        self.forwarding = True
        warnings.showwarning = self._warned

    def keep(self) -> None:
        """Leave warnings and records to this process."""
        if self.forwarding:
            self.forwarding = False
            if warnings.showwarning == self._warned:
                warnings.showwarning = self.show

    def _warned(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        """Take the place of `warnings.showwarning`."""
        if file is not None:
            self.show(message, category, filename, lineno, file, line)
            return
        self._say(packed_warning(message, category, filename, lineno))

    def _say(self, note: bytes) -> None:
        """Send a note, or let it wait."""
        self.waiting.append(note)
        # Said by a signal handler or a finalizer while this thread writes: it waits.
        if self.open and not self.lock._is_owned():  # type: ignore[attr-defined]
            with self.lock:
                self.send_waiting()

    def send_waiting(self, last: bool = False) -> None:
        """Send what waits, under `lock`; with `last` no more until the next batch."""
        while self.open and self.waiting and self.send is not None:
            try:
                self.send(self.waiting.popleft())
            except (BrokenPipeError, ConnectionResetError):
                self.open = False  # nobody listens; the worker's loop will see it
        if last:
            self.open = False

    def _after_fork(self) -> None:
        """In a child of a task, which is no worker: let it speak for itself."""
        self.lock = RLock()
        self.open = False
        self.waiting.clear()
        self.keep()


def has_handler(logger: logging.Logger, but: list[logging.Handler]) -> bool:
    """Whether a handler in this process takes the records of a logger."""
    import logging

    one: logging.Logger | None = logger
    while one is not None:
        for handler in one.handlers:
            if not isinstance(handler, logging.NullHandler) and handler not in but:
                return True
        one = one.parent if one.propagate else None
    return False


def packed_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int
) -> bytes:
    """Pickle a warning: itself if that is possible, and enough to make it up."""
    known = next(c for c in category.__mro__ if c.__module__ == "builtins")
    itself = pickled(message if isinstance(message, Warning) else category(message))
    text = shortened(str(message))
    module = module_of(filename, lineno)
    return pickle.dumps((None, itself, known, text, filename, lineno, module))


def packed_record(record: logging.LogRecord) -> bytes:
    """Pickle a log record, its message made up and its traceback as text."""
    import logging

    facts = dict(record.__dict__)
    try:
        facts["msg"] = shortened(record.getMessage())
    except Exception as error:
        # The handler that would have printed this error is in the caller.
        facts["msg"] = f"{record.msg!r} % {record.args!r}: {error!r}"
    facts["args"] = None
    if record.exc_info and not record.exc_text:
        facts["exc_text"] = logging.Formatter().formatException(record.exc_info)
    facts["exc_info"] = None
    extra = {name: facts.pop(name) for name in list(facts) if name not in _CORE}
    return pickle.dumps((facts, pickled(extra) if extra else b""))


def pickled(value: Any) -> bytes:
    """Pickle something of the user; nothing if it cannot be, or is huge."""
    try:
        data = dumps(value)
    except Exception:
        return b""
    return data if len(data) <= MOST_TEXT else b""


def shortened(text: str) -> str:
    """Return a message, cut if it is huge."""
    return text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + "..."


def module_of(filename: str, lineno: int) -> str | None:
    """Return the name of the module whose code is at the place of a warning.

    Filters and the caller's "once a place" go by it. None if no running code is there.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_lineno == lineno and frame.f_code.co_filename == filename:
            name = frame.f_globals.get("__name__")
            return name if isinstance(name, str) else None
        frame = frame.f_back  # type: ignore[assignment]
    return None


# -- in the caller --------------------------------------------------------------------

#: For "once a place" where the place is in no module of this process.
_registries: dict[str, dict[Any, Any]] = {}


def hear(data: bytes) -> None:
    """Show a warning, or handle a record, of a worker as if it were of this process.

    An exception from there, such as a filter that turns the warning into an error, is
    raised.
    """
    note = pickle.loads(data)
    if note[0] is None:
        hear_warning(*note[1:])
    else:
        hear_record(*note)


def hear_warning(
    itself: bytes,
    known: type[Warning],
    text: str,
    filename: str,
    lineno: int,
    module: str | None,
) -> None:
    """Give a warning to the filters of this process."""
    message = unpickled(itself)
    if not isinstance(message, Warning):
        message = known(text)
    owner = sys.modules.get(module or "")
    if owner is not None:
        registry = owner.__dict__.setdefault("__warningregistry__", {})
    else:
        if len(_registries) > MOST_WAITING:
            _registries.clear()
        registry = _registries.setdefault(filename, {})
    place = module or filename.removesuffix(".py")
    warnings.warn_explicit(
        message, type(message), filename, lineno, module=place, registry=registry
    )


def hear_record(facts: dict[str, Any], extra: bytes) -> None:
    """Give a log record to the loggers of this process."""
    import logging

    logger = logging.getLogger(facts["name"])
    if logger.isEnabledFor(facts["levelno"]):
        record = logging.makeLogRecord(facts)
        more = unpickled(extra)
        if isinstance(more, dict):
            record.__dict__.update(more)
        logger.handle(record)


def unpickled(data: bytes) -> Any:
    """Return what `pickled` was given; None if it cannot be made here."""
    if not data:
        return None
    try:
        return loads(data)
    except Exception:
        return None
