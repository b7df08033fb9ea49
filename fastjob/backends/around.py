"""What a class derived from a native backend has called around each call."""

from __future__ import annotations

from contextlib import ExitStack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from fastjob.backends.base import Engine, ParallelBackendBase


class SurroundedEngine:
    """A native engine, and the methods of a backend that surround its call.

    Parameters
    ----------
    backend : ParallelBackendBase
        Whose `start_call` and `stop_call` are called before and after the call, and
        whose `retrieval_context` is held while it runs.
    engine : Engine
        What runs it.
    """

    def __init__(self, backend: ParallelBackendBase, engine: Engine) -> None:
        self._backend = backend
        self._engine = engine

    def _begin(self) -> ExitStack:
        """Begin the call; closing what is returned ends it."""
        begun = ExitStack()
        try:
            self._backend.start_call()
            begun.callback(self._backend.stop_call)
            begun.enter_context(self._backend.retrieval_context())
        except BaseException:
            begun.close()
            raise
        return begun

    def run(self, tasks: Iterator[Any]) -> list[Any]:
        """Run all tasks and return their results in order."""
        begun = self._begin()
        try:
            return self._engine.run(tasks)
        finally:
            begun.close()

    def stream(self, tasks: Iterator[Any]) -> SurroundedStream:
        """Start the tasks and return an iterator over their results."""
        begun = self._begin()
        try:
            stream = self._engine.stream(tasks)
        except BaseException:
            begun.close()
            raise
        begun.callback(stream.close)
        return SurroundedStream(stream, begun)


class SurroundedStream:
    """The results of such a call as they come."""

    def __init__(self, stream: Iterator[Any], begun: ExitStack) -> None:
        self._stream = stream
        self._begun = begun

    def __iter__(self) -> SurroundedStream:
        return self

    def __next__(self) -> Any:
        return next(self._stream)

    def close(self) -> None:
        """End the call; harmless the second time."""
        self._begun.close()
