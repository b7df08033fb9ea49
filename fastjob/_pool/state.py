"""What a worker must share with its caller besides the task itself.

The caller's environment, working directory, search path, command line, warning filters,
log levels and context variables, and the key of its ``multiprocessing`` managers, can
change between two calls. `capture` takes them at the start of a call; a worker adopts
them before its first task of that call (`Adopted`). A worker that has been used before
therefore sees what a new one would: what tasks of earlier calls did to this state is
undone, and a worker whose modules have changed on disk ends.
"""

from __future__ import annotations

import os
import sys
import warnings

from fastjob import inner_threads
from fastjob._core.pickling import dumps, loads
from fastjob._pool.environ import current
from fastjob._pool.levels import LevelKeeper, capture_levels
from fastjob._pool.lines import flush_all
from fastjob._pool.memory import store_for
from fastjob._pool.modules import ModuleWatch
from fastjob._pool.notes import Notes
from fastjob._pool.spare import Spare
from fastjob.active import configuration
from fastjob.variables import Variables, capture_variables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from fastjob._core.call import Call
    from fastjob._core.segments import Store

    Settings = tuple[bool, bool, float, int, int, str | None]

#: Seconds that a worker stays without work, unless ``idle_worker_timeout`` says else.
IDLE_SECONDS = 300.0

#: What was last captured, and its pickle: most calls differ in nothing.
_last: tuple[tuple[Any, ...], bytes] | None = None


def capture(call: Call) -> bytes:
    """Pickle the state that the workers of a call must adopt.

    Equal states give the same object, so that telling a worker what it knows already
    costs one comparison of addresses.
    """
    global _last
    options = call.options
    initializer = pickled_initializer(options)
    key = (
        current(),
        working_directory(),
        sys.path[:],
        [str(argument) for argument in sys.argv],
        current_filters()[:],
        capture_levels(),
        capture_variables(),
        call.n_jobs,
        call.inner_max_num_threads,
        inner_threads.core_budget(),
        call.nested,
        call.return_errors,
        call.show_values,
        call.forward_logs,
        call.max_nbytes,
        call.mmap_mode,
        call.temp_folder,
        authentication_key(),
        {name: value for name, value in options.items() if name != "initargs"},
        initializer,
    )
    last = _last
    if last is not None and last[0] == key:
        return last[1]
    share = inner_threads.default_share(call.n_jobs)
    limit = call.inner_max_num_threads
    environ = dict(os.environ)
    for name in inner_threads.VARIABLES:
        environ.pop(name, None)
    environ.update(inner_threads.user_settings())
    data = dumps(
        {
            "environ": environ,
            "cwd": key[1],
            "path": key[2],
            "filters": plain_filters(),
            "forward": call.forward_logs,
            "argv": key[3],
            "levels": key[5],
            "variables": key[6],
            "share": share,
            "threads": (share, False) if limit is None else (limit, True),
            "nested": call.nested,
            "initializer": initializer,
            "preload": tuple(options.get("preload") or ()),
            "settings": (
                call.return_errors,
                call.show_values,
                float(options.get("idle_worker_timeout", IDLE_SECONDS)),
                int(options.get("max_tasks_per_worker") or 0),
                int(options.get("max_memory_per_worker") or 0),
                call.mmap_mode,
            ),
            "memory": (call.temp_folder, call.n_jobs),
            "authkey": authentication_key(),
        }
    )
    _last = (key, data)
    return data


def pickled_initializer(options: dict[str, Any]) -> bytes:
    """What a worker does before its first task; it will do it for no other call.

    As a pickle: arguments may be changed later, and some, as arrays, do not compare.
    """
    if options.get("initializer") is None:
        return b""
    return dumps((options["initializer"], options.get("initargs", ())))


