from collections.abc import Iterator
from typing import Any

from fastjob._core.call import Call
from fastjob._core.capture import Capture
from fastjob._core.results import ResultStream
from fastjob._core.wake import Wake

class Dispatcher:
    def __init__(
        self,
        call: Call,
        pool: Any,
        capture: Capture,
        state: bytes,
        live: set[int] | None = None,
    ) -> None: ...
    def run(self, tasks: Iterator[Any]) -> list[Any]: ...
    def run_into(
        self, tasks: Iterator[Any], stream: ResultStream, wake: Wake
    ) -> None: ...
