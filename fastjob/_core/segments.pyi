import os
from typing import final

from typing_extensions import Buffer

from fastjob._core.regions import Region

@final
class Block(Buffer):
    nbytes: int
    offset: int
    region: Region
    own: bool
    def __len__(self) -> int: ...

@final
class Store:
    warm_limit: int
    idle_seconds: float
    copies: int
    copied_bytes: int
    live_blocks: int
    live_bytes: int
    warm_bytes: int
    region_count: int
    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        warm_limit: int | None = None,
        idle_seconds: float = 30.0,
    ) -> None: ...
    def put(self, buffer: Buffer) -> Block: ...
    def allocate(self, nbytes: int) -> Block: ...
    def collect(self) -> bool: ...
    def close(self) -> None: ...