def working_directory() -> str | None:
    """The caller's directory, or None if it has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def authentication_key() -> bytes | None:
    """What a proxy of ``multiprocessing.Manager`` shows to the manager it talks to.

    None while the caller has imported nothing that listens or connects.
    """
    if "multiprocessing.connection" not in sys.modules:
        return None
    from multiprocessing.process import current_process

    return bytes(current_process().authkey)


def current_filters() -> Sequence[tuple[Any, ...]]:
    """The warning filters that hold here: from Python 3.14 on a context has its own."""
    of_context = getattr(warnings, "_get_filters", None)
    if of_context is not None:
        return of_context()  # type: ignore[no-any-return]
    return warnings.filters


def plain_filters() -> list[tuple[Any, ...]]:
    """The warning filters, with patterns as text: compiled ones pickle slowly.

    A filter on a class that only the caller has could never match in a worker.
    """
    return [
        (action, as_text(message), category, as_text(module), line)
        for action, message, category, module, line in current_filters()
        if category.__module__ != "__main__"
    ]


def as_text(pattern: Any) -> Any:
    """Text, and flags of a compiled pattern.

    Backwards: Python's own filters name ``__main__``, and whatever has that word in it
    would be taken by the slower pickler, which has to be imported first.
    """
    if pattern is None:
        return None
    if isinstance(pattern, str):
        return pattern[::-1]
    return pattern.pattern[::-1], pattern.flags


def as_pattern(text: Any) -> Any:
    """The pattern that `as_text` took apart."""
    if text is None:
        return None
    if isinstance(text, str):
        return text[::-1]
    import re

    return re.compile(text[0][::-1], text[1])


class Adopted:
    """In a worker: the caller's state, and the duty to keep to it.

    Parameters
    ----------
    failed_preloads : dict
        Modules that the nursery could not import, and why.
    """

    def __init__(self, failed_preloads: dict[str, BaseException]) -> None:
        self.failed_preloads = failed_preloads
        self.modules = ModuleWatch()
        self.notes = Notes()
        self.spare = Spare()
        self.levels = LevelKeeper()
        self.variables = Variables()
        self.initialized = False
        self.state: dict[str, Any] = {}
        self.environ: dict[str, str] = {}
        self.raw_environ: dict[Any, Any] = {}

    def adopt(self, data: bytes) -> Settings:
        """Take over a new state; the settings of the worker's loop."""
        state = self.state = loads(data)
        inner_threads.user_environment(state["environ"])
        self.environ = inner_threads.worker_environment(
            state["environ"], *state["threads"]
        )
        self.raw_environ = {}  # not what it should be any more
        self.refresh()
        set_filters(state["filters"])
        self.forward()
        self.levels.adopt(state["levels"])
        self.variables.set(state["variables"])
        inner_threads.set_core_budget(state["share"])
        inner_threads.apply_worker_caps(*state["threads"])
        if state["authkey"] is not None:
            from multiprocessing.process import current_process

            current_process().authkey = state["authkey"]
        self.environ = dict(os.environ)  # with the caps
        self.raw_environ = current()
        if state["nested"] is not None:
            configuration.set(state["nested"])
        for name in state["preload"]:
            if name in self.failed_preloads:
                raise self.failed_preloads[name]
        if state["initializer"] and not self.initialized:
            initializer, initargs = loads(state["initializer"])
            initializer(*initargs)
        self.initialized = True
        settings: Settings = state["settings"]
        return settings

    def store(self) -> Store:
        """Where large results of this worker go."""
        return store_for(*self.state["memory"])

    def begin(self) -> bool:
        """A new call begins; False if this worker must not run any task of it."""
        if self.modules.changed():
            return False
        if self.state:
            self.refresh()
            self.forward()
            self.levels.refresh()
            self.variables.set(self.state["variables"])
            inner_threads.apply_worker_caps(*self.state["threads"])
        return True

    def forward(self) -> None:
        """Have warnings and log records forwarded, or not, as the call wants it."""
        # What is shown once is shown once a call.
        warnings._filters_mutated()  # type: ignore[attr-defined]
        if self.state["levels"] is not None:
            self.notes.patch_logging()
        if self.state["forward"]:
            self.notes.forward()
        else:
            self.notes.keep()

    def batch_ended(self) -> None:
        """A batch has ended: show all that its tasks have printed."""
        flush_all()

    def refresh(self) -> None:
        """Undo what tasks did to the environment, the path and the directory."""
        environ = self.environ
        raw = current()
        if raw is not self.raw_environ:
            if raw != self.raw_environ:
                for name in [n for n in os.environ if n not in environ]:
                    del os.environ[name]
                for name, value in environ.items():
                    if os.environ.get(name) != value:
                        os.environ[name] = value
            self.raw_environ = current()
        if sys.path != self.state["path"]:
            sys.path[:] = self.state["path"]
        if sys.argv != self.state["argv"]:
            sys.argv[:] = self.state["argv"]
        cwd = self.state["cwd"]
        if cwd is not None and working_directory() != cwd:
            os.chdir(cwd)


def set_filters(filters: list[tuple[Any, ...]]) -> None:
    """Make warning filters those of the caller."""
    warnings.filters[:] = [  # type: ignore[index]
        (action, as_pattern(message), category, as_pattern(module), line)
        for action, message, category, module, line in filters
    ]
