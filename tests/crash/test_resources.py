"""Resources that run out, and resources that must not grow."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import resource
import subprocess
import sys
import threading
import time

import psutil
import pytest
from gates import until
from scripts import run

import fastjob
from fastjob import Parallel, delayed
from fastjob._pool.pool import pool
from fastjob._pool.pump import Pump


def processes(n_jobs=2, **options):
    return Parallel(n_jobs, "processes", **options)


def identity(x):
    return x


def length(x):
    return len(x)


FEW_DESCRIPTORS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from fastjob import Parallel, delayed, errors
def square(i):
    return i * i
right = [i * i for i in range(300)]
assert Parallel(8)(delayed(square)(i) for i in range(300)) == right
try:
    assert Parallel(100)(delayed(square)(i) for i in range(300)) == right
except (errors.NurseryError, OSError) as error:
    assert "open files" in str(error), error
assert Parallel(8)(delayed(square)(i) for i in range(300)) == right
held = []
try:
    while True:
        held.append(open("/dev/null"))
except OSError:
    pass
try:
    Parallel(90)(delayed(square)(i) for i in range(300))
except (errors.NurseryError, OSError) as error:
    assert "open files" in str(error), error
held.clear()
assert Parallel(8)(delayed(square)(i) for i in range(300)) == right
print("right")
"""


def test_with_64_descriptors_a_right_result_or_a_clear_error():
    assert run(FEW_DESCRIPTORS) == ("right\n", "", 0)


DEATH_WITHOUT_DESCRIPTORS = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from fastjob import Parallel, delayed, errors
def die(i):
    os._exit(3)
# As many workers as there can be: who starts them has no descriptor left.
Parallel(100, batch_size=1)(delayed(abs)(i) for i in range(300))
try:
    Parallel(50, batch_size=1)(delayed(die)(i) for i in range(300))
except errors.TerminatedWorkerError as error:
    assert error.exitcode == 3, error
    print("right")
"""


def test_a_worker_that_dies_when_no_descriptor_is_left_is_that_alone():
    assert run(DEATH_WITHOUT_DESCRIPTORS) == ("right\n", "", 0)


LARGE_ARRAYS = """
import resource
import numpy as np
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import fastjob
from fastjob import Parallel, delayed, errors
def grow(array):
    return np.append(array, len(array))
def call(n_jobs):
    found = Parallel(n_jobs, batch_size=1)(
        delayed(grow)(np.full(150_000 + i, i)) for i in range(50))
    assert [len(array) for array in found] == list(range(150_001, 150_051))
    for i, array in enumerate(found):
        assert (array[:-1] == i).all() and array[-1] == 150_000 + i
call(8)
"""


def test_with_64_descriptors_large_arrays_go_both_ways():
    assert run(LARGE_ARRAYS) == ("", "", 0)


MANY_WORKERS = """
for n_jobs in [20, 30, 50] * 3:
    try:
        call(n_jobs)
    except (errors.NurseryError, OSError) as error:
        assert "open files" in str(error), error
fastjob.shutdown()
call(8)
"""


def test_with_64_descriptors_too_many_workers_for_large_arrays_are_a_clear_error():
    assert run(LARGE_ARRAYS + MANY_WORKERS) == ("", "", 0)


LOST_DESCRIPTORS = """
import resource
import time
import numpy as np
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from fastjob import Parallel, delayed
held = []
def fill(i):
    time.sleep(0.005)
    return np.full(150_000, i)
def tasks():
    for i in range(100):
        yield delayed(fill)(i)
        if i == 12:
            try:
                while True:
                    held.append(open("/dev/null"))
            except OSError:
                pass
Parallel(4, batch_size=1)(delayed(abs)(i) for i in range(20))
try:
    Parallel(4, batch_size=1, pre_dispatch="all")(tasks())
except OSError as error:
    held.clear()
    assert "descriptors of shared memory were lost" in str(error), error
    assert error.__context__ is None, error.__context__
found = Parallel(4, batch_size=1)(delayed(fill)(i) for i in range(20))
assert [array[-1] for array in found] == list(range(20))
print("right")
"""


def test_an_error_of_lost_descriptors_is_not_covered_by_those_that_follow_from_it():
    assert run(LOST_DESCRIPTORS) == ("right\n", "", 0)


NO_DESCRIPTOR_FOR_MEMORY = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))
from fastjob._core.segments import Store
store = Store()
held = []
try:
    while True:
        held.append(open("/dev/null"))
except OSError:
    pass
try:
    store.put(bytes(1 << 20))
except OSError as error:
    held.clear()
    assert "Too many open files; raise the limit" in str(error), error
    assert error.__context__ is None or "tempfile" not in str(error.__context__)
assert bytes(store.put(b"x" * 100)) == b"x" * 100
print("right")
"""


