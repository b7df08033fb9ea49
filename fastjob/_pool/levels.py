"""Log levels of the caller, for the loggers of a worker.

Only levels: handlers stay in the caller (see ``notes.py``).  A level set by assignment
instead of ``setLevel`` is seen when the next one is set properly.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging

    #: What `logging.disable` was told; name and level of loggers, "root" included.
    Levels = tuple[int, dict[str, int]]

#: Put into the root logger's cache, which is emptied when any level changes.
_MARK = "fastjob has seen the levels"

_last: Levels | None = None


def capture_levels() -> Levels | None:
    """Return the levels that were set in this process; None without ``logging``.

    The same object as long as nothing changes: there may be hundreds of loggers.
    """
    global _last
    if "logging" not in sys.modules:
        return None
    import logging

    # There is none while `logging` is being imported by another thread.
    root = getattr(logging, "root", None)
    if root is None:
        return None
    cache = getattr(root, "_cache", None)
    if _last is not None and cache is not None and _MARK in cache:
        return _last
    if cache is not None:
        cache[_MARK] = True  # before they are read: a change meanwhile is seen
    levels = {"root": root.level}
    for name, logger in list(root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            levels[name] = logger.level
    _last = (root.manager.disable, levels)
    return _last


class LevelKeeper:
    """In a worker: keeps the loggers at the caller's levels."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[logging.Logger, int]] = {}
        self.disabled = 0

    def adopt(self, levels: Levels | None) -> None:
        """Set new levels; unset those that only an earlier state had."""
        if levels is None:
            return
        import logging

        self.disabled, wanted = levels
        for name in self.kept.keys() - wanted.keys():
            self.kept[name][0].setLevel(logging.NOTSET)
        self.kept = {
            name: (logging.getLogger(name), level) for name, level in wanted.items()
        }
        self.refresh()

    def refresh(self) -> None:
        """Undo what tasks, or modules that they imported, did to the levels."""
        if not self.kept:
            return
        import logging

        for logger, level in self.kept.values():
            if logger.level != level:
                logger.setLevel(level)
        if logging.root.manager.disable != self.disabled:
            logging.disable(self.disabled)
