from typing import Literal, final

from typing_extensions import Buffer

from fastjob._core.regions import Region

@final
class View(Buffer):
    region: Region
    offset: int
    nbytes: int
    mode: Literal["r", "r+", "c"]
    def __len__(self) -> int: ...
