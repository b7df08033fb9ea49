from typing import final

@final
class Loaded:
    @property
    def names(self) -> tuple[str, ...]: ...
