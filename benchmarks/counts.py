"""``python -m benchmarks counts``: what does not depend on the machine.

System calls come from ``strace``, instructions from valgrind's ``callgrind``, pickles
from an argument that counts its own.  A count that has risen above the recorded one is
a failure; the record is changed with ``--update``, in the commit that says why.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks import paths, traces

RECORD = Path(__file__).with_name("counts.json")

#: How often a program is counted for the record, and at most for a comparison.
TRIES = 3

#: The counts of programs, by name and metric.
Counts = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Program:
    """One program of `count_work`, and what is counted in it.

    Parameters
    ----------
    name : str
        Name of the method of `count_work.Work`.
    unit : str
        What a count is divided by.
    traced : int
        Units under strace; 0 is not traced.
    weighed : tuple of int
        Two numbers of units under callgrind, whose difference leaves out the start
        of the interpreter and the warming of the pool; empty is not weighed.
    """

    name: str
    unit: str
    traced: int = 0
    weighed: tuple[int, ...] = ()


PROGRAMS = (
    Program("imports", "import", weighed=(0, 1)),
    Program("first_call", "call", traced=1),
    Program("calls", "call", traced=50, weighed=(50, 250)),
    Program("batches", "batch", traced=100, weighed=(100, 500)),
    Program("batches_recorded", "batch", traced=100, weighed=(100, 500)),
    Program("tasks", "task", traced=20_000, weighed=(10_000, 50_000)),
    Program("tasks_with_progress", "task", weighed=(10_000, 50_000)),
    Program("closures", "batch", traced=100),
    Program("shared_object", "batch", traced=100),
    Program("shared_array", "task", traced=50),
    Program("fresh_arrays", "task", traced=50),
    Program("array_results", "task", traced=50),
    Program("pools", "look", traced=1000),
    Program("thread_calls", "call", traced=50, weighed=(50, 250)),
    Program("thread_tasks", "task", traced=10_000, weighed=(10_000, 50_000)),
    Program("sequential_tasks", "task", traced=10_000, weighed=(10_000, 50_000)),
    Program("sequential_tasks_with_progress", "task", weighed=(10_000, 50_000)),
)

#: Relative and absolute slack by metric.  Which of two workers answers first is not
#: fixed, so a poll may find one answer or two: one system call a unit more or less.
#: What is counted once is exact.
SLACK = {
    "caller syscalls": (0.25, 1.0),
    "worker syscalls": (0.25, 1.0),
    "bytes sent": (0.10, 16.0),
    "instructions": (0.10, 20.0),
    "modules": (0.0, 2.0),
    "threads": (0.0, 0.1),
    "segments": (0.0, 0.1),
}

#: Counts of a first call that say more about the environment (length of the path,
#: how and where packages are installed, variables) than about the library.
ELSEWHERE = ("caller syscalls", "worker syscalls", "bytes sent")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("--update", action="store_true", help="write the record")
    parser.add_argument("--json", metavar="FILE", help="write the counts")
    parser.add_argument(
        "--only", metavar="NAMES", help="programs, with commas between (default: all)"
    )
    parser.add_argument(
        "--library",
        default="fastjob",
        help="count another library with the same interface; nothing is compared",
    )


def run(options: argparse.Namespace) -> int:
    """Count, print, compare; return 1 if a count has risen."""
    missing = [tool for tool in ("strace", "valgrind") if shutil.which(tool) is None]
    if missing:
        raise ValueError(f"counting needs {' and '.join(missing)} to be installed")
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    found = {}
    for program in _selected(options.only):
        name = f"{program.name}, a {program.unit}"
        if options.library != "fastjob":
            found[name] = count(program, options.library)
        elif options.update:
            found[name] = largest(program)
        else:
            found[name] = smallest(program, name, record)
        text = ", ".join(f"{key} {value:g}" for key, value in found[name].items())
        print(f"{name}: {text}", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    if options.library != "fastjob":
        return 0
    if options.update:
        if options.only is None:  # a program that is no more leaves nothing behind
            record = {key: old for key, old in record.items() if key not in build()}
        RECORD.write_text(json.dumps(updated(record, found), indent=1) + "\n")
        return 0
    notes, rises = compare(record, found)
    print("\n".join([*notes, *rises]))
    return int(bool(rises))


def _selected(only: str | None) -> list[Program]:
    if only is None:
        return list(PROGRAMS)
    known = {program.name: program for program in PROGRAMS}
    for name in only.split(","):
        if name not in known:
            raise ValueError(f"no program is named {name!r}; there are {list(known)}")
    return [known[name] for name in only.split(",")]


def largest(program: Program) -> dict[str, float]:
    """Count some times for the record, and return the largest of each metric.

    Who finds whom asleep depends on what else the machine does: a call on threads makes
    from 13 to 21 system calls.
    """
    counts = count(program, "fastjob")
    for _ in range(TRIES - 1):
        more = count(program, "fastjob")
        counts = {key: max(value, more[key]) for key, value in counts.items()}
    return counts


def smallest(
    program: Program, name: str, record: dict[str, Counts]
) -> dict[str, float]:
    """Count for a comparison: again if a count has risen, which must then be so again.

    Returns
    -------
    dict
        The smallest of each metric.
    """
    counts = count(program, "fastjob")
    for _ in range(TRIES - 1):
        if not compare(record, {name: counts})[1]:
            break
        more = count(program, "fastjob")
        counts = {key: min(value, more[key]) for key, value in counts.items()}
    return counts


def count(program: Program, library: str) -> dict[str, float]:
    """Return the counts a unit of one program."""
    counts: dict[str, float] = {}
    if program.traced:
        totals, own = trace(program.name, program.traced, library)
        counts.update((key, value / program.traced) for key, value in totals.items())
        if program.name == "first_call":
            for metric in ELSEWHERE:
                del counts[metric]
        counts.update(own)
    else:
        counts.update(_run(program.name, 1, library, ()))
    if program.weighed:
        first, last = program.weighed
        # Side by side: an instruction counts the same however long it has to wait.
        with ThreadPoolExecutor(2) as threads:
            less, more = threads.map(
                lambda units: weigh(program.name, units, library), program.weighed
            )
        counts["instructions"] = (more - less) / (last - first)
    return {key: float(f"{value:.4g}") for key, value in counts.items()}


def trace(
    name: str, units: int, library: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Run a program under strace; return what was traced, and what it says itself."""
    with tempfile.NamedTemporaryFile("r", suffix=".strace") as log:
        own = _run(name, units, library, (*traces.COMMAND, log.name))
        return traces.counts(traces.parse(log)), own


