"""Copies of the descriptors that the engine calls so, see ``_core/system.h``."""

from __future__ import annotations

import os
import sys


def duplicate(fd):
    """A copy of the descriptor of some shared memory."""
    if sys.platform != "win32":
        return os.dup(fd)
    import _winapi

    here = _winapi.GetCurrentProcess()
    return _winapi.DuplicateHandle(
        here, fd, here, 0, False, _winapi.DUPLICATE_SAME_ACCESS
    )
