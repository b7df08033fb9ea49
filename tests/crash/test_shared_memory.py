"""Shared memory when the caller is killed, and when the system has little of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from gates import until
from scripts import Script

pytest.importorskip("numpy")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

SHARING = """
import os, signal, sys
import numpy as np
from fastjob import Parallel, delayed
from gates import Bell
bell = Bell()

def hang(array):
    made = np.full(len(array) // 10, array[-1])
    bell.ring()
    while True:
        signal.pause()

def tasks():
    array = np.ones(500_000_000 // 8)
    for i in range(3):
        if i == 2:
            bell.wait(2)
            print("shared", flush=True)
            signal.pause()
        yield delayed(hang)(array)

Parallel(2, batch_size=1)(tasks())
"""


# Where there is no memfd, a file without a name: "/dev/shm/#12 (deleted)".
SHARED = re.compile(r"/memfd:fastjob|/dev/shm/#")


def files_of(pid):
    """What a process has open or mapped of shared memory: {inode: bytes}."""
    found = {}
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            file = f"/proc/{pid}/fd/{name}"
            if SHARED.search(os.readlink(file)):
                state = os.stat(file)
                found[state.st_ino] = state.st_blocks * 512
        with open(f"/proc/{pid}/maps") as maps:
            for line in maps:
                if SHARED.search(line):
                    found.setdefault(int(line.split()[4]), 0)
    except OSError:
        pass  # it has ended, or is another user's
    return found


def holders(inodes):
    return [
        pid
        for pid in os.listdir("/proc")
        if pid.isdecimal() and not inodes.isdisjoint(files_of(pid))
    ]


@linux
def test_a_killed_caller_leaves_nothing_of_500_megabytes(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    named = set(os.listdir("/dev/shm"))
    with Script(SHARING) as script:
        script.expect("shared")
        shared = files_of(script.process.pid)
        for pid in script.survivors():
            shared.update({k: v for k, v in files_of(pid).items() if k not in shared})
        assert sum(shared.values()) >= 500_000_000
        script.process.send_signal(signal.SIGKILL)
        script.process.wait()
        # Anonymous memory that no process has open or mapped is the system's again.
        until(lambda: not holders(set(shared)))
        until(lambda: not script.survivors())
    assert not [n for n in set(os.listdir("/dev/shm")) - named if "fastjob" in n]
    assert os.listdir(folder) == []


RETURNING = """
import signal
import numpy as np
from fastjob import Parallel, delayed

def make(value):
    return np.full(5_000_000, float(value))

with Parallel(2, "multiprocessing", batch_size=1) as parallel:
    kept = parallel(delayed(make)(i) for i in range(6))
    print("returned", flush=True)
    signal.pause()
"""


@linux
def test_a_killed_caller_leaves_nothing_that_a_multiprocessing_pool_returned():
    with Script(RETURNING) as script:
        script.expect("returned")
        shared = files_of(script.process.pid)
        for pid in script.survivors():
            shared.update(files_of(pid))
        assert sum(shared.values()) >= 6 * 40_000_000
        script.process.send_signal(signal.SIGKILL)
        script.process.wait()
        until(lambda: not holders(set(shared)))
        until(lambda: not script.survivors())


SMALL = """
import os, subprocess, sys
mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", "/dev/shm"]
subprocess.run(mount, check=True)
{before}
import numpy as np
from fastjob import Parallel, delayed

def plus_one(array):
    return array + 1

arrays = [np.full(1_500_000, float(i)) for i in range(4)]
found = Parallel(2, batch_size=1)(delayed(plus_one)(a) for a in arrays)
assert [(float(a[0]), float(a[-1]), len(a)) for a in found] == [
    (i + 1.0, i + 1.0, 1_500_000) for i in range(4)]
assert os.listdir("/dev/shm") == {left}
print("right")
"""
FULL = """
with open("/dev/shm/other", "wb") as other:
    os.posix_fallocate(other.fileno(), 0, 8 << 20)
"""


def in_own_mounts(source):
    """Run a program that may mount what nobody else sees."""
    for user in ([], ["--user", "--map-root-user"]):
        unshare = ["unshare", *user, "--mount", "--propagation", "private"]
        probe = [*unshare, "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
        if (
            shutil.which("unshare")
            and not subprocess.run(probe, check=False, capture_output=True).returncode
        ):
            command = [*unshare, sys.executable, "-c", source]
            with Script(f"import os; os.execvp('unshare', {command!r})") as script:
                return script.finish(300)
    pytest.skip("there can be no mounts of its own for a process")


@linux
@pytest.mark.parametrize("memfd", ["1", "0"], ids=["memfd", "files"])
def test_8_megabytes_in_dev_shm_are_no_obstacle(monkeypatch, memfd):
    monkeypatch.setenv("FASTJOB_MEMFD", memfd)
    program = SMALL.format(before="", left=[])
    assert in_own_mounts(program) == ("right\n", "", 0)


@linux
@pytest.mark.parametrize("memfd", ["1", "0"], ids=["memfd", "files"])
def test_a_full_dev_shm_is_no_obstacle(monkeypatch, memfd):
    monkeypatch.setenv("FASTJOB_MEMFD", memfd)
    program = SMALL.format(before=FULL, left=["other"])
    assert in_own_mounts(program) == ("right\n", "", 0)
