"""What a worker must share with its caller besides the task itself.

The caller's environment, working directory, search path and warning filters can
change between two calls. `capture` takes them at the start of a call; a worker adopts
them before its first task of that call. A worker that has been used before therefore
sees what a new one would: `refresh` also undoes what tasks of earlier calls did to
them, and finds out whether a module that it has imported has changed on disk since.
"""

from __future__ import annotations

import os
import pickle
import sys
import warnings

from fastjob import budget, inner_threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastjob._core.call import Call

#: In a worker: what it has adopted.
current: dict[str, Any] = {}


def capture(call: Call) -> bytes:
    """Pickle the state that the workers of a call must adopt."""
    options = call.options
    try:
        cwd: str | None = os.getcwd()
    except FileNotFoundError:
        cwd = None
    limit = call.inner_max_num_threads
    share = budget.default_share(call.n_jobs)
    return pickle.dumps(
        {
            "environ": dict(os.environ),
            "cwd": cwd,
            "path": sys.path,
            "filters": plain_filters(),
            "share": share,
            "threads": (share if limit is None else limit, limit is not None),
            "user_threads": inner_threads.user_settings(),
            "nested": call.nested,
            "arrays": (call.max_nbytes, call.mmap_mode, call.temp_folder),
            "settings": (
                call.return_errors,
                call.show_values,
                float(options.get("idle_worker_timeout", 300.0)),
                int(options.get("max_tasks_per_worker") or 0),
                int(options.get("max_memory_per_worker") or 0),
            ),
        },
        5,
    )


def plain_filters() -> list[tuple[Any, ...]]:
    """The warning filters, with patterns as text: compiled ones pickle slowly."""
    return [
        (action, pattern(message), category, pattern(module), line)
        for action, message, category, module, line in warnings.filters
    ]


def pattern(compiled: Any) -> Any:
    """Text and flags of a compiled pattern."""
    if compiled is None or isinstance(compiled, str):
        return compiled
    return compiled.pattern, compiled.flags


def compiled(text: Any) -> Any:
    """The pattern that `pattern` took apart."""
    if not isinstance(text, tuple):
        return text
    import re

    return re.compile(*text)


def adopt(state: dict[str, Any]) -> tuple[bool, bool, float, int, int]:
    """Worker: take over the caller's state; the settings of its loop."""
    before = dict(current)
    current.clear()
    current.update(state)
    budget.set_core_budget(state["share"])
    inner_threads.user_environment(state["user_threads"])
    current["environ"] = inner_threads.worker_environment(
        state["environ"], *state["threads"]
    )
    refresh()
    if state["filters"] != before.get("filters"):
        warnings.filters[:] = [
            (action, compiled(message), category, compiled(module), line)
            for action, message, category, module, line in state["filters"]
        ]
        warnings._filters_mutated()  # type: ignore[attr-defined]
    if state["nested"] is not None:
        from fastjob import config

        config.restore(state["nested"])
    settings: tuple[bool, bool, float, int, int] = state["settings"]
    return settings


def refresh() -> None:
    """Worker: undo what earlier tasks did to the adopted state."""
    environ = current["environ"]
    if os.environ != environ:
        for name in [n for n in os.environ if n not in environ]:
            del os.environ[name]
        for name, value in environ.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
    if sys.path != current["path"]:
        sys.path[:] = current["path"]
        sys.path_importer_cache.clear()
    inner_threads.apply_worker_caps(*current["threads"])
    cwd = current["cwd"]
    if cwd is not None:
        try:
            if os.getcwd() != cwd:
                os.chdir(cwd)
        except FileNotFoundError:
            os.chdir(cwd)
