"""``python -m fastjob info``: what fastjob sees of this machine.

For a person, or with ``--json`` for a machine: the number of cores and what bounded
it, the native thread pools that are loaded, and the backends that can be used here.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from fastjob import __version__
from fastjob._core.cpu import cpu_limits
from fastjob._core.threadpools import threadpool_info
from fastjob.backends.registry import available
from fastjob.budget import core_budget


def gather() -> dict[str, Any]:
    """Return all that `main` prints, as a dict that JSON can carry.

    Returns
    -------
    dict
        ``fastjob``, ``python`` and ``platform``: versions; ``cpu``: the attributes of
        `CpuLimits`, and ``core_budget``; ``pools``: what `threadpool_info` returns;
        ``backends``: for each name None, or why it cannot be used.
    """
    return {
        "fastjob": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {**cpu_limits().as_dict(), "core_budget": core_budget()},
        "pools": threadpool_info(),
        "backends": available(),
    }


def render(found: dict[str, Any]) -> str:
    """Return what `gather` found as lines of text for a person."""
    cpu = found["cpu"]
    quota = "none"
    if cpu["quota"] is not None:
        quota = f"{cpu['quota']:g} cores, set by {cpu['quota_file']}"
    rows = [
        ("cores to use", f"{cpu['count']}, bounded by: {cpu['bounded_by']}"),
        ("online", cpu["online"]),
        ("affinity", cpu["affinity"]),
        ("cgroup quota", quota),
        ("physical cores", cpu["physical_cores"]),
    ]
    if cpu["interpreter"] is not None:
        rows.append(("interpreter", cpu["interpreter"]))
    rows += cpu["environment"].items()
    if cpu["core_budget"] < cpu["count"]:
        rows.append(("share here", cpu["core_budget"]))
    title = f"fastjob {found['fastjob']}, Python {found['python']}"
    lines = [f"{title}, {found['platform']}", "", *_table(rows)]
    pools = [(pool["internal_api"], _pool(pool)) for pool in found["pools"]]
    lines += ["", "thread pools loaded:", *_table(pools or [("none", "")])]
    backends = [
        (name, "ready" if reason is None else f"not here: {reason}")
        for name, reason in found["backends"].items()
    ]
    return "\n".join([*lines, "", "backends:", *_table(backends)])


def _pool(pool: dict[str, Any]) -> str:
    threads = pool["num_threads"]
    parts = [
        f"{threads} thread{'s' if threads > 1 else ''}",
        pool["version"] and f"version {pool['version']}",
        pool.get("threading_layer"),
        pool["filepath"],
    ]
    return ", ".join(filter(None, parts))


def _table(rows: Sequence[tuple[str, object]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:{width}}  {value}".rstrip() for name, value in rows]


def main(argv: list[str]) -> int:
    """Run ``python -m fastjob info``.

    Parameters
    ----------
    argv : list of str
        The arguments after ``info``.

    Returns
    -------
    int
        The exit code: 0, or 1 if a module or an environment variable is at fault.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fastjob info",
        description="Print what fastjob sees of this machine: cores and what bounds "
        "them, native thread pools, and the backends that can be used.",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON, for a program to read"
    )
    parser.add_argument(
        "-i",
        "--import",
        dest="modules",
        metavar="MODULE",
        nargs="+",
        default=["numpy"],
        help="modules to import first, so that their thread pools are listed "
        "(default: numpy)",
    )
    arguments = parser.parse_args(argv)
    try:
        for module in arguments.modules:
            import_module(module)
        found = gather()
    except (ImportError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=2) if arguments.json else render(found))
    return 0
