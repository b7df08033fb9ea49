"""A short text that is equal for equal results, so that sides can be compared.

Sides run in different processes; sending 640 MB of results back to compare them
would cost more than the rows.
"""

from __future__ import annotations

import math
import zlib
from typing import Any


def digest(value: Any) -> str:
    """Return the digest of nested lists, tuples, numbers, texts and arrays."""
    return f"{_checksum(value, 0):08x}"


def _checksum(value: Any, seed: int) -> int:
    if isinstance(value, (list, tuple)):
        seed = zlib.crc32(f"{len(value)}[".encode(), seed)
        for item in value:
            seed = _checksum(item, seed)
        return seed
    if hasattr(value, "__array_interface__") and getattr(value, "ndim", 0):
        seed = zlib.crc32(f"{value.dtype.str}{value.shape}".encode(), seed)
        return zlib.crc32(memoryview(value).cast("B"), seed)
    if hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, (bool, int, float, str, bytes, type(None))):
        raise TypeError(f"a benchmark result of type {type(value).__name__}")
    return zlib.crc32(repr(value).encode() + b",", seed)


def numbers(value: Any) -> list[float]:
    """Flatten nested lists, tuples and arrays of numbers to one list of floats."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in numbers(item)]
    return [float(value)]


def equal(first: Any, second: Any) -> bool:
    """Compare two digests, or two lists of floats to 9 digits."""
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(
            math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
            for a, b in zip(first, second, strict=True)
        )
    return bool(first == second)
