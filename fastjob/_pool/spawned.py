"""A worker that is an interpreter of its own, from its start to its end."""

from __future__ import annotations

import os
import sys

from fastjob._core.status import StatusPage
from fastjob._pool import child

if sys.platform == "win32":
    from fastjob._pool.hosting_windows import take_over
else:
    from fastjob._pool.hosting_posix import take_over


def main(slot: int, preload: tuple[str, ...], with_site: bool, *ends: int) -> None:
    """Run the worker of a slot.

    Parameters
    ----------
    slot : int
    preload : tuple of str
        Modules to import first.
    with_site : bool
        Whether modules are found through hooks that ``site`` installs.
    *ends : int
        What `Host.ends` has said.
    """
    code = 1
    try:
        given = take_over(slot, *ends)
        if given is None:
            return
        link, page, caller = given
        if with_site:
            child.use_site()
        child.preload(preload)
        child.serve(link, StatusPage(page), slot, caller)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        child.flush_streams()
        os._exit(code)
