from fastjob._core.lending import Link
from fastjob._core.status import StatusPage
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