def test_shared_memory_without_a_descriptor_says_so_and_comes_later():
    assert run(NO_DESCRIPTOR_FOR_MEMORY) == ("right\n", "", 0)


NO_DESCRIPTOR_AT_FIRST = """
import resource
from fastjob import Parallel, delayed, errors
resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))
held = []
try:
    while True:
        held.append(open("/dev/null"))
except OSError:
    pass
try:
    print(Parallel(2)(delayed(abs)(i) for i in range(3)))
except (errors.NurseryError, OSError) as error:
    assert "open files" in str(error), error
held.clear()
assert Parallel(2)(delayed(abs)(i) for i in range(3)) == [0, 1, 2]
print("right")
"""


def test_without_any_descriptor_a_clear_error_and_then_a_right_result():
    out, err, code = run(NO_DESCRIPTOR_AT_FIRST)
    assert (out, err, code) == ("right\n", "", 0)


NO_DESCRIPTOR_IN_A_WORKER = """
import os, resource
import numpy as np
import fastjob
from fastjob import Parallel, delayed
def take_all(size):
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    held = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        if size == 0:
            raise
    return np.ones(size)
def call(size):
    fastjob.shutdown()
    return Parallel(2, "processes", on_error="return")([delayed(take_all)(size)] * 2)
for size in 0, 1_000_000:
    for result in call(size):
        assert isinstance(result.exception, OSError), result
        assert "Too many open files" in str(result.exception), result
assert [array.sum() for array in call(10)] == [10, 10]
print("right")
"""


def test_a_task_that_opens_too_many_files_fails_with_its_own_error():
    assert run(NO_DESCRIPTOR_IN_A_WORKER) == ("right\n", "", 0)


FEW_PROCESSES = """
import os, resource
from fastjob import Parallel, delayed, errors
from fastjob._pool.pool import pool
from fastjob._pool.starter import start_method
NONE = "No worker process can be started"
nursery = start_method() == "nursery"
def task(i):
    return i, os.getpid()
def limit(n):
    resource.setrlimit(resource.RLIMIT_NPROC, (n, 1000))
def call():
    return Parallel(8, "processes", batch_size=1)(delayed(task)(i) for i in range(50))
for n, cause in (1, "Cannot start" if nursery else NONE), (2, NONE):
    limit(n)
    try:
        call()
    except errors.NurseryError as error:
        assert cause in str(error) and "temporarily unavailable" in str(error), error
    else:
        raise AssertionError(f"{n} processes cannot do")
    pool.shutdown()
# This one, the nursery, two workers. Without a nursery each worker takes two threads
# as well, and when many are started at once none may get all that it needs.
limit(4 if nursery else 7)
try:
    found = call()
except errors.NurseryError as error:
    assert not nursery and NONE in str(error), error
else:
    assert [i for i, pid in found] == list(range(50))
    assert len({pid for i, pid in found}) <= 2
limit(1000)
assert [i for i, pid in call()] == list(range(50))
print("right")
"""


def become_nobody_in_particular():
    """Count as another user, who is not exempt from limits, with root's other rights.

    A real user would not do: the interpreter may lie in a folder of root's. Each
    process is another one: a second run of the tests must not count.
    """
    drop_from_bounding_set = 24
    for capability in (21, 24):  # CAP_SYS_ADMIN, CAP_SYS_RESOURCE
        assert ctypes.CDLL(None).prctl(drop_from_bounding_set, capability, 0, 0, 0) == 0
    os.setresuid(20_000 + os.getpid() % 40_000, 0, 0)


@pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0,
    reason="only root can become a user that has no other processes",
)
def test_with_few_processes_a_right_result_or_a_clear_error():
    found = run(FEW_PROCESSES, preexec_fn=become_nobody_in_particular)
    assert found == ("right\n", "", 0)


