from typing import Any

from fastjob._core.arrays import Sharer

class Constant:
    number: int
    value: object
    uses: int

class Capture:
    epoch: int
    n_constants: int
    n_pickles: int
    bytes_pickled: int
    sharer: Sharer
    def __init__(
        self, sharer: Sharer, explicit: dict[int, Constant] | None = None
    ) -> None: ...
    def next_epoch(self) -> int: ...
    def lasting(self, value: object, number: int) -> Constant: ...
    def pickled(self, value: object, refer: Any) -> tuple[bytes, list[Any] | None]: ...

def type_name(value: object) -> str: ...
def function_name(f: object) -> str: ...
