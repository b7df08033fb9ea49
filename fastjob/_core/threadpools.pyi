from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeAlias, TypeVar

from typing_extensions import Self

from fastjob._core.pools import Pool

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Limits: TypeAlias = (
    int | str | Mapping[str, int | None] | Sequence[Mapping[str, Any]] | None
)

USER_APIS: tuple[str, ...]

def threadpool_info() -> list[dict[str, Any]]: ...
def claim(owner: Hashable, wanted: dict[Pool, int]) -> None: ...
def release(owner: Hashable, pools: Iterable[Pool]) -> None: ...
def forget(owner: Hashable, pools: Iterable[Pool]) -> None: ...

class threadpool_limits:
    def __init__(self, limits: _Limits = None, user_api: str | None = None) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def restore_original_limits(self) -> None: ...
    def unregister(self) -> None: ...
    def get_original_num_threads(self) -> dict[str, int | None]: ...
    @classmethod
    def wrap(
        cls, limits: _Limits = None, user_api: str | None = None
    ) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]: ...
