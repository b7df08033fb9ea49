"""Meeting points of tests and tasks in other processes, without clocks.

A `Gate` holds tasks back until the test opens it; a `Bell` tells the test that a task
has come to a place. Both are paths in the file system, so they can be pickled, and
both end with the process that made them.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import uuid

if sys.platform != "win32":
    import fcntl


class Gate:
    """Closed when made; `wait` returns once it is open."""

    def __init__(self, folder=None):
        handle, self.path = tempfile.mkstemp(dir=folder or os.getcwd())
        self._file = os.fdopen(handle)
        if sys.platform != "win32":
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def open(self):
        self._file.close()
        if sys.platform == "win32" and os.path.exists(self.path):
            os.replace(self.path, self.path + ".open")

    def wait(self):
        if sys.platform == "win32":
            until(lambda: os.path.exists(self.path + ".open"))
            return
        with open(self.path) as file:
            fcntl.flock(file, fcntl.LOCK_SH)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.open()

    def __getstate__(self):
        return self.path

    def __setstate__(self, path):
        self.path = path


class Bell:
    """Rung by tasks; the test waits for a number of rings."""

    def __init__(self, folder=None):
        self.path = tempfile.mktemp(dir=folder or os.getcwd())
        if sys.platform == "win32":
            os.mkdir(self.path)
        else:
            os.mkfifo(self.path)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    def ring(self, letter=b"."):
        if sys.platform == "win32":
            name = f"{time.time_ns():020}-{uuid.uuid4().hex}"
            with open(os.path.join(self.path, name + ".new"), "wb") as file:
                file.write(letter)
            os.replace(file.name, os.path.join(self.path, name))
            return
        fd = os.open(self.path, os.O_WRONLY)
        os.write(fd, letter)
        os.close(fd)

    def wait(self, n=1):
        """What was rung, `n` letters of it."""
        letters = b""
        while len(letters) < n:
            if sys.platform == "win32":
                letters += until(self._heard)
            else:
                letters += os.read(self._fd, n - len(letters))
        return letters

    def _heard(self):
        """One letter that was rung, on Windows; none yet is false."""
        for name in sorted(os.listdir(self.path)):
            if not name.endswith(".new"):
                path = os.path.join(self.path, name)
                try:
                    with open(path, "rb") as file:
                        letter = file.read()
                    os.remove(path)
                except PermissionError:
                    continue  # it is still being renamed
                return letter
        return b""

    def close(self):
        if sys.platform != "win32":
            os.close(self._fd)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def __getstate__(self):
        return self.path

    def __setstate__(self, path):
        self.path = path


def until(condition, seconds=30.0):
    """Wait for a condition that nobody announces; its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{condition} did not come true in {seconds} s")
        time.sleep(0.002)
    return value