@pytest.fixture
def full_folder(tmp_path):
    """A file system of 64 kB."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting needs root")
    yield folder
    fastjob.shutdown()
    until(lambda: not subprocess.run(["umount", str(folder)], check=False).returncode)


def half(data):
    return data[: len(data) // 2]


def test_a_full_temp_folder_is_passed_over_both_ways(full_folder):
    """The caller warns; workers find another place for their results, too."""
    data = [bytes([i]) * 2_000_000 for i in range(6)]
    with pytest.warns(RuntimeWarning, match="bytes are free") as seen:
        found = processes(temp_folder=str(full_folder), batch_size=1)(
            delayed(half)(x) for x in data
        )
    assert found == [x[:1_000_000] for x in data]
    assert str(full_folder) in str(seen[0].message)
    assert os.listdir(full_folder) == []


def address_space():
    """Bytes of address space that this process uses."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def limited(nbytes):
    """Allocate in a worker that has little address space left."""
    used = address_space()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000, before[1]))
    try:
        return len(bytearray(nbytes))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_no_memory_in_a_worker_is_a_memory_error():
    with pytest.raises(MemoryError):
        processes()([delayed(limited)(100), delayed(limited)(500_000_000)])
    assert processes()([delayed(limited)(100)]) == [100]


def large_when_limited(i):
    """A result that fits once, but not again as a message."""
    if i != 3:
        return i
    limit = (address_space() + 150_000_000, resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, limit)
    return b"x" * 100_000_000


def test_a_result_that_does_not_fit_is_the_error_of_its_task():
    found = processes(on_error="return", batch_size=1)(
        delayed(large_when_limited)(i) for i in range(6)
    )
    assert isinstance(found[3].exception, MemoryError)
    assert found[:3] + found[4:] == [0, 1, 2, 4, 5]


def limit_memory():
    """For as long as this worker lives."""
    limit = (address_space() + 50_000_000, resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, limit)


def test_an_argument_that_does_not_fit_is_the_error_of_its_task():
    data = [b"x", bytes(100_000_000), b"xy"]
    run = processes(on_error="return", batch_size=1, initializer=limit_memory)
    for _ in range(2):
        first, error, last = run(delayed(length)(x) for x in data)
        assert (first, last) == (1, 2)
        assert isinstance(error.exception, (MemoryError, OSError))


def test_200_megabytes_both_ways_at_once():
    chunk = os.urandom(1 << 20)
    data = [chunk * 50 + bytes([i]) * (50 << 20) for i in range(2)]
    found = processes(max_nbytes=None)(delayed(identity)(x) for x in data * 2)
    assert found == data * 2


MANY_MESSAGES = """
from fastjob import Parallel, delayed
def identity(x):
    return x
data = [bytes([i % 256]) * 200_000 for i in range(1000)]
assert Parallel(2, batch_size=1)(delayed(identity)(x) for x in data) == data
with open("/proc/self/maps") as maps:
    assert "memfd:fastjob " not in maps.read(), "it went through shared memory"
"""


def test_200_megabytes_of_messages_fill_the_sockets_and_none_waits_for_ever():
    assert run(MANY_MESSAGES) == ("", "", 0)


# VmHWM, since ru_maxrss counts what the process was before it was this program.
PEAK = """
def peak_kb():
    with open("/proc/self/status") as file:
        return int(file.read().split("VmHWM:")[1].split()[0])
"""

# The workers need 1.5 s for the 1 GB, the reader 5 s: without back-pressure, as with
# pre_dispatch="all", more than half of it lies in memory at some time.
BACK_PRESSURE = """
import time
from fastjob import Parallel, delayed
def result(i):
    return i.to_bytes(4, "big") * 2500
stream = Parallel(2, return_as="{kind}")(delayed(result)(i) for i in range(100_000))
total = 0
for i, data in enumerate(stream):
    total += int.from_bytes(data[:4], "big")
    if i % 1000 == 0:
        time.sleep(0.05)
assert total == sum(range(100_000))
assert peak_kb() < 150_000, peak_kb()
print("right")
"""


@pytest.mark.parametrize("kind", ["generator", "generator_unordered"])
def test_results_that_are_read_slowly_do_not_pile_up(kind):
    assert run(PEAK + BACK_PRESSURE.format(kind=kind)) == ("right\n", "", 0)


def test_results_and_tasks_are_dropped_when_handed_over():
    """Of 60 results and 60 arguments of 10 MB never more than some exist at once."""
    source = """
from fastjob import Parallel, delayed
def grow(x):
    return x + b"."
stream = Parallel(2, return_as="generator", batch_size=1, max_nbytes=None)(
    delayed(grow)(bytes([i]) * 10_000_000) for i in range(60))
for i, data in enumerate(stream):
    assert data[0] == i and len(data) == 10_000_001
assert peak_kb() < 300_000, peak_kb()
print("right")
"""
    assert run(PEAK + source) == ("right\n", "", 0)


