"""Which fastjob is measured, and the environment of the processes that measure it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: Set by some machines: the first two, for the sake of old processors, change BLAS
#: results; with the third a checkout is compiled by every interpreter that starts.
_REMOVED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PYTHONDONTWRITEBYTECODE")


def built_in_place() -> bool:
    """Tell whether the checkout holds compiled extensions."""
    return any((ROOT / "fastjob" / "_core").glob("call.*.so"))


def search_path() -> list[str]:
    """Return `sys.path` for a measuring process.

    The checkout comes first if fastjob is built in place; otherwise last, or its
    sources would hide the installed package.
    """
    root = str(ROOT)
    others = [path for path in sys.path if path not in ("", root)]
    return [root, *others] if built_in_place() else [*others, root]


def environment() -> dict[str, str]:
    """Return the environment of a measuring process."""
    return {name: value for name, value in os.environ.items() if name not in _REMOVED}


def program(code: str) -> list[str]:
    """Return the command that runs `code` in a new interpreter with `search_path`."""
    return [sys.executable, "-c", f"import sys; sys.path[:] = {search_path()}\n{code}"]
