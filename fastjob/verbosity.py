"""What a call tells its user while it runs, in joblib's words.

The messages are a function of the counts of a call; nothing here prints.  A
``Parallel`` keeps the counts and writes what these functions return.
"""

from __future__ import annotations

from math import floor, log10, sqrt


def short_time(seconds: float) -> str:
    """Format a duration in eight columns or a few more.

    Parameters
    ----------
    seconds : float
        Duration in seconds.

    Returns
    -------
    str
        Seconds up to one minute, minutes above.

    Examples
    --------
    >>> short_time(3.5)
    '   3.5s'
    >>> short_time(90)
    ' 1.5min'
    """
    if seconds > 60:
        return f"{seconds / 60:4.1f}min"
    return f" {seconds:5.1f}s"


def is_quiet(index: int, verbose: int) -> bool:
    """Tell whether the message of completion number `index` is left out.

    Messages come at the squares of a unit that shrinks as `verbose` grows, so that
    a long call prints ever more rarely; above 10 every completion is reported.
    """
    if verbose > 10:
        return False
    if index == 0:
        return False
    unit = 0.5 * (11 - verbose) ** 2
    return int(sqrt((index + 1) / unit)) == int(sqrt(index / unit))


def width_of(n_tasks: int | None) -> int:
    """Columns in which counts are printed: those of the total, 3 if unknown."""
    return floor(log10(n_tasks)) + 1 if n_tasks else 3


def finished(completed: int, n_tasks: int | None, elapsed: float) -> str:
    """Return the last message of a call."""
    width = width_of(n_tasks)
    return (
        f"Done {completed:{width}d} out of {completed:{width}d} | elapsed: "
        f"{short_time(elapsed)} finished"
    )


def consuming(completed: int, n_tasks: int | None, elapsed: float) -> str:
    """Return the message while there is input left to take."""
    width = width_of(n_tasks)
    if n_tasks is not None:
        done = f"Done {completed:{width}d} out of {n_tasks:{width}d} "
    else:
        # The columns of "out of <total>", less those of "tasks".
        done = f"Done {completed:{width}d} tasks {'':{width + 2}s}"
    return f"{done}| elapsed: {short_time(elapsed)}"


def draining(
    completed: int,
    dispatched: int,
    n_tasks: int | None,
    elapsed: float,
    verbose: int,
    ahead: int,
) -> str | None:
    """Return the message once the input is used up, or None when it is left out.

    Parameters
    ----------
    completed, dispatched : int
        Tasks completed, and tasks there are.
    n_tasks : int or None
        Length of the input, if it has one.
    elapsed : float
        Seconds since the call began.
    verbose : int
        Roughly the number of messages to print for all tasks.
    ahead : int
        The window of ``pre_dispatch``, 0 for ``'all'``.
    """
    if completed:
        cursor = dispatched - completed + 1 - ahead
        every = dispatched // verbose + 1
        if completed + 1 == dispatched or cursor % every:
            return None
    width = width_of(n_tasks)
    remaining = elapsed / max(completed, 1) * (dispatched - completed)
    return (
        f"Done {completed:{width}d} out of {dispatched:{width}d} "
        f"| elapsed: {short_time(elapsed)} remaining: {short_time(remaining)}"
    )
