import pickle
from collections.abc import Callable
from typing import Any, final

from typing_extensions import Buffer

from fastjob._core.lending import Link
from fastjob._core.segments import Block, Store

RESULT_MIN_NBYTES: int

@final
class Sharer:
    store: Store
    min_nbytes: int
    reuse: bool
    epoch: int
    @property
    def comparisons(self) -> int: ...
    def __init__(
        self, store: Store, min_nbytes: int, *, reuse: bool = True
    ) -> None: ...
    def __call__(self, buffer: pickle.PickleBuffer) -> bool: ...
    def blocks(self) -> list[Block]: ...
    def clear(self) -> None: ...
    def dispatch_table(self) -> dict[type, Callable[[Any], tuple[Any, ...]]]: ...

def encode(
    obj: object, sharer: Sharer, pickler_class: type[pickle.Pickler] = ...
) -> tuple[bytes, list[Block]]: ...
def decode(data: Buffer, tokens: bytes, link: Link | None, mode: str | None) -> Any: ...
