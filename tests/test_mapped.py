"""Large arguments of the multiprocessing backend, through shared memory."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys

import pytest

from fastjob import Parallel, delayed
from fastjob._core.call import Call
from fastjob.backends import followed, mapped
from fastjob.backends.multiprocessing import MultiprocessingBackend, PickledCalls

np = pytest.importorskip("numpy")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
    pytest.mark.filterwarnings(
        "ignore:This process .* is multi-threaded:DeprecationWarning"
    ),
]

N = 300_000  # 2.4 MB of float64
METHODS = multiprocessing.get_all_start_methods()
kept = []


def look(array, *others):
    return type(array).__name__, float(array[0]), float(array[-1]), os.getpid()


def keep(array):
    kept.append(array)
    return os.getpid()


def look_at_kept():
    return os.getpid(), [float(a[0]) for a in kept], [float(a[-1]) for a in kept]


def write(array):
    array[0] = 7.0
    return type(array).__name__, float(array[0])


def fail_once(array, path):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return float(array[-1])
    raise LookupError(path)


def pool(**options):
    return Parallel(2, "multiprocessing", **options)


def lender(parallel):
    return parallel._backend.batch_class.lender


@pytest.mark.parametrize("method", METHODS)
def test_an_argument_is_copied_once_and_seen_as_a_memmap(method):
    array = np.arange(N, dtype=float)
    with pool(context=method) as parallel:
        found = parallel(delayed(look)(array, i) for i in range(20))
        assert lender(parallel).store.copies == 1
    assert {f[:3] for f in found} == {("memmap", 0.0, N - 1.0)}
    assert os.getpid() not in {f[3] for f in found}


def test_modes():
    array = np.zeros(N)
    with pytest.raises(ValueError, match="read-only"):
        pool()(delayed(write)(array) for _ in range(4))
    assert pool(mmap_mode="c")([delayed(write)(array)] * 4) == [("memmap", 7.0)] * 4
    assert pool(mmap_mode="r+")([delayed(write)(array)] * 4) == [("memmap", 7.0)] * 4
    assert pool(mmap_mode=None)([delayed(write)(array)] * 4) == [("ndarray", 7.0)] * 4
    assert pool(max_nbytes=None)([delayed(write)(array)] * 4) == [("ndarray", 7.0)] * 4
    assert array[0] == 0


def test_smaller_arrays_belong_to_their_task():
    array = np.zeros(20_000)
    assert pool()([delayed(write)(array)] * 4) == [("ndarray", 7.0)] * 4
    assert array[0] == 0


def test_a_refilled_array_is_seen_as_it_was():
    array = np.zeros(N)

    def tasks():
        for i in range(10):
            array[:] = i
            yield delayed(look)(array)

    assert [f[1:3] for f in pool()(tasks())] == [
        (float(i), float(i)) for i in range(10)
    ]


def test_what_a_task_keeps_is_never_overwritten():
    with pool() as parallel:
        keepers = parallel(delayed(keep)(np.full(N, float(i))) for i in range(6))
        for value in range(20):
            array = np.full(N, 100.0 + value)
            parallel(delayed(look)(array) for _ in range(4))
        found = parallel(delayed(look_at_kept)() for _ in range(50))
    assert {pid for pid, *_ in found} & set(keepers)
    given = [{float(i) for i in range(6) if keepers[i] == pid} for pid, *_ in found]
    assert [set(first) for _, first, _ in found] == given
    assert [set(last) for _, _, last in found] == given


def test_memory_is_used_again_once_no_task_has_it():
    with pool() as parallel:
        for value in range(30):
            array = np.full(N, float(value))
            found = parallel(delayed(look)(array) for _ in range(4))
            assert {f[1] for f in found} == {float(value)}
        store = lender(parallel).store
        store.collect()
        assert (store.copies, store.live_blocks, store.region_count) == (30, 0, 1)
        parallel(delayed(keep)(np.zeros(N)) for _ in range(2))
        store.collect()
        assert store.live_blocks == 2
    assert lender(parallel) is None


def test_a_task_that_is_run_again_sees_the_same_values(tmp_path):
    with pool(retries=1, batch_size=2) as parallel:
        found = parallel(
            delayed(fail_once)(np.full(N, float(i)), str(tmp_path / str(i)))
            for i in range(8)
        )
        store = lender(parallel).store
        store.collect()
        assert store.live_blocks == 8  # to the end of the pool
    assert found == [float(i) for i in range(8)]


def hang_once(i, array, path):
    if i < 2:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            signal.pause()
    return array + 0.5


@pytest.mark.parametrize("retries", [0, 1])
def test_batches_that_wait_while_a_task_runs_for_too_long_keep_their_arrays(
    tmp_path, retries
):
    """Tasks 0 and 1 hang; with the first of them, all workers are ended."""
    parallel = pool(timeout=2, on_error="return", retries=retries, batch_size=1)
    found = parallel(
        delayed(hang_once)(i, np.full(N, float(i)), str(tmp_path / str(i)))
        for i in range(10)
    )
    if retries == 0:
        assert isinstance(found[0].exception, TimeoutError)
    for i, array in enumerate(found[1 - retries :], 1 - retries):
        assert array.min() == array.max() == i + 0.5
    assert lender(parallel) is None


def test_a_batch_is_small(monkeypatch):
    monkeypatch.setattr(followed, "run", lambda state, batch: (batch(), []))
    call = Call(2, nested={})
    own = mapped.Lender(call)
    array = np.zeros(N)
    batch = PickledCalls(
        0, [(look, (array, i), {}) for i in range(10)], call, True, b"", own
    )
    assert len(pickle.dumps(batch)) < 10 * 1000
    results, failures, _, said, number, key = batch.run()
    assert (failures, said, number, key) == ([], [], 1, b"")
    assert [pickle.loads(r)[0] for r in results] == ["memmap"] * 10
    assert own.store.copies == 1
    own.close()


def fork(array):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_memory_that_a_child_of_a_task_can_read_is_not_used_again():
    with pool() as parallel:
        parallel(delayed(fork)(np.zeros(N)) for _ in range(2))
        store = lender(parallel).store
        store.collect()
        assert store.live_blocks == 2


def test_where_descriptors_cannot_be_opened_arrays_are_pickled(monkeypatch):
    monkeypatch.setattr(mapped, "reachable", lambda: False)
    array = np.arange(N, dtype=float)
    with pool() as parallel:
        found = parallel(delayed(look)(array) for _ in range(4))
        assert lender(parallel) is None
    assert {f[:3] for f in found} == {("ndarray", 0.0, N - 1.0)}


def test_a_task_that_cannot_be_pickled_keeps_no_memory():
    with pool() as parallel:
        with pytest.raises(Exception, match="pickle"):
            parallel(delayed(look)(np.zeros(N), sys._getframe()) for _ in range(2))
        assert isinstance(parallel._backend, MultiprocessingBackend)
        array = np.ones(N)
        assert parallel([delayed(look)(array)] * 2)[0][1] == 1.0
