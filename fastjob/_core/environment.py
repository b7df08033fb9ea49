"""Environment variables that every call looks for, and hardly anybody sets.

``os.environ`` tells that a variable is missing by an exception of its own making, which
costs 1.5 us, six times a call.  The mapping below it, of bytes, just says so.
"""

from __future__ import annotations

import os


def variable(name: bytes) -> str | None:
    """Return a variable's value as it is now; None if it is not set."""
    environ = os.environ
    values = getattr(environ, "_data", None)
    if values is None or os.name == "nt":  # another mapping, or one of text
        return environ.get(os.fsdecode(name))
    value: bytes | None = values.get(name)
    return None if value is None else os.fsdecode(value)
