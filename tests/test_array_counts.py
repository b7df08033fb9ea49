"""What large arrays cost a call, in things that can be counted."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import psutil
import pytest
from gates import until

import fastjob
from fastjob import Parallel, delayed
from fastjob._pool import memory
from fastjob.backends import process_engine

sys.path.append(str(Path(__file__).parents[1]))

np = pytest.importorskip("numpy")

MB = 1_000_000


def ends(array, *others):
    return float(array[0]), float(array[-1])


def filled(value):
    return np.full(20 * MB // 8, float(value))


def refilled(array):
    """A generator function: nothing is known of what it does between two tasks."""
    for i in range(50):
        yield delayed(ends)(array, i)


@pytest.fixture
def captures(monkeypatch):
    """The captures of the calls that are made."""
    made = []
    real = process_engine.Capture

    def make(*args):
        made.append(real(*args))
        return made[-1]

    monkeypatch.setattr(process_engine, "Capture", make)
    return made


@pytest.mark.parametrize("known", [True, False], ids=["quiet", "any generator"])
def test_an_argument_of_100_megabytes_is_copied_once_for_50_tasks(captures, known):
    array = np.ones(100 * MB // 8)
    store = memory.store_for(None)
    before = store.copies, store.copied_bytes
    tasks = refilled(array)
    if known:
        tasks = (delayed(ends)(array, i) for i in range(50))
    assert Parallel(2)(tasks) == [(1.0, 1.0)] * 50
    assert (store.copies, store.copied_bytes) == (before[0] + 1, before[1] + 100 * MB)
    (capture,) = captures
    assert capture.bytes_pickled < 50 * 1000
    assert capture.sharer.comparisons == (0 if known else 49)


def test_the_arrays_inside_a_frame_are_copied_once_for_20_tasks(captures):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(np.ones((MB, 4)), columns=list("abcd"))
    store = memory.store_for(None)
    before = store.copied_bytes
    shapes = Parallel(2)(delayed(np.shape)(frame) for _ in range(20))
    assert shapes == [(MB, 4)] * 20
    assert store.copied_bytes == before + 32 * MB
    assert captures[0].bytes_pickled < 20 * 4000
    assert captures[0].sharer.comparisons == 0


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_task_with_a_large_array_sends_less_than_4_kilobytes():
    from benchmarks import counts

    program = counts.Program("shared_array", "task", 50)
    values = counts.count(program, "fastjob")
    assert 0 < values["bytes sent"] < 4096
    # For all of them: one of the arrays, and the table of each worker's loans.
    assert round(values["segments"] * 50) <= 3


def shared_memory():
    """Bytes of shared memory of this process and its workers."""
    sizes = {}
    family = [os.getpid(), *(p.pid for p in psutil.Process().children(recursive=True))]
    for pid in family:
        for name in os.listdir(f"/proc/{pid}/fd"):
            file = f"/proc/{pid}/fd/{name}"
            try:
                # Without memfd it is a file without a name: "/dev/shm/#12 (deleted)".
                if re.search(r"fastjob|/dev/shm/#", os.readlink(file)):
                    state = os.stat(file)
                    sizes[state.st_ino] = state.st_blocks * 512
            except FileNotFoundError:
                continue  # closed since it was listed
    return sum(sizes.values())


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_after_the_call_shared_memory_is_back_under_its_bound(monkeypatch):
    limit = 48 * MB
    fastjob.shutdown()
    monkeypatch.setenv("FASTJOB_WARM_BYTES", str(limit))
    try:
        array = np.ones(200 * MB // 8)
        Parallel(2)(delayed(ends)(array) for _ in range(4))
        results = Parallel(2, batch_size=1)(delayed(filled)(i) for i in range(8))
        assert shared_memory() > 8 * 20 * MB
        assert [float(r[-1]) for r in results] == [float(i) for i in range(8)]
        del results
        # The caller's own at once; a worker looks when it has been idle for a while.
        assert memory.store_for(None).warm_bytes <= limit
        until(lambda: shared_memory() <= 2 * limit + 8 * MB, 30)
    finally:
        fastjob.shutdown()
