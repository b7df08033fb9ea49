"""Large results of the multiprocessing backend, through shared memory."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import re
import signal
import socket
import sys

import pytest

from fastjob import Parallel, TerminatedWorkerError, delayed
from fastjob._core.call import Call
from fastjob.backends import followed, returned
from fastjob.backends.multiprocessing import PickledCalls

np = pytest.importorskip("numpy")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are pickled"),
    pytest.mark.filterwarnings(
        "ignore:This process .* is multi-threaded:DeprecationWarning"
    ),
]

N = 100_000  # 800 kB of float64
METHODS = multiprocessing.get_all_start_methods()


def make(value):
    return np.full(N, float(value))


def same(array, *others):
    return array


def nested(value):
    return {"array": make(value), "list": [make(value + 0.5), "text"], "n": value}


def store_of_worker(value):
    store = returned._lending.store
    store.collect()
    return os.getpid(), store.live_blocks, store.region_count


def die(value):
    if value == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return make(value)


def pool(**options):
    return Parallel(2, "multiprocessing", **{"batch_size": 1, **options})


def receiver(parallel):
    return parallel._backend.batch_class.receiver


def is_shared(line):
    """Whether a mapping, or a link, is of shared memory; in files it has no name."""
    return "/memfd:fastjob" in line or re.search(r"/#\d+ \(deleted\)", line)


def shared_files():
    """Inodes of the shared memory that this process has mapped or open."""
    gc.collect()
    found = set()
    with open("/proc/self/maps") as maps:
        found |= {line.split()[4] for line in maps if is_shared(line)}
    for name in os.listdir("/proc/self/fd"):
        try:
            file = f"/proc/self/fd/{name}"
            if is_shared(os.readlink(file)):
                found.add(str(os.stat(file).st_ino))
        except FileNotFoundError:
            continue  # the one for the list itself
    return found


@pytest.mark.parametrize("method", METHODS)
def test_results_are_ordinary_arrays_of_the_callers(method):
    with pool(context=method) as parallel:
        found = parallel(delayed(make)(i) for i in range(8))
        assert 1 <= len(receiver(parallel).links) <= 2
    for i, array in enumerate(found):
        assert type(array) is np.ndarray and array.flags.writeable
        array += 1
        assert array.min() == array.max() == i + 1


def test_they_come_from_wherever_they_are_in_a_result():
    found = pool()(delayed(nested)(i) for i in range(6))
    for i, result in enumerate(found):
        assert result["array"].max() == i == result["n"]
        assert result["list"][0].min() == i + 0.5 and result["list"][1] == "text"


def test_an_argument_can_be_the_result():
    array = np.arange(2 * N, dtype=float)
    found = pool(max_nbytes="100K")(delayed(same)(array, i) for i in range(4))
    assert [type(a) for a in found] == [np.ndarray] * 4
    assert all(np.array_equal(a, array) for a in found)


def test_little_of_them_goes_through_the_pipes():
    with pool() as parallel:
        maker, sizes = parallel._backend.batch_class, []
        read = maker.read

        def measure(outcome):
            sizes.append(len(pickle.dumps(outcome)))
            return read(outcome)

        maker.read = measure
        parallel(delayed(make)(i) for i in range(20))
    assert len(sizes) == 20
    assert max(sizes) < 1000


def test_what_the_caller_keeps_is_never_overwritten():
    with pool() as parallel:
        kept = parallel(delayed(make)(i) for i in range(10))
        for _ in range(5):
            assert len(parallel(delayed(make)(100 + i) for i in range(10))) == 10
            assert [(a.min(), a.max()) for a in kept] == [(i, i) for i in range(10)]
    assert [(a.min(), a.max()) for a in kept] == [(i, i) for i in range(10)]


def test_memory_is_used_again_once_the_caller_has_let_it_go():
    with pool() as parallel:
        for _ in range(20):
            parallel(delayed(make)(i) for i in range(10))
        gc.collect()
        found = parallel(delayed(store_of_worker)(i) for i in range(20))
        # Of 160 MB; no worker had more than one region of 64.
        assert {(live, regions) for _, live, regions in found} == {(0, 1)}


def test_nothing_is_left_when_the_pool_and_the_results_are_gone():
    before = shared_files()
    found = pool()(delayed(make)(i) for i in range(6))
    assert shared_files() - before
    assert [a.max() for a in found] == list(range(6))
    del found
    assert shared_files() <= before


def test_a_killed_worker_takes_no_results_with_it_and_leaves_nothing():
    before = shared_files()
    with pool() as parallel:
        kept = parallel(delayed(make)(i) for i in range(3))
        with pytest.raises(TerminatedWorkerError):
            parallel(delayed(die)(i) for i in range(6))
        assert [a.max() for a in kept] == [0, 1, 2]
        assert [a.max() for a in parallel(delayed(make)(i) for i in range(3))] == [
            0,
            1,
            2,
        ]
    assert [a.max() for a in kept] == [0, 1, 2]
    del kept
    assert shared_files() <= before


def test_of_workers_that_have_been_replaced_nothing_is_kept():
    with pool(maxtasksperchild=1) as parallel:
        kept = parallel(delayed(make)(i) for i in range(12))
        assert receiver(parallel).links == {}
        assert receiver(parallel).read == {}
    assert [(a.min(), a.max()) for a in kept] == [(i, i) for i in range(12)]


def test_the_way_to_the_caller_has_no_name_that_others_could_use():
    with pool() as parallel:
        found = receiver(parallel)
        for end in (found.way, found.end):
            assert end.getsockname() == "" == end.getpeername()
            assert not end.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def open_files():
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one for the list itself
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_has_its_own_end_alone_so_that_it_sees_the_caller_die(method):
    with pool(context=method) as other, pool(context=method) as parallel:
        ends = [
            f"socket:[{os.fstat(end.fileno()).st_ino}]"
            for p in (other, parallel)
            for end in (receiver(p).end, receiver(p).way)
        ]
        for found in parallel(delayed(open_files)() for _ in range(2)):
            assert ends[3] in found and not found & {ends[0], ends[2]}


def outcome_of(function=make):
    batch = PickledCalls(0, [(function, (4,), {})], Call(2), True, b"", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(followed, "run", lambda state, batch: (batch(), []))
        (result,), failures, *_ = batch.run()
    assert failures == []
    return result


@pytest.fixture
def own(monkeypatch):
    """A receiver whose worker is this process."""
    monkeypatch.setattr(returned, "_lending", None)
    own = returned.Receiver(None)
    monkeypatch.setattr(returned, "_way", own.way)
    yield own
    if returned._lending is not None:
        returned._lending.link.close()
    own.close()


def test_where_there_is_no_way_to_the_caller_the_result_is_pickled():
    assert pickle.loads(outcome_of()).max() == 4


def test_where_there_is_no_room_the_result_is_pickled(own, monkeypatch):
    def full(*args):
        raise OSError(28, "no room")

    monkeypatch.setattr(returned, "encode", full)
    assert pickle.loads(outcome_of()).max() == 4


def test_descriptors_that_could_not_be_sent_go_with_the_next_batch(own, monkeypatch):
    def refuse(*args):
        raise OSError(109, "Too many references: cannot splice")

    with monkeypatch.context() as context:
        context.setattr(socket, "send_fds", refuse)
        with pytest.raises(OSError, match="Too many references"):
            outcome_of()
    lent = outcome_of()
    (array,) = own.load(returned._lending.key, [lent])
    assert array.max() == 4


def closure_and_array(value):
    return lambda: value, make(value)


def test_what_plain_pickle_cannot_carry_has_its_buffers_shared_too(own):
    lent = outcome_of(closure_and_array)
    assert type(lent) is returned.Lent and len(lent.data) < 10_000
    ((function, array),) = own.load(returned._lending.key, [lent])
    assert (function(), array.max()) == (4, 4)
