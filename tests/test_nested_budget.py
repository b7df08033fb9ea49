"""Nested calls share the cores: processes over threads over native threads."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastjob import Parallel, cpu_count, delayed, effective_n_jobs, shutdown

linux_only = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="looks at threads through /proc"
)


@pytest.fixture
def cores(monkeypatch, request):
    """A machine of so many cores, for this process and its workers."""
    monkeypatch.setenv("FASTJOB_MAX_CPU_COUNT", str(request.param))
    if cpu_count() != request.param:
        pytest.skip(f"this machine has no {request.param} cores")
    yield request.param
    shutdown()


def native_threads(_=None):
    """Threads that one matrix product may use here, of any library."""
    from fastjob import threadpool_info

    return max((one["num_threads"] for one in threadpool_info()), default=1)


def nested(_):
    """How many threads a nested call has, and how many native ones each of them."""
    inner = effective_n_jobs(-1)
    found = Parallel(n_jobs=-1)(delayed(native_threads)(i) for i in range(2 * inner))
    return inner, max(found)


def product(size, repeats):
    import numpy

    matrix = numpy.ones((size, size))
    for _ in range(repeats):
        matrix @ matrix


def nested_products(size, repeats):
    Parallel(n_jobs=-1)(delayed(product)(size, repeats) for _ in range(4))
    return os.getpid()


@pytest.mark.parametrize("cores", [2], indirect=True)
def test_three_levels_of_all_cores_ask_for_no_more_threads_than_cores(cores):
    pytest.importorskip("numpy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Parallel(n_jobs=-1, backend="processes")(
            delayed(nested)(i) for i in range(4)
        )
    for inner, native in found:
        assert cores * inner * native <= cores


@pytest.mark.parametrize("outer", [1, 2, 3])
def test_the_share_of_each_level_follows_from_the_one_above(monkeypatch, outer):
    """On a pretended machine of eight cores."""
    monkeypatch.setattr("fastjob.budget.cpu_count", lambda: 8)
    found = Parallel(n_jobs=outer, backend="threading")(
        delayed(effective_n_jobs)(-1) for _ in range(outer)
    )
    if outer == 1:
        assert found == [8]  # a plain loop shares with nobody
    else:
        # The next level is threads again, or a loop, and never more than the share.
        assert all(outer * inner <= 8 for inner in found)


def test_an_explicit_number_is_taken_at_its_word():
    found = Parallel(n_jobs=2, backend="processes")(
        delayed(explicit)() for _ in range(2)
    )
    assert found == [3, 3]


def explicit():
    ready = threading.Barrier(3)
    # Three tasks that wait for each other end only if three threads run them.
    Parallel(n_jobs=3, backend="threading")(delayed(ready.wait)(30) for _ in range(3))
    return 3


def descendants(pid):
    """Process numbers of a process and all below it."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text()
        except OSError:
            continue  # it has ended
        parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found, new = {pid}, {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def running_threads(pids, but):
    """How many threads of some processes run or wait for a core, at this moment."""
    n = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").glob("[0-9]*"):
            try:
                stat = (thread / "stat").read_text()
            except OSError:
                continue
            if int(thread.name) != but and stat.rpartition(")")[2].split()[0] == "R":
                n += 1
    return n


@linux_only
@pytest.mark.parametrize("cores", [2], indirect=True)
def test_three_levels_on_two_cores_never_have_more_than_four_busy_threads(cores):
    pytest.importorskip("numpy")
    run = Parallel(
        n_jobs=-1, backend="processes", return_as="generator_unordered", batch_size=1
    )
    run_warm = Parallel(n_jobs=-1, backend="processes", batch_size=1)
    run_warm(delayed(nested_products)(100, 1) for _ in range(2))
    pids = descendants(os.getpid())
    me = threading.get_native_id()
    results = run(delayed(nested_products)(500, 4) for _ in range(4))
    most = samples = 0
    done = []
    reader = threading.Thread(target=lambda: done.extend(results))
    reader.start()
    while reader.is_alive():
        busy = running_threads(pids, me)
        most = max(most, busy)
        samples += busy > 0
    reader.join()
    assert len(done) == 4
    assert samples  # something was seen at work
    assert most <= 4


# -- inside somebody else's workers ----------------------------------------------------


def in_daemon(queue):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = Parallel(n_jobs=2, backend="processes", batch_size=1)(
            delayed(abs)(-i) for i in range(6)
        )
        pids = Parallel(n_jobs=2, backend="processes")(
            delayed(os.getpid)() for _ in range(2)
        )
        shutdown()
    queue.put((found, os.getpid() in pids, [str(one.message) for one in caught]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_daemon_of_multiprocessing_may_have_worker_processes(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=in_daemon, args=(queue,), daemon=True)
    process.start()
    try:
        found, itself, messages = queue.get()
    finally:
        process.join()
        process.close()
        queue.close()
    assert found == [0, 1, 2, 3, 4, 5]
    assert not itself
    assert messages == []


def call_in_thread(backend, i):
    return Parallel(n_jobs=2, backend=backend)(delayed(pow)(i, n) for n in range(5))


@pytest.mark.parametrize("backend", ["processes", "threading"])
def test_threads_of_a_thread_pool_may_make_calls_at_the_same_time(backend):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(3) as executor:
            calls = [executor.submit(call_in_thread, backend, i) for i in range(6)]
            found = [call.result() for call in calls]
    assert found == [[i**n for n in range(5)] for i in range(6)]


def test_a_thread_of_a_thread_pool_may_use_all_cores():
    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(effective_n_jobs, -1).result() == cpu_count()
