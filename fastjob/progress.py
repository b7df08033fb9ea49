"""Progress of a call: a bar, a line, or a function of the user's.

The engine reports completed tasks through ``call.on_batch``, single ones together
(``call.report_interval``); the front end makes that the ``update`` of the object that
`start` returns.  Something is shown ten times a second at most, and the last time when
the call ends, in whatever way: what the engine had not reported by then is found in the
call's counters.

``update`` is called by one thread at a time, and needs no lock.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple, Protocol

__all__ = ["Progress", "ProgressBar", "start"]

INTERVAL = 0.1  # seconds; what the eye can follow
LINE_INTERVAL = 10.0  # seconds between lines in a log file


class Progress(NamedTuple):
    """How far a call has come; what ``progress=callable`` is called with.

    Attributes
    ----------
    done : int
        Tasks that have completed, failed ones among them.
    total : int or None
        Tasks in all; None if the input has no length.
    failed : int
        Tasks that failed for good.
    elapsed : float
        Seconds since the call began.
    """

    done: int
    total: int | None
    failed: int
    elapsed: float

    @property
    def rate(self) -> float:
        """Tasks a second so far."""
        return self.done / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def remaining(self) -> float | None:
        """Seconds left at the rate so far; None while nothing is known."""
        if self.total is None or not self.done:
            return None
        return (self.total - self.done) * self.elapsed / self.done


class Counts(Protocol):
    """The part of a call's counters that is shown."""

    completed_tasks: int
    failed_tasks: int
    retried_tasks: int


class Display(Protocol):
    """Something that can show a `Progress`."""

    interval: float

    def show(self, state: Progress, retried: int) -> None:
        """Show the state of the call."""

    def close(self) -> None:
        """Leave the screen in order; the last state has been shown."""


