"""A side of the comparison as the harness sees it: a host process to ask."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
from typing import Any

from benchmarks import paths

#: Seconds that one answer may take; peers without batching need minutes for none.
PATIENCE = 120.0


class SideFailed(Exception):
    """A side could not run the row; the message says why."""


class Side:
    """A host process that runs one row for one peer.

    Parameters
    ----------
    peer, row : str
        Names of the peer and of the row.
    size : object
        What the row's ``prepare`` is given.
    n_jobs : int
        Number of workers.

    Raises
    ------
    SideFailed
        The peer cannot be imported or its pool cannot be opened.
    """

    def __init__(self, peer: str, row: str, size: Any, n_jobs: int) -> None:
        arguments = {"peer": peer, "row": row, "size": size, "n_jobs": n_jobs}
        command = paths.program("from benchmarks.host import main; main()")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed in close()
        self._process = subprocess.Popen(
            [*command, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=paths.environment(),
            cwd=paths.ROOT,
            start_new_session=True,
        )
        self._buffer = b""
        try:
            self.ideal: float | None = self._answer()["ideal"]
        except SideFailed:
            self.close()
            raise

    def ask(self, request: str) -> dict[str, Any]:
        """Send one request and return its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SideFailed(self._last_words()) from None
        return self._answer()

    def close(self) -> None:
        """End the host and whatever its library has started."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        # A library that does not end by itself is ended by the kill that follows.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], PATIENCE)
            if not ready:
                raise SideFailed(f"no answer within {PATIENCE:.0f} s")
            data = os.read(descriptor, 1 << 16)
            if not data:
                raise SideFailed(self._last_words())
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        values: dict[str, Any] = json.loads(line)
        if "error" in values:
            raise SideFailed(values["error"])
        return values

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return "the process ended: " + (lines[-1] if lines else "without a word")
