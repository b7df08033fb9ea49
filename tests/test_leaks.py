"""The check for things left behind finds each kind of thing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import leaks
import pytest

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads what only Linux tells"
)


@pytest.fixture
def new():
    """What has come since the test started, as the strict check tells it."""
    before = leaks.Snapshot.take()

    def found(grace: float = 0.01) -> list[str]:
        return leaks.left_behind(before, pool_may_stay=False, grace=grace)

    return found


def test_nothing_is_found_where_nothing_was_left(new):
    assert new() == []


def test_a_thread_is_found(new):
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="left over")
    thread.start()
    assert new() == ["thread 'left over'"]
    end.set()
    thread.join()
    assert new() == []


def test_a_child_is_found(new):
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert f"process {child.pid}: cat" in new()
    assert new() == []


@linux
def test_an_orphan_is_found(new):
    """The marker finds a process whose parent has gone."""
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w"):
        source = (
            "from subprocess import DEVNULL, Popen\n"
            "print(Popen(['cat'], stdin=0, stdout=DEVNULL).pid)"
        )
        done = subprocess.run(
            [sys.executable, "-c", source],
            stdin=reading,
            stdout=subprocess.PIPE,
            check=True,
        )
        pid = int(done.stdout)
        found = new()
    assert f"process {pid}: cat" in found
    assert new(grace=10) == []  # end of file has ended it


@linux
def test_a_descriptor_is_found(new):
    reading, writing = os.pipe()
    found = new()
    os.close(reading)
    os.close(writing)
    assert [line.partition(":")[0] for line in found] == [
        f"file descriptor {reading}",
        f"file descriptor {writing}",
    ]
    assert new() == []


def test_a_temporary_file_is_found(new):
    name = Path(tempfile.gettempdir()) / "left-over"
    name.touch()
    assert new() == [f"file {name}"]
    name.unlink()


def test_a_pool_may_stay_only_when_allowed(new):
    before = leaks.Snapshot.take()
    command = [sys.executable, "-c", "input() # fastjob._pool"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        assert any(f"process {child.pid}" in line for line in new())
        assert leaks.left_behind(before, pool_may_stay=True) == []
        child.communicate(b"\n")


HOLDS_SHARED_MEMORY = """
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(create=True, size=1)
print(memory.name, flush=True)
input()
memory.unlink()
"""


@linux
def test_shared_memory_is_found(new):
    memory = SharedMemory(create=True, size=1)
    assert f"file /dev/shm/{memory.name}" in new()
    memory.close()
    assert new() == [f"file /dev/shm/{memory.name}"]
    memory.unlink()
    assert new() == []


@linux
def test_shared_memory_of_another_test_run_is_none_of_ours(new):
    start = "import subprocess, sys; subprocess.Popen([sys.executable, *sys.argv[1:]])"
    stranger = {k: v for k, v in os.environ.items() if k != leaks.MARKER}
    with subprocess.Popen(
        [sys.executable, "-c", start, "-c", HOLDS_SHARED_MEMORY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=stranger,
    ) as parent:
        name = parent.stdout.readline().strip()
        parent.wait()
        assert os.path.exists(f"/dev/shm/{name}")
        assert [line for line in new() if "/dev/shm" in line] == []
        parent.stdin.write("\n")
        parent.stdin.close()
        assert parent.stdout.read() == ""  # the stranger has ended
    assert not os.path.exists(f"/dev/shm/{name}")
