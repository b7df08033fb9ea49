"""The environment at the beginning of each call, without looking at every variable.

Caller and worker both need it as it is now, and it hardly ever changes.  Copying and
comparing some thirty variables is a tenth of the instructions of a warm call of two
tasks; a `Snapshot` of the dict finds out by one number, or by addresses.
"""

from __future__ import annotations

import os

from fastjob._core.snapshot import Snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_last: tuple[Any, Snapshot, dict[Any, Any]] | None = None


def current() -> dict[Any, Any]:
    """Return a copy of the environment, as ``os.environ`` holds it: decoding is slow.

    The same object as long as nothing has changed; it must not be written to.
    """
    global _last
    values = getattr(os.environ, "_data", os.environ)
    if type(values) is not dict:  # somebody has put another mapping in its place
        return dict(values)
    last = _last
    if last is None or last[0] is not values or not last[1].same():
        # Before the copy: what another thread sets meanwhile is seen the next time.
        snapshot = Snapshot(values)
        last = _last = values, snapshot, values.copy()
    return last[2]
