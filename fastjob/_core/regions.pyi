from typing import final

@final
class Region:
    fd: int
    size: int

def available_memory() -> int: ...
def total_memory() -> int: ...