def weigh(name: str, units: int, library: str) -> int:
    """Run a program under callgrind; return the instructions of the caller."""
    with tempfile.TemporaryDirectory() as folder:
        pattern = os.path.join(folder, "out.%p")
        command = ("valgrind", "--tool=callgrind", f"--callgrind-out-file={pattern}")
        _run(name, units, library, command)
        # A process that is forked, and not started anew, leaves a file as well.
        return max(_total(file) for file in Path(folder).iterdir())


def _total(file: Path) -> int:
    found = re.findall(r"^(?:totals|summary): (\d+)", file.read_text(), re.MULTILINE)
    return max(map(int, found), default=0)


def _run(
    name: str, units: int, library: str, wrapper: tuple[str, ...]
) -> dict[str, float]:
    """Run a program and return what it prints."""
    program = paths.program("from benchmarks.count_work import main; main()")
    done = subprocess.run(
        [*wrapper, *program, library, name, str(units)],
        capture_output=True,
        text=True,
        env={**paths.environment(), "PYTHONHASHSEED": "0"},
        cwd=paths.ROOT,
        timeout=600,
    )
    if done.returncode:
        raise ValueError(f"{name} failed: {done.stderr.strip()[-800:]}")
    counts: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return counts


def build() -> tuple[str, str]:
    """Return the two keys of the record: interpreter version, and its exact build.

    Instructions depend on how the interpreter was compiled, the rest only on its
    version.
    """
    version = ".".join(platform.python_version_tuple()[:2])
    return version, f"{platform.python_version()} {platform.python_compiler()}"


def updated(record: dict[str, Counts], found: Counts) -> dict[str, Counts]:
    """Return the record with new counts in it."""
    new = {key: {n: dict(c) for n, c in value.items()} for key, value in record.items()}
    for name, counts in found.items():
        for metric, value in counts.items():
            key = _key(metric)
            new.setdefault(key, {}).setdefault(name, {})[metric] = value
    return {key: new[key] for key in sorted(new)}


def compare(record: dict[str, Counts], found: Counts) -> tuple[list[str], list[str]]:
    """Compare counts with the record.

    Returns
    -------
    notes, rises : list of str
        What cannot be compared or has fallen, and what has risen by more than the
        slack of its metric.
    """
    notes, rises = [], []
    for key in build():
        if key not in record:
            notes.append(f"nothing is recorded for {key}: --update does so")
    for name, counts in found.items():
        for metric, value in counts.items():
            before = record.get(_key(metric), {}).get(name, {}).get(metric)
            if before is None:
                continue
            relative, absolute = SLACK.get(metric, (0.0, 0.0))
            slack = before * relative + absolute
            text = f"{name}: {metric} {before:g} -> {value:g}"
            if value > before + slack:
                rises.append(f"RISEN: {text}")
            elif value < before - slack:
                notes.append(f"fallen: {text}")
    return notes, rises


def _key(metric: str) -> str:
    version, exact = build()
    return exact if metric == "instructions" else version
