from collections.abc import Callable
from typing import Any, ParamSpec, TypeAlias, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

Task: TypeAlias = tuple[Callable[..., _R], tuple[Any, ...], dict[str, Any]]

def delayed(function: Callable[_P, _R]) -> Callable[_P, Task[_R]]: ...
def checked_task(item: Any, index: int) -> Task[Any]: ...
