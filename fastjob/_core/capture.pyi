from collections.abc import Callable
from typing import Any

class Capture:
    epoch: int
    n_constants: int
    n_pickles: int
    bytes_pickled: int
    def __init__(
        self,
        store: Callable[[Any], Any] | None = None,
        reducers: dict[type, Any] | None = None,
    ) -> None: ...

def type_name(value: object) -> str: ...
def function_name(f: object) -> str: ...
