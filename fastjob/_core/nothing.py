"""A function in Python's own bytecode, which compiled code cannot be."""

from __future__ import annotations


def nothing() -> None:
    """Do nothing; exceptions set in this thread from outside are raised on the way."""