def footprint():
    """What this process, the nursery and the workers use."""
    until(lambda: not Pump.running)
    gc.collect()
    process = psutil.Process()
    others = process.children(recursive=True)
    with open("/proc/self/maps") as maps:
        n_maps = len(maps.readlines())
    return {
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "maps": n_maps,
        "processes": len(others),
        "descriptors of others": sum(other.num_fds() for other in others),
        "bytes": process.memory_info().rss,
        "bytes of others": sum(other.memory_info().rss for other in others),
    }


def call(i):
    """Ten kinds of calls, one after the other."""
    kind = i % 10
    if kind == 5:
        stream = processes(return_as="generator")(
            delayed(identity)([k] * 100) for k in range(20)
        )
        assert len(list(stream)) == 20
    elif kind == 6:
        stream = processes(return_as="generator")(
            delayed(identity)(k) for k in range(2000)
        )
        next(stream)
        stream.close()
        until(lambda: not Pump.running)  # or the next call gets other workers
    elif kind == 7:
        with pytest.raises(ZeroDivisionError):
            processes()(delayed(divmod)(k, 0) for k in range(20))
    elif kind == 8:
        # Too large for the socket: through shared memory, both ways
        data = [bytes([k]) * 3_000_000 for k in range(2)]
        assert processes(batch_size=1)(delayed(identity)(x) for x in data) == data
    else:
        assert processes()(delayed(identity)(k) for k in range(8)) == list(range(8))


def test_a_thousand_calls_leave_everything_where_it_was():
    for i in range(10):
        call(i)
    before = footprint()
    for i in range(10, 1000):
        call(i)
    after = footprint()
    assert after["descriptors"] <= before["descriptors"] + 2
    assert after["threads"] <= before["threads"] + 1
    assert after["maps"] <= before["maps"] + 20
    assert after["processes"] <= before["processes"] + 2
    assert after["descriptors of others"] <= before["descriptors of others"] + 4
    assert after["bytes"] <= before["bytes"] + 20_000_000
    assert after["bytes of others"] <= before["bytes of others"] + 20_000_000


def nested(i, k):
    found = Parallel(2, "threading")(delayed(divmod)(j, k) for j in (i, i + 1))
    return found[0]


def work_for_a_while(backend, k, whole):
    """Calls of many kinds; `whole` is whether the stream is read to its end."""
    right = [divmod(i, k) for i in range(50)]
    run = Parallel(2, backend)
    assert run(delayed(divmod)(i, k) for i in range(50)) == right
    assert run(delayed(nested)(i, k) for i in range(10)) == right[:10]
    stream = Parallel(2, backend, return_as="generator")(
        delayed(divmod)(i, k) for i in range(50)
    )
    assert next(stream) == right[0]
    if whole:
        assert list(stream) == right[1:]
    else:
        stream.close()
    with pytest.raises(ZeroDivisionError):
        run(delayed(divmod)(i, 0) for i in range(5))


@pytest.mark.slow
def test_sixteen_threads_on_all_backends_at_once_for_a_minute():
    """One of them from asyncio."""
    backends = ["processes", "threading", "sequential", "multiprocessing"]
    rounds, wrong = [0] * 16, []
    # What it imports first must not register itself at forks in the midst of a fork.
    asyncio.run(asyncio.to_thread(int))
    end = time.monotonic() + 60

    def work(k):
        try:
            while time.monotonic() < end or rounds[k] < len(backends):
                rounds[k] += 1
                todo = (backends[(k + rounds[k]) % 4], k + 1, rounds[k] % 3 > 0)
                if k == 15:
                    asyncio.run(asyncio.to_thread(work_for_a_while, *todo))
                else:
                    work_for_a_while(*todo)
        except BaseException as error:
            wrong.append((k, error))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    pool.shutdown()


def test_calls_from_asyncio():
    def call(k):
        return processes()(delayed(divmod)(i, k) for i in range(20))

    async def main():
        return await asyncio.gather(*(asyncio.to_thread(call, k) for k in range(1, 5)))

    found = asyncio.run(main())
    assert found == [[divmod(i, k) for i in range(20)] for k in range(1, 5)]
