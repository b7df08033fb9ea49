"""What forks of the user's process make necessary, on systems that have forks."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def _no_forks(**hooks: Callable[[], object]) -> None:
    """Stand in for `os.register_at_fork` where nothing ever forks."""


register_at_fork = getattr(os, "register_at_fork", _no_forks)
