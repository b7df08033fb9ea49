"""Objects that many calls use: pickled once, and sent to each worker once.

Within one call this happens by itself. `share` does it across calls: for a table or a
fitted model that call after call is passed to tasks.
"""

from __future__ import annotations

from _thread import allocate_lock

from fastjob._core.forks import register_at_fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Generic, TypeVar

    from fastjob._core.capture import Constant

    T = TypeVar("T")
else:  # importing fastjob does not import typing
    T = None
    Generic = type(
        "Generic", (), {"__class_getitem__": classmethod(lambda cls, _: cls)}
    )

__all__ = ["share"]

#: Numbers of shared objects have this bit (`is_lasting` in ``_core/wire.pxd``).
FIRST_NUMBER = 1 << 31

_lock = allocate_lock()
_next_number = FIRST_NUMBER
_shared: dict[int, Any] = {}  # id -> Constant, for the process engine
_live: set[int] = set()  # their numbers


class share(Generic[T]):
    """Share an object with the workers of all calls to come.

    While it is shared, a task that has the object as an argument gets a copy that its
    worker has unpickled once. As a ``with`` block it holds inside the block; called
    plainly, until `close`, or until what it returned is dropped. A forked child shares
    nothing until it calls `share` itself.

    Parameters
    ----------
    obj : object
        What to share; it is pickled now. Do not change it while it is shared: workers
        would not see the change. A task that changes its copy changes what later
        tasks in the same worker get.

    Attributes
    ----------
    value : object
        `obj`; pass this to tasks.

    Raises
    ------
    TaskPicklingError
        If it cannot be pickled.

    Notes
    -----
    Threads and plain loops share everything anyway: for them it changes nothing.

    Examples
    --------
    >>> from fastjob import Parallel, delayed, share
    >>> table = {word: len(word) for word in ("many", "words")}
    >>> with share(table):
    ...     Parallel(n_jobs=2)(delayed(dict.get)(table, w) for w in ("many", "words"))
    [4, 5]
    """

    value: T

    def __init__(self, obj: T) -> None:
        from fastjob._core.arrays import Sharer
        from fastjob._core.capture import Capture
        from fastjob._pool.memory import store_for

        global _next_number
        self.value = obj
        with _lock:
            number = _next_number
            _next_number += 1
        # Buffers of any size from a page on: they too shall be sent only once.
        capture = Capture(Sharer(store_for(None), 1 << 16))
        constant = capture.lasting(obj, number)
        self._constant: Constant | None = constant
        with _lock:
            _shared[id(obj)] = constant
            _live.add(number)

    def close(self) -> None:
        """Stop sharing: workers drop their copies when they next hear from us."""
        constant, self._constant = self._constant, None  # its memory is free now
        if constant is not None:
            with _lock:
                if _shared.get(id(self.value)) is constant:
                    del _shared[id(self.value)]
                _live.discard(constant.number)

    def __enter__(self) -> T:
        return self.value

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "what share() returns is no argument for tasks; pass the shared object "
            "itself, which is its attribute `value`"
        )

    def __del__(self) -> None:
        # A finalizer may run while this very thread holds the lock: it only notes.
        constant = getattr(self, "_constant", None)
        if constant is not None:
            _dropped.append((id(self.value), constant))


_dropped: list[tuple[int, Any]] = []


def current() -> tuple[dict[int, Any], set[int]]:
    """Return what is shared now, by identity, and the numbers."""
    with _lock:
        while _dropped:
            key, constant = _dropped.pop()
            if _shared.get(key) is constant:
                del _shared[key]
            _live.discard(constant.number)
        return dict(_shared), set(_live)


def _forget() -> None:
    """In a forked child: the memory of what is shared is the parent's to use again."""
    global _lock
    _lock = allocate_lock()
    _shared.clear()
    _live.clear()
    _dropped.clear()


register_at_fork(after_in_child=_forget)
