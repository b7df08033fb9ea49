"""Systems that lack something: processes, sockets, anonymous memory, /proc."""

from __future__ import annotations

import os
import platform
import sys

import pytest

import fastjob
from fastjob import Parallel
from fastjob._core.worker import resident_bytes
from fastjob._pool import starter
from fastjob.backends import registry
from fastjob.backends.processes import ProcessBackend
from fastjob.backends.threading import ThreadingBackend

#: Make system calls fail as a sandbox does, in this process and for good: by number,
#: the error that each gives. Threads can be started, by the older of two calls.
SANDBOX = """
import ctypes, struct

def refuse(errors, threads_only=None):
    steps = [(0x20, 0, 0, 0)]  # load the number of the call
    for number, error in errors.items():
        steps += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error)]
    if threads_only is not None:
        steps += [
            (0x15, 0, 3, threads_only),
            (0x20, 0, 0, 16),  # load the first argument: its flags
            (0x45, 1, 0, 0x00010000),  # CLONE_THREAD
            (0x06, 0, 0, 0x00050000 | 1),
        ]
    steps.append((0x06, 0, 0, 0x7FFF0000))  # allow all else
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
    assert libc.prctl(22, 2, filter, 0, 0) == 0, ctypes.get_errno()
"""

CALLS = """
import warnings
warnings.simplefilter("always")
from fastjob import Parallel, delayed
for options in ({}, {}, {"prefer": "processes"}):
    parallel = Parallel(2, **options)
    found = parallel(delayed(abs)(-i) for i in range(3))
    print(type(parallel._backend).__name__, found)
try:
    Parallel(2, "processes")([delayed(abs)(-1)] * 2)
except Exception as error:
    print(type(error).__name__)
"""

needs_seccomp = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the filter knows the system calls of Linux on x86-64",
)


@needs_seccomp
@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        # fork, vfork and clone but for threads; no clone3, which glibc tries first
        (
            "{57: 1, 58: 1, 435: 38}, threads_only=56",
            "no process can be started: Operation not permitted",
        ),
        ("{53: 13}", "no sockets: Permission denied"),
    ],
    ids=["fork", "sockets"],
)
def test_a_sandbox_without_processes_gets_threads_and_one_warning(
    refused, reason, run_python
):
    done = run_python(f"{SANDBOX}\nrefuse({refused})\n{CALLS}")
    assert done.returncode == 0, done.stderr
    *found, error = done.stdout.splitlines()
    assert found == ["ThreadingBackend [0, 1, 2]"] * 3
    assert error in ("NurseryError", "PermissionError")
    assert done.stderr.count("RuntimeWarning") == 1, done.stderr
    assert reason in done.stderr


@pytest.fixture
def unknown(monkeypatch):
    """The registry has not looked yet whether there are processes."""
    monkeypatch.setattr(registry, "_process_default", None)


def test_a_system_that_starts_no_programs_gets_threads(monkeypatch, unknown):
    monkeypatch.delattr(os, "posix_spawn")
    with pytest.warns(RuntimeWarning, match="starts no programs.*uses threads"):
        parallel = Parallel(2)
    assert type(parallel._backend) is ThreadingBackend
    assert fastjob.available()["processes"] == "this system starts no programs"


def test_an_embedded_interpreter_gets_threads(monkeypatch, unknown):
    monkeypatch.setattr(sys, "executable", "")
    with pytest.warns(RuntimeWarning, match="embedded.*uses threads"):
        parallel = Parallel(2)
    assert type(parallel._backend) is ThreadingBackend


def test_where_there_are_processes_they_are_the_default(unknown):
    assert type(Parallel(2)._backend) is ProcessBackend
    assert starter.why_none() is None


ARRAYS = """
import os, sys
import numpy
from fastjob import Parallel, delayed

def total(a):
    return a.sum(), numpy.full(a.shape, a[0])

def mapped():
    with open("/proc/self/maps") as maps:
        return sorted({line.split(None, 5)[5].split("/")[-1].strip() for line in maps
                       if "fastjob" in line or "(deleted)" in line})

arrays = [numpy.full(300_000, float(i)) for i in range(4)]
found = Parallel(2, "processes")(delayed(total)(a) for a in arrays)
assert [s for s, _ in found] == [300_000.0 * i for i in range(4)]
for a, (_, full) in zip(arrays, found):
    assert (a == full).all()
print([name for name in mapped() if name.startswith("memfd:")])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the list of mappings")
@pytest.mark.parametrize("method", ["nursery", "spawn"])
def test_without_memfd_unlinked_files_take_its_place(method, run_python, temp_folder):
    environ = {**os.environ, "FASTJOB_MEMFD": "0", "FASTJOB_START_METHOD": method}
    before = os.listdir(temp_folder)
    done = run_python(ARRAYS, env=environ)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert os.listdir(temp_folder) == before


@needs_seccomp
def test_where_the_kernel_refuses_memfd_files_take_its_place(run_python):
    done = run_python(f"{SANDBOX}\nrefuse({{319: 38}})\n{ARRAYS}")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_resident_memory_is_known_without_proc():
    known, otherwise = resident_bytes(), resident_bytes("/no/such/file")
    assert otherwise > 1_000_000
    assert abs(known - otherwise) < known / 2
