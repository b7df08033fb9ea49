"""Backends written against joblib's protocol: `submit` with a callback."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

import pytest

import fastjob.parallel
from fastjob import Parallel, TaskError, delayed, parallel_config
from fastjob.backends.base import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
)
from fastjob.backends.batch import BatchedCalls
from fastjob.config import get_active_backend


def fail_at(bad, value):
    if value == bad:
        raise LookupError("no such value", value)
    return value


class Futures(ParallelBackendBase):
    """As the documentation tells one to write it: futures and a callback."""

    supports_retrieve_callback = True
    supports_sharedmem = True
    uses_threads = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.log = []

    def effective_n_jobs(self, n_jobs):
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        return n_jobs or 1

    def configure(self, n_jobs=1, parallel=None, **options):
        self.log.append("configure")
        self.options = options
        self.pool = ThreadPoolExecutor(n_jobs)
        return super().configure(n_jobs, parallel)

    def submit(self, func, callback=None):
        future = self.pool.submit(func)
        future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out):
        return out.result()

    def start_call(self):
        self.log.append("start")

    def stop_call(self):
        self.log.append("stop")

    def abort_everything(self, ensure_ready=True):
        self.log.append(f"abort ready={ensure_ready}")
        self.pool.shutdown(cancel_futures=True)
        if ensure_ready:
            self.pool = ThreadPoolExecutor(2)

    def terminate(self):
        self.log.append("terminate")
        self.pool.shutdown()


class Tuned(AutoBatchingMixin, Futures):
    """Sizes of batches from the mixin."""


class Immediate(Futures):
    """Runs each batch, and calls the callback, inside `submit`."""

    def submit(self, func, callback=None):
        result = func()
        callback(result)
        return result

    def retrieve_result_callback(self, out):
        return out


class Old(Futures):
    """Of the time before callbacks brought results; the callback may be left out."""

    supports_retrieve_callback = False

    def configure(self, n_jobs=1, parallel=None, **options):
        self.log.append("configure")
        self.pool = ThreadPool(n_jobs)
        return super(Futures, self).configure(n_jobs, parallel)

    def submit(self, func, callback=None):
        return self.pool.apply_async(func, callback=callback)

    def abort_everything(self, ensure_ready=True):
        self.log.append(f"abort ready={ensure_ready}")

    def terminate(self):
        self.log.append("terminate")
        self.pool.close()
        self.pool.join()


CLASSES = [Futures, Tuned, Immediate, Old]


@pytest.fixture(params=CLASSES)
def own(request):
    return request.param()


# What every call does


def test_results_are_complete_and_in_order(own):
    results = Parallel(n_jobs=3, backend=own)(delayed(abs)(-i) for i in range(200))
    assert results == list(range(200))


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("pre_dispatch", ["2 * n_jobs", "all", 1, 5])
def test_any_batch_size_and_window_give_the_same(own, batch_size, pre_dispatch):
    parallel = Parallel(
        n_jobs=2, backend=own, batch_size=batch_size, pre_dispatch=pre_dispatch
    )
    assert parallel(delayed(abs)(-i) for i in range(50)) == list(range(50))


@pytest.mark.parametrize("item", [5, (abs,), (abs, 1, {}), ("no", (1,), {})])
def test_what_is_no_task_is_refused_with_its_place(own, item):
    tasks = [delayed(abs)(-1), item]
    with pytest.raises(TypeError, match="Task 1 of the input is not a task"):
        Parallel(n_jobs=2, backend=own)(tasks)
    with pytest.raises(TypeError, match="Task 1 of the input is not a task"):
        Parallel(n_jobs=2, backend="multiprocessing")(tasks)


def test_the_life_of_a_call(own):
    Parallel(n_jobs=2, backend=own)([delayed(abs)(-1)])
    assert own.log == ["configure", "start", "stop", "terminate"]


def test_a_with_block_configures_and_terminates_once(own):
    with Parallel(n_jobs=2, backend=own) as parallel:
        for _ in range(2):
            assert parallel([delayed(abs)(-1)]) == [1]
    assert own.log == ["configure"] + ["start", "stop"] * 2 + ["terminate"]


def test_a_failed_call_is_aborted_and_ended(own):
    parallel = Parallel(n_jobs=2, backend=own, pre_dispatch="all", batch_size=1)
    with pytest.raises(LookupError) as caught:
        parallel(delayed(fail_at)(0, i) for i in range(10))
    assert caught.value.args == ("no such value", 0)
    assert "fail_at" in str(caught.value.__cause__)
    assert own.log[-2:] == ["stop", "terminate"]
    assert "abort ready=False" in own.log
    assert parallel([delayed(abs)(-1)]) == [1]


def test_a_failed_call_in_a_with_block_leaves_the_backend_ready(own):
    with Parallel(n_jobs=2, backend=own, pre_dispatch="all", batch_size=1) as parallel:
        with pytest.raises(LookupError):
            parallel(delayed(fail_at)(0, i) for i in range(10))
        assert "abort ready=True" in own.log
        assert parallel([delayed(abs)(-1)]) == [1]


def test_neighbours_of_a_failed_task_keep_their_results(own):
    parallel = Parallel(n_jobs=2, backend=own, batch_size=4, on_error="return")
    results = parallel(delayed(fail_at)(2, i) for i in range(8))
    assert [r for r in results if not isinstance(r, TaskError)] == [0, 1, 3, 4, 5, 6, 7]
    assert results[2].index == 2
    assert parallel._counters.failed_tasks == 1


def test_a_failed_task_is_run_again_alone(own):
    left = [2]

    def fails_twice(i):
        if i == 1 and left[0]:
            left[0] -= 1
            raise OSError
        return i

    parallel = Parallel(n_jobs=2, backend=own, batch_size=4, retries=2)
    assert parallel(delayed(fails_twice)(i) for i in range(8)) == list(range(8))
    assert parallel._counters.retried_tasks == 2
    assert parallel._counters.failed_tasks == 0
    assert parallel.n_completed_tasks == 8


def test_a_task_that_always_fails_is_tried_as_often_as_asked(own):
    parallel = Parallel(n_jobs=2, backend=own, retries=2, on_error="return")
    [error] = parallel([delayed(fail_at)(0, 0)])
    assert error.attempts == 3
    with pytest.raises(LookupError):
        Parallel(n_jobs=2, backend=own, retries=2)([delayed(fail_at)(0, 0)])


@pytest.mark.parametrize("kind", ["generator", "generator_unordered"])
def test_streams_are_complete(own, kind):
    results = (
        Parallel(n_jobs=2, backend=own, return_as=kind)
        if own.supports_retrieve_callback
        else None
    )
    if results is None:
        with pytest.raises(ValueError, match=f"does not support return_as={kind}"):
            Parallel(n_jobs=2, backend=own, return_as=kind)
        return
    assert sorted(results(delayed(abs)(-i) for i in range(60))) == list(range(60))


def test_tasks_see_the_nested_backend(own):
    def see():
        backend, n_jobs = get_active_backend()
        return type(backend).__name__, backend.nesting_level, n_jobs

    seen = Parallel(n_jobs=2, backend=own)(delayed(see)() for _ in range(3))
    assert seen == [("ThreadingBackend", 1, None)] * 3
    # The thread that ran a task inside `submit` is as it was.
    assert get_active_backend()[0].nesting_level == 0


def test_an_error_of_the_input_aborts_the_call(own):
    def tasks():
        yield delayed(abs)(-1)
        raise KeyError("input")

    parallel = Parallel(n_jobs=2, backend=own)
    with pytest.raises(KeyError, match="input"):
        parallel(tasks())
    assert own.log[-2:] == ["stop", "terminate"]
    assert parallel([delayed(abs)(-1)]) == [1]


def test_a_task_that_is_no_task_is_named(own):
    with pytest.raises((TypeError, ValueError)):
        Parallel(n_jobs=2, backend=own)([3])


# Details of the protocol


def test_configure_is_given_the_options_of_the_call():
    own = Futures()
    Parallel(n_jobs=2, backend=own, max_nbytes="1K", sheep=3)([delayed(abs)(1)])
    assert own.options == {
        "sheep": 3,
        "max_nbytes": 1024,
        "temp_folder": None,
        "mmap_mode": "r",
        "prefer": None,
        "require": None,
        "verbose": 0,
    }
    assert isinstance(own.parallel, Parallel)


def test_results_are_waited_for_in_the_retrieval_context(own):
    inside = []

    @contextlib.contextmanager
    def context():
        inside.append("in")
        yield
        inside.append("out")

    own.retrieval_context = context
    Parallel(n_jobs=2, backend=own)([delayed(abs)(-1)])
    assert inside == ["in", "out"]


def test_the_tuner_is_told_of_each_batch():
    told = []

    class Told(Futures):
        def compute_batch_size(self):
            return 3

        def batch_completed(self, batch_size, duration):
            told.append(batch_size)
            assert duration > 0

    Parallel(n_jobs=2, backend=Told())(delayed(abs)(-i) for i in range(7))
    assert sorted(told) == [1, 3, 3]


def test_a_backend_may_fall_back_to_another():
    class Falls(Futures):
        def configure(self, n_jobs=1, parallel=None, **options):
            raise FallbackToBackend(Futures(nesting_level=0))

    parallel = Parallel(n_jobs=2, backend=Falls())
    assert parallel([delayed(abs)(-1)]) == [1]
    assert type(parallel._backend) is Futures


def test_a_backend_with_one_worker_is_a_plain_loop_and_is_terminated(own):
    [ident] = Parallel(n_jobs=1, backend=own)([delayed(threading.get_ident)()])
    assert ident == threading.get_ident()
    assert own.log == ["configure", "terminate"]


def test_no_worker_at_all_is_an_error():
    class Empty(Futures):
        def effective_n_jobs(self, n_jobs):
            return 0

    with pytest.raises(RuntimeError, match="Empty has no active worker"):
        Parallel(n_jobs=2, backend=Empty())([])


def test_an_error_of_submit_ends_the_call():
    class Full(Futures):
        def submit(self, func, callback=None):
            raise OSError("queue full")

    own = Full()
    with pytest.raises(OSError, match="queue full"):
        Parallel(n_jobs=2, backend=own)([delayed(abs)(-1)])
    assert own.log[-2:] == ["stop", "terminate"]


def test_an_error_of_the_backend_counts_for_each_task_of_the_batch():
    class Lossy(Futures):
        def retrieve_result_callback(self, out):
            raise ConnectionError("batch lost")

    with pytest.raises(ConnectionError, match="batch lost"):
        Parallel(n_jobs=2, backend=Lossy())([delayed(abs)(-1)])
    results = Parallel(n_jobs=2, backend=Lossy(), on_error="return", batch_size=2)(
        delayed(abs)(-i) for i in range(3)
    )
    assert [type(r.exception) for r in results] == [ConnectionError] * 3


def test_apply_async_still_works_and_is_deprecated():
    class Older(Futures):
        submit = ParallelBackendBase.submit

        def apply_async(self, func, callback=None):
            return Futures.submit(self, func, callback)

    with pytest.warns(DeprecationWarning, match=r"Older.apply_async is deprecated"):
        assert Parallel(n_jobs=2, backend=Older())([delayed(abs)(-1)]) == [1]


@pytest.mark.parametrize(
    ("missing", "match"),
    [
        ("submit", "neither submit nor apply_async"),
        ("retrieve_result_callback", "does not define retrieve_result_callback"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*apply_async is deprecated")
def test_a_backend_that_lacks_a_method_is_told_which(missing, match):
    lacking = type(
        "Lacking", (Futures,), {missing: getattr(ParallelBackendBase, missing)}
    )
    with pytest.raises(NotImplementedError, match=match):
        Parallel(n_jobs=2, backend=lacking())([delayed(abs)(-1)])


def test_a_late_callback_of_an_ended_call_is_ignored():
    kept = []

    class Late(Futures):
        def submit(self, func, callback=None):
            kept.append((func, callback))
            if len(kept) == 2:
                kept[1][1](kept[1][0]())  # the second task fails first

        def retrieve_result_callback(self, out):
            return out

    parallel = Parallel(n_jobs=2, backend=Late(), batch_size=1)
    with pytest.raises(LookupError):
        parallel(delayed(fail_at)(1, i) for i in range(2))
    func, callback = kept[0]
    callback(func())
    assert parallel.n_completed_tasks == 0


def test_nothing_is_submitted_once_a_failure_has_come():
    submitted = []

    class Bunched(Futures):
        def submit(self, func, callback=None):
            submitted.append((func, callback))
            if len(submitted) == 2:
                for func, callback in submitted:  # one that succeeds, one that fails
                    callback(func())

        def retrieve_result_callback(self, out):
            return out

    with pytest.raises(LookupError):
        Parallel(n_jobs=2, backend=Bunched(), pre_dispatch=2, batch_size=1)(
            delayed(fail_at)(1, i) for i in range(9)
        )
    assert len(submitted) == 2


def test_the_input_is_taken_as_results_come():
    parallel = Parallel(n_jobs=2, backend=Immediate(), pre_dispatch=3, batch_size=1)
    lead = []

    def tasks():
        for i in range(9):
            lead.append(i - parallel.n_completed_tasks)
            yield delayed(abs)(i)

    parallel(tasks())
    assert lead[:3] == [0, 1, 2]
    assert max(lead) == 2


def test_an_ordered_stream_does_not_run_away_behind_a_slow_task():
    release = threading.Event()
    taken = []

    def tasks():
        yield delayed(release.wait)()
        for i in range(1000):
            taken.append(i)
            if len(taken) == 1000:
                release.set()
            yield delayed(abs)(i)

    results = Parallel(2, Futures(), "generator", pre_dispatch=4, batch_size=1)(tasks())
    timer = threading.Timer(0.2, release.set)
    timer.start()
    assert next(results) is True
    assert len(taken) < 100
    assert list(results) == list(range(1000))
    timer.join()


# Time limits


class Stuck(Futures):
    """Task 1 never ends; the others do at once."""

    def submit(self, func, callback=None):
        if 1 in [args[0] for _, args, _ in func.items]:
            return None
        callback(func())
        return None

    def retrieve_result_callback(self, out):
        return out

    def abort_everything(self, ensure_ready=True):
        self.log.append(f"abort ready={ensure_ready}")


@pytest.mark.parametrize("batch_size", [1, 10])
def test_a_task_that_runs_for_too_long_is_named(batch_size):
    parallel = Parallel(2, Stuck(), timeout=0.05, batch_size=batch_size)
    with pytest.raises(TimeoutError, match=r"task 1: abs\(1\)") as caught:
        parallel(delayed(abs)(i) for i in range(5))
    assert caught.value.index == 1


def test_the_others_keep_their_results_when_errors_are_returned():
    own = Stuck()
    results = Parallel(2, own, timeout=0.05, on_error="return")(
        delayed(abs)(i) for i in range(5)
    )
    assert results[:1] + results[2:] == [0, 2, 3, 4]
    assert isinstance(results[1].exception, TimeoutError)
    assert "abort ready=True" in own.log


def test_a_time_limit_that_the_backend_cannot_keep_is_warned_of():
    class Patient(Futures):
        supports_timeout = False

    with pytest.warns(UserWarning, match="'Patient' does not support timeout"):
        assert Parallel(2, Patient(), timeout=9)([delayed(abs)(-1)]) == [1]


def test_an_old_backend_is_given_the_time_limit():
    given = []

    class Limits(Old):
        supports_timeout = True

        def retrieve_result(self, out, timeout=None):
            given.append(timeout)
            return super().retrieve_result(out, timeout)

    assert Parallel(2, Limits(), timeout=9)([delayed(abs)(-1)]) == [1]
    assert given == [9.0]


# The mixin that sizes batches


class Silent:
    verbose = 0


def tuner(duration, size=1):
    own = Tuned()
    own.parallel = Silent()
    own._effective_batch_size = size
    own.batch_completed(size, duration)
    return own


@pytest.mark.parametrize(
    ("size", "duration", "next_size"),
    [
        (1, 0.05, 2),  # far too short: doubled
        (8, 0.15, 16),  # somewhat short: twice the ideal, at most doubled
        (4, 1.0, 4),  # right
        (10, 4.0, 1),  # far too long
        (100, 4.0, 10),
        (1, 60.0, 1),  # one task is the least
    ],
)
def test_batches_grow_and_shrink_towards_a_useful_duration(size, duration, next_size):
    own = tuner(duration, size)
    assert own.compute_batch_size() == next_size
    if next_size != size:
        assert own._smoothed_batch_duration == 0.0


def test_durations_are_smoothed_and_other_sizes_do_not_count():
    own = tuner(1.0, 4)
    own.batch_completed(4, 0.5)
    assert own._smoothed_batch_duration == pytest.approx(0.9)
    own.batch_completed(3, 100.0)
    assert own._smoothed_batch_duration == pytest.approx(0.9)
    own.reset_batch_stats()
    assert own._smoothed_batch_duration == 0.0
    assert own.compute_batch_size() == 1


@pytest.mark.parametrize(
    ("size", "duration", "message"),
    [
        (1, 0.05, "Batch computation too fast (0.05s.) Setting batch_size=2."),
        (10, 4.0, "Batch computation too slow (4.0s.) Setting batch_size=1."),
    ],
)
def test_a_change_of_size_is_told_at_verbosity_ten(size, duration, message, capsys):
    own = tuner(duration, size)
    own.parallel = Parallel(n_jobs=1, backend="threading", verbose=10)
    own.compute_batch_size()
    assert capsys.readouterr().err == f"[Parallel(n_jobs=1)]: {message}\n"


# BatchedCalls, as extension code makes it


@pytest.mark.parametrize("nested", [None, ("threading", 3)])
def test_batched_calls_run_their_tasks(nested):
    if nested is not None:
        nested = (Futures(nesting_level=1), 3)
    calls = BatchedCalls([delayed(get_active_backend)()], nested, None, {})
    assert len(calls) == 1
    [(backend, n_jobs)] = calls()
    if nested is not None:
        assert (backend, n_jobs) == nested
    assert fastjob.parallel.BatchedCalls is BatchedCalls


# joblib's own classes


@pytest.fixture
def joblib():
    return pytest.importorskip("joblib")


JOBLIBS_BACKENDS = """
import sys
from fastjob import Parallel, delayed
import joblib

