"""The process that runs one row on one side, a sample at a time.

Every side has its own process: pools, imports, garbage and crashes of one library
cannot touch another.  Requests come in as lines on what was standard input, answers
go out as lines of JSON on what was standard output; both are taken away from the
libraries first.

    check     run once; answer the digest of the results, the value and the probe
    time      run once (``row.calls`` times); answer the value and the probe
    observe   run once; answer context switches and busy threads
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from typing import Any

from benchmarks import paths, peers, processes
from benchmarks.digest import digest, numbers
from benchmarks.row import Row

_COLD = """
import time
begin = time.perf_counter()
{code}
end = time.perf_counter()
print(repr(result), begin, end, flush=True)
"""


def probe() -> float:
    """Return the time of a fixed calculation of some 2 ms: how fast is the machine?"""
    begin = time.perf_counter()
    total = 0
    for number in range(40_000):
        total += number
    return time.perf_counter() - begin


class Host:
    """One row on one side."""

    def __init__(self, peer: str, row: Row, size: Any, n_jobs: int) -> None:
        self._row, self._size, self._n_jobs = row, size, n_jobs
        self._module = peers.load(peer)
        self._is_limit = peer == "limit"
        self._data = row.prepare(size)
        self._session = None
        if row.kind != "cold":
            self._session = self._module.open_session(row.kind, n_jobs)

    def ideal(self) -> float | None:
        """Return the time of a schedule without overhead, where the row has one."""
        if self._row.ideal is None:
            return None
        return float(self._row.ideal(self._data, self._n_jobs))

    def check(self) -> dict[str, Any]:
        """Run once and answer what came out."""
        result, answer = self._timed(1)
        seen: Any = None
        if not self._is_limit:
            seen = numbers(result) if self._row.close else digest(result)
        return {"digest": seen, **answer}

    def time(self) -> dict[str, Any]:
        """Run once more and answer how long it took."""
        return self._timed(self._row.calls)[1]

    def observe(self) -> dict[str, Any]:
        """Run once under observation of the processes below this one."""
        with processes.Observer() as observer:
            self._sample(1)
        return {
            "context_switches": observer.context_switches,
            "busy_threads": observer.busy_threads,
        }

    def close(self) -> None:
        """Stop the library's workers."""
        if self._session is not None:
            self._session.close()

    def _timed(self, calls: int) -> tuple[Any, dict[str, float]]:
        gc.collect()
        speed = probe()
        result, value = self._sample(calls)
        return result, {"value": value, "probe": speed}

    def _sample(self, calls: int) -> tuple[Any, float]:
        """Return the result and the measured value of one call."""
        row = self._row
        if row.kind == "cold":
            return self._cold()
        begin = time.perf_counter()
        for _ in range(calls):
            result = None  # the results of the call before are freed in its time
            if self._is_limit:
                result = row.limit(self._data, self._n_jobs)
            else:
                result = row.work(self._session, self._data)
        value = (time.perf_counter() - begin) / calls
        return result if row.unit == "MB" else (result, value)

    def _cold(self) -> tuple[Any, float]:
        script = self._row.script
        code = _COLD.format(code=self._module.COLD[script])
        begin = time.perf_counter()
        done = subprocess.run(
            paths.program(code), capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"the new interpreter failed: {done.stderr[-500:]}")
        result, first, last = done.stdout.strip().rsplit(" ", 2)
        # The clock of perf_counter is the machine's, so it may be compared between
        # processes.  An import is timed by itself; a first call with the start of
        # the interpreter, until its result is there.
        return result, float(last) - (float(first) if script == "import" else begin)


def serve(arguments: dict[str, Any], requests: Any, answers: Any) -> None:
    """Answer requests until there are no more."""
    from benchmarks import rows

    def answer(values: dict[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        host = Host(
            arguments["peer"],
            rows.find(arguments["row"]),
            arguments["size"],
            arguments["n_jobs"],
        )
        answer({"ideal": host.ideal()})
        for request in requests:
            answer(getattr(host, request.strip())())
        host.close()
    except Exception as error:  # whatever a library raises is that side's result
        answer({"error": f"{type(error).__name__}: {error}"[:500]})
        raise


def main() -> None:
    """Run as a process; the arguments are JSON in ``argv[1]``."""
    requests = os.fdopen(os.dup(0), "r")
    answers = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    serve(json.loads(sys.argv[1]), requests, answers)
