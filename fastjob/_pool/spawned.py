"""A worker that is an interpreter of its own, from its start to its end.

The caller has put the worker's socket at descriptor 0, the status page at 3 and the
lifeline at 4 (`spawn.Spawner`), and made the process the leader of its group.
"""

from __future__ import annotations

import os
import sys

from fastjob._core.lifeline import hold
from fastjob._core.status import StatusPage
from fastjob._pool import child
from fastjob._pool.starter import FAREWELL

PAGE, LIFELINE = 3, 4


def main(slot: int, preload: tuple[str, ...], with_site: bool) -> None:
    """Run the worker of a slot."""
    code = 1
    try:
        try:
            hold(LIFELINE, FAREWELL)
        except OSError as error:
            StatusPage(PAGE).cannot_begin(slot, error.errno or 0)
            return
        link = child.take_over(LIFELINE + 1, with_site)
        for fd in (PAGE, LIFELINE):
            os.set_inheritable(fd, False)
        child.preload(preload)
        child.serve(link, StatusPage(PAGE), slot)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        child.flush_streams()
        os._exit(code)