def square(x):
    return x * x

def fail_at(bad, value):
    if value == bad:
        raise LookupError("no such value", value)
    return value

if __name__ == "__main__":
    own = getattr(joblib.parallel, sys.argv[1])()
    parallel = Parallel(n_jobs=2, backend=own)
    assert parallel(delayed(square)(i) for i in range(20)) == [i * i for i in range(20)]
    try:
        parallel(delayed(fail_at)(3, i) for i in range(9))
    except LookupError as error:
        print(error.args, "fail_at" in str(error.__cause__))
    with parallel:
        print(parallel([delayed(abs)(-1)]), parallel([delayed(abs)(-2)]))
    print(*Parallel(1, own)([delayed(abs)(-3)]))
"""


@pytest.mark.parametrize(
    "name", ["ThreadingBackend", "LokyBackend", "MultiprocessingBackend"]
)
def test_joblibs_own_backends_run_unchanged(joblib, name, run_python):
    """Of what is printed as an error, only what names fastjob counts.

    joblib's loky executor may lose its own thread to a KeyError when it is told to
    kill its workers just after a submission, as every failed call does, joblib's own
    among them; it then also leaves semaphores to be cleaned up at exit. The workers
    are gone by then, and the call has its error: all that is left of it is the noise.
    """
    done = run_python(JOBLIBS_BACKENDS, name)
    assert done.returncode == 0
    assert "fastjob" not in done.stderr
    assert done.stdout == "('no such value', 3) True\n[1] [2]\n3\n"


def test_joblibs_sequential_fallback_is_taken(joblib):
    own = joblib.parallel.ThreadingBackend(nesting_level=0)
    [ident] = Parallel(n_jobs=1, backend=own)([delayed(threading.get_ident)()])
    assert ident == threading.get_ident()


def test_a_class_derived_from_joblibs_base_is_accepted(joblib):
    class Theirs(joblib.parallel.ParallelBackendBase):
        supports_retrieve_callback = True

        submit = Futures.submit
        retrieve_result_callback = Futures.retrieve_result_callback

        def effective_n_jobs(self, n_jobs):
            return n_jobs

        def configure(self, n_jobs=1, parallel=None, **options):
            self.pool = ThreadPoolExecutor(n_jobs)
            self.parallel = parallel
            return n_jobs

        def terminate(self):
            self.pool.shutdown()

    def nested():
        return type(get_active_backend()[0]).__module__

    joblib.register_parallel_backend("theirs", Theirs)
    try:
        with parallel_config(backend="theirs", n_jobs=2):
            parallel = Parallel()
            assert (
                parallel(delayed(nested)() for _ in range(2))
                == ["fastjob.backends.threading"] * 2
            )
    finally:
        del joblib.parallel.BACKENDS["theirs"]
