"""The results of a call as an iterator."""

from __future__ import annotations

from fastjob._core.ending import Ending

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CUT = "The with block of this Parallel has ended, and this call with it."


class ResultStream(Ending):
    """The results of a call as an iterator; what ``return_as="generator"`` returns.

    Dropping it, or `close`, ends the call. One thread at a time may take from it.

    Parameters
    ----------
    stream : iterator
        The engine's, with a method `close`.
    finish : callable
        Called when the call has ended, with whether it ended early; more than once.
    """

    __slots__ = ("__weakref__", "_ended", "_finish", "_next", "_stream")

    def __init__(self, stream: Any, finish: Callable[[bool], None]) -> None:
        self._finish = finish
        self._stream = stream
        self._next = stream.__next__
        self._ended = False

    def close(self) -> None:
        """End the call; tasks that have not started are never run."""
        self._end(early=True)

    def cut(self) -> None:
        """End the call if it has not ended; reading on is an error then.

        Whoever leaves a with block may not know that results were still to be read.
        """
        if not self._ended:
            self._next = _raise_cut
            self._end(early=True)

    def _end(self, early: bool) -> None:
        self._ended = True
        # Both may be repeated: an interrupt can come in the middle of either.
        try:
            self._stream.close()
        finally:
            self._finish(early)
        if not early and self._next is _raise_cut:
            # The end that a reader in another thread has come to.
            _raise_cut()


def _raise_cut() -> Any:
    raise RuntimeError(CUT)
