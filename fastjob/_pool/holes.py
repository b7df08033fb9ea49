"""Fill the holes in the nursery's memory, so that workers share more of it.

CPython keeps small objects in pools, one for each size. When a library has been
imported, thousands of places are free, here and there, where short-lived objects were.
A worker's own objects would go there, and each of them would make a page private that
all workers share. With the holes filled, they lie close together in pages of their own.

The holes of a size are filled when new objects come to lie in a row from the start of
a pool, which is then a new one. Where that never happens, because another allocator is
in use, nothing is gained, and what was allocated is given back.
"""

from __future__ import annotations

#: From Python 3.10 on, in bytes; the first object follows the header.
POOL_SIZE = 1 << 14
HEADER_SIZE = 48

#: Objects from 48 bytes on are filled with `bytes`; smaller ones waste little.
SMALLEST = 48
#: The largest object that lives in a pool, and the step from size to size.
LARGEST = 512
STEP = 16

#: Objects that are tried for one size. After numpy there are up to 300 holes of a size,
#: 1600 in all, 270 kB; to fill them takes a millisecond.
MOST = 4096

#: Objects in a row that tell a new pool from one whose first object was dropped.
ENOUGH = 8

#: What fills the holes; never given back.
_filling: list[object] = []


def fill_holes() -> int:
    """Fill the holes that there are now.

    Returns
    -------
    int
        How many there were, as far as can be told.
    """
    before = len(_filling)
    for size in range(SMALLEST, LARGEST + 1, STEP):
        _filling.extend(_fill(size))
    return len(_filling) - before


def _fill(size: int) -> list[object]:
    """Return objects in all holes of a size; none if a new pool cannot be told."""
    length = size - b"".__sizeof__()
    mine: list[object] = []
    place = in_row = 0
    for _ in range(MOST):
        block = bytes(length)
        if in_row and id(block) == place + size:
            in_row += 1
        else:
            in_row = id(block) % POOL_SIZE == HEADER_SIZE
        place = id(block)
        mine.append(block)
        if in_row == ENOUGH:
            return mine[:-ENOUGH]
    return []
