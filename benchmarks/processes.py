"""What /proc says about the processes that a side has started."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path


def descendants(root: int) -> list[int]:
    """Return the process ids below `root`, itself not included."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue  # ended while we looked
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found, level = [], {root}
    while level:
        level = {pid for pid, parent in parents.items() if parent in level}
        found += sorted(level)
    return found


def pss(pid: int) -> int:
    """Return the proportional set size in bytes; 0 if the process has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def context_switches(pids: list[int]) -> int:
    """Return the context switches so far of all threads of some processes."""
    total = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").glob("*/status"):
            try:
                lines = thread.read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in lines if "_switches" in line)
    return total


def running_threads(pids: list[int]) -> int:
    """Return how many threads of some processes run or wait for a core now."""
    running = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
            try:
                running += thread.read_text().rpartition(")")[2].split()[0] == "R"
            except OSError:
                continue
    return running


class Observer:
    """Counts context switches and busy threads of this process and those below it."""

    def __enter__(self) -> Observer:
        self._pids = [os.getpid(), *descendants(os.getpid())]
        self._before = context_switches(self._pids)
        self._busy: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.02):
            # This thread itself is one that runs.
            self._busy.append(running_threads(self._pids) - 1)

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self.context_switches = context_switches(self._pids) - self._before
        self.busy_threads = max(self._busy, default=0)


def settled(root: int, pause: float = 0.2, rounds: int = 25) -> list[int]:
    """Wait until the set of descendants no longer changes; return it."""
    before: list[int] = []
    for _ in range(rounds):
        now = descendants(root)
        if now and now == before:
            break
        before = now
        time.sleep(pause)
    return before
