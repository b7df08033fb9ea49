from typing import final

@final
class Region:
    fd: int
    size: int

def available_memory() -> int: ...
def temporary_folder() -> str | None: ...
def total_memory() -> int: ...
