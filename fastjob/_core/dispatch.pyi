from collections.abc import Iterator
from typing import Any

from fastjob._core.call import Call
from fastjob._core.capture import Capture
from fastjob._core.results import ResultStream
from fastjob._core.status import StatusPage
from fastjob._core.wake import Wake
from fastjob._core.wire import Channel

class Peer:
    channel: Channel
    page: StatusPage
    number: int
    profile: object
    lost: bool
    retiring: bool
    pid: int
    def __init__(
        self, channel: Channel, page: StatusPage, number: int, profile: object
    ) -> None: ...
    def fate(self) -> tuple[str, int, int, int]: ...
    def usable(self) -> bool: ...
    def close(self) -> None: ...
    def forget(self) -> None: ...
    def poll_closed(self) -> bool: ...

class Dispatcher:
    def __init__(
        self, call: Call, pool: Any, capture: Capture, state: bytes
    ) -> None: ...
    def run(self, tasks: Iterator[Any]) -> list[Any]: ...
    def run_into(
        self, tasks: Iterator[Any], stream: ResultStream, wake: Wake
    ) -> None: ...
