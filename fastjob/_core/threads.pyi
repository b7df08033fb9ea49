from collections.abc import Callable, Iterable
from typing import Any

from fastjob._core.call import Call
from fastjob._core.results import ResultIterator

class ThreadEngine:
    def __init__(
        self, call: Call, enter: Callable[[Any], object] | None = None
    ) -> None: ...
    def run(self, tasks: Iterable[Any]) -> list[Any]: ...
    def stream(self, tasks: Iterable[Any]) -> ResultIterator: ...