class ProgressBar:
    """Counts completed tasks and shows them from time to time.

    Parameters
    ----------
    display : Display
        What shows them.
    counters : Counts
        Failures and retries of the call.
    total : int or None
        Number of tasks, if it is known.
    clock : callable
        Gives seconds.
    """

    def __init__(
        self,
        display: Display,
        counters: Counts,
        total: int | None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._display = display
        self._counters = counters
        self._total = total
        self._clock = clock
        self._begin = clock()
        self._next = self._begin + display.interval
        self._done = 0
        self._shown = -1
        self._closed = False

    def update(self, n_done: int) -> None:
        """Count ``n_done`` more tasks as completed."""
        self._done += n_done
        now = self._clock()
        if now >= self._next or self._done == self._total:
            self._next = now + self._display.interval
            self._show(now)

    def close(self) -> None:
        """Show the final state; nothing happens the second time."""
        if self._closed:
            return
        self._closed = True
        try:
            self._done = max(self._done, self._counters.completed_tasks)
            if self._shown != self._done:
                self._show(self._clock())
        finally:
            self._display.close()

    def _show(self, now: float) -> None:
        self._shown = self._done
        counters = self._counters
        state = Progress(
            self._done, self._total, counters.failed_tasks, now - self._begin
        )
        self._display.show(state, counters.retried_tasks)


def start(
    progress: bool | str | Callable[[Progress], object],
    counters: Counts,
    total: int | None = None,
    label: str = "",
) -> ProgressBar:
    """Begin to show the progress of a call.

    Parameters
    ----------
    progress : True, "tqdm", "rich", "line" or callable
        True is a tqdm bar if tqdm is installed, otherwise a plain line on stderr.
        A callable is called with a `Progress`.
    counters : Counts
        Failures and retries of the call.
    total : int or None
        Number of tasks, if it is known.
    label : str
        Name of the call.

    Raises
    ------
    ValueError
        If ``progress`` is none of these.
    ImportError
        If the package asked for by name is not installed.
    """
    return ProgressBar(_choose(progress, total, label), counters, total)


def _choose(progress: Any, total: int | None, label: str) -> Display:
    if callable(progress):
        return _Callback(progress)
    if progress is True:
        try:
            return _Tqdm(total, label)
        except ImportError:
            return _Line(label)
    if progress == "line":
        return _Line(label)
    named: dict[str, type[_Tqdm] | type[_Rich]] = {"tqdm": _Tqdm, "rich": _Rich}
    display = named.get(progress) if isinstance(progress, str) else None
    if display is None:
        raise ValueError(
            "progress must be True, False, 'tqdm', 'rich', 'line' or a callable, not "
            f"{progress!r}."
        )
    try:
        return display(total, label)
    except ImportError as error:
        raise ImportError(
            f"progress={progress!r} needs a package that is not installed: "
            f"pip install {progress}"
        ) from error


def _troubles(failed: int, retried: int) -> str:
    """Failures and retries in words; empty if there are none."""
    words = [f"{failed} failed"] if failed else []
    words += [f"{retried} retried"] if retried else []
    return ", ".join(words)


def _format_seconds(seconds: float) -> str:
    """Write a duration: ``_format_seconds(3725) == '1:02:05'``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def format_line(state: Progress, retried: int, label: str = "") -> str:
    """Write a state on one line.

    Examples
    --------
    >>> format_line(Progress(50, 200, 2, 10.0), 1, "fit")
    'fit: 50/200 (25%), 5.0 tasks/s, 00:10 elapsed, 00:30 left, 2 failed, 1 retried'
    """
    if state.total:
        text = f"{state.done}/{state.total} ({100 * state.done // state.total}%)"
    else:
        text = f"{state.done} done"
    parts = [text, f"{state.rate:,.1f} tasks/s"]
    parts.append(f"{_format_seconds(state.elapsed)} elapsed")
    if state.remaining is not None and state.done != state.total:
        parts.append(f"{_format_seconds(state.remaining)} left")
    troubles = _troubles(state.failed, retried)
    parts += [troubles] if troubles else []
    return (f"{label}: " if label else "") + ", ".join(parts)


class _Callback:
    interval = INTERVAL

    def __init__(self, function: Callable[[Progress], object]) -> None:
        self._function = function

    def show(self, state: Progress, retried: int) -> None:
        self._function(state)

    def close(self) -> None:
        """Nothing is held."""


class _Line:
    """A line that is rewritten on a terminal, and a line now and then in a file."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._stream = sys.stderr
        self._tty = self._stream.isatty()
        self._width = 0
        self.interval = INTERVAL if self._tty else LINE_INTERVAL

    def show(self, state: Progress, retried: int) -> None:
        text = format_line(state, retried, self._label)
        if self._tty:
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        if self._tty:
            self._stream.write("\n")
            self._stream.flush()


class _Tqdm:
    interval = INTERVAL

    def __init__(self, total: int | None, label: str) -> None:
        tqdm = _tqdm_class()

        class Bar(tqdm):  # type: ignore[misc, valid-type]
            # Without it tqdm starts a thread that outlives the bar.
            monitor_interval = 0

        self._bar = Bar(
            total=total, desc=label or None, unit="task", mininterval=0, miniters=0
        )

    def show(self, state: Progress, retried: int) -> None:
        self._bar.set_postfix_str(_troubles(state.failed, retried), refresh=False)
        self._bar.update(state.done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


def _tqdm_class() -> Any:
    """The widget in a notebook that can show it, the text bar elsewhere."""
    from importlib.util import find_spec

    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    in_notebook = type(shell).__name__ == "ZMQInteractiveShell"
    if in_notebook and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as notebook_bar

        return notebook_bar
    from tqdm.std import tqdm as text_bar

    return text_bar


class _Rich:
    interval = INTERVAL

    def __init__(self, total: int | None, label: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:,.1f} tasks/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[red]{task.fields[troubles]}"),
            console=Console(stderr=True),
            auto_refresh=False,  # it would need a thread
        )
        self._task = self._bar.add_task(
            label or "tasks", total=total, rate=0.0, troubles=""
        )
        self._bar.start()

    def show(self, state: Progress, retried: int) -> None:
        self._bar.update(
            self._task,
            completed=state.done,
            rate=state.rate,
            troubles=_troubles(state.failed, retried),
            refresh=True,
        )

    def close(self) -> None:
        self._bar.stop()
