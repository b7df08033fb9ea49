"""Programs that are made to end badly, and what is left of them."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

from gates import until

TESTS = Path(__file__).parents[1]
MARKER = "FASTJOB_SCRIPT"


class Script:
    """A program in a process of its own.

    Parameters
    ----------
    source : str
        Its text, without a ``__main__`` guard.
    **options
        For ``subprocess.Popen``.
    """

    def __init__(self, source, arguments=(), **options):
        self.mark = uuid.uuid4().hex
        path = Path.cwd() / f"script_{self.mark}.py"
        path.write_text(source)
        paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, str(path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                MARKER: self.mark,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            },
            **options,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for pid in [self.process.pid, *self.survivors()]:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        self.process.communicate()

    def expect(self, line):
        """Wait until the program has printed a line."""
        found = self.process.stdout.readline().strip()
        if found != line:
            out, err = self.process.communicate(timeout=60)
            raise AssertionError(f"{found!r} instead of {line!r}\n{out}\n{err}")

    def finish(self, seconds=30):
        """Wait for the end of it and of all that hold its output: (out, err, code)."""
        out, err = self.process.communicate(timeout=seconds)
        until(lambda: not self.survivors(), 10)
        return out, err, self.process.returncode

    def survivors(self):
        """Processes that come from the program, by what is in their environment."""
        wanted = f"{MARKER}={self.mark}".encode()
        found = []
        for name in os.listdir("/proc"):
            if not name.isdecimal() or int(name) == self.process.pid:
                continue
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if wanted in file.read():
                        found.append(int(name))
            except OSError:
                continue  # gone since it was listed
        return found


def run(source, **options):
    """Run a program to its end: (out, err, code)."""
    with Script(source, **options) as script:
        return script.finish()
