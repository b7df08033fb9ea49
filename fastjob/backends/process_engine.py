"""The engine of the process backend: one call over worker processes."""

from __future__ import annotations

from sys import modules

import fastjob.warm  # noqa: F401  # its shutdown() must not need a descriptor to free some
from fastjob._core.arrays import Sharer
from fastjob._core.capture import Capture
from fastjob._core.dispatch import Dispatcher
from fastjob._pool import state
from fastjob._pool.memory import store_for, tidy
from fastjob._pool.pool import pool
from fastjob._pool.pump import Pump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from fastjob._core.call import Call
    from fastjob._core.results import ResultStream
    from fastjob._core.wake import Wake


class ProcessEngine:
    """Runs one call over worker processes."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def _dispatcher(self) -> Dispatcher:
        call = self.call
        sharer = Sharer(store_for(call.temp_folder), call.max_nbytes)
        sharing = modules.get("fastjob.sharing")
        explicit, live = (None, None) if sharing is None else sharing.current()
        capture = Capture(sharer, explicit)
        return Dispatcher(call, pool, capture, state.capture(call), live)

    def run(self, tasks: Iterator[Any]) -> list[Any]:
        """Run all tasks; the results in task order."""
        dispatcher = self._dispatcher()
        try:
            return dispatcher.run(tasks)
        finally:
            tidy()

    def stream(self, tasks: Iterator[Any]) -> Iterator[Any]:
        """Start the tasks; an iterator over the results."""
        return Pump(self.call.ordered).start(self.feeder(tasks))

    def feeder(self, tasks: Iterator[Any]) -> Callable[[ResultStream, Wake], None]:
        """What runs all tasks into a stream, in the state that holds now."""
        dispatcher = self._dispatcher()

        def feed(results: ResultStream, wake: Wake) -> None:
            try:
                dispatcher.run_into(tasks, results, wake)
            finally:
                tidy()

        return feed
