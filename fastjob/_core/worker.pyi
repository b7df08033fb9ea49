from typing import Any

from fastjob._core.status import StatusPage
from fastjob._core.wire import Channel

class Worker:
    def __init__(
        self,
        channel: Channel,
        page: StatusPage,
        slot: int,
        caller: Any,
    ) -> None: ...
    def serve(self) -> None: ...

def resident_bytes(statm: str = ...) -> int: ...
