"""The backend that runs the tasks of a call one after the other in the caller."""

from __future__ import annotations

from fastjob._core.sequential import SequentialEngine
from fastjob.backends.base import ParallelBackendBase

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

    from fastjob._core.call import Call


class SequentialBackend(ParallelBackendBase):
    """A plain loop in the calling thread, for ``n_jobs=1`` and for nested calls.

    A task runs when the loop, or the reader of a generator, comes to it.  ``timeout``
    is not applied: nobody else is there to look at a clock.
    """

    uses_threads = True
    supports_sharedmem = True
    valid_options: ClassVar[frozenset[str] | None] = frozenset()

    @property
    def supports_timeout(self) -> bool:
        return False

    @property
    def supports_return_generator(self) -> bool:
        return True

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return 1, whatever is asked for.

        Raises
        ------
        ValueError
            If `n_jobs` is 0.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        return 1

    def open_call(self, call: Call) -> Any:
        """Return an engine for one call."""
        return SequentialEngine(call)
