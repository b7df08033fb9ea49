"""The engine of clusters, over transports that need no cluster."""

from pathlib import Path

import numpy as np
import pytest
from fake_cluster import FIGURES, InlineTransport, figures, simulate

from fastjob import TaskError, delayed
from fastjob._core.autobatch import AutoBatch
from fastjob._core.call import Call
from fastjob.backends import cluster
from fastjob.backends.batch import size_within
from fastjob.backends.cluster import ClusterEngine, count_cluster
from fastjob.backends.cluster_calls import Parts, fingerprint
from fastjob.errors import ClusterError, TerminatedWorkerError


def square(x):
    return x * x


def total(array, x=0):
    return float(array.sum()) + x


def run(transport, tasks, **options):
    n_jobs = transport.n_workers
    call = Call(n_jobs, **{"ahead": 2 * n_jobs, "max_nbytes": 1000, **options})
    return ClusterEngine(transport, call).run(iter(tasks))


def test_tasks_are_batched_and_results_in_order():
    transport = InlineTransport()
    tasks = [delayed(square)(i) for i in range(3000)]
    assert run(transport, tasks) == [i * i for i in range(3000)]
    assert len(transport.sent) < 100
    assert sorted(i for indices, _ in transport.sent for i in indices) == list(
        range(3000)
    )
    assert transport.closed == 1


def test_batches_do_not_get_longer_with_the_call():
    tuner = AutoBatch(2)
    tuner.record(1000, 10**9)  # 1 ms each, and the call has lasted long
    for _ in range(10):
        tuner.record(tuner.size, 10**6 * tuner.size)
    assert tuner.size == 40
    assert size_within(tuner, 10**7) == 10
    assert size_within(AutoBatch(2, 40), 10**7) == 40
    assert size_within(AutoBatch(2), 10**7) == 1


def test_a_function_is_pickled_once_a_call():
    pickled = []

    class Counted:
        def __reduce__(self):
            pickled.append(self)
            return Counted, ()

        def __call__(self, x):
            return x

    counted = Counted()
    parts = Parts(lambda value: value, 1000)
    assert parts.number_of(counted) == 0
    times = len(pickled)
    assert times > 0
    assert [parts.number_of(counted) for _ in range(10)] == [0] * 10
    assert len(pickled) == times


def test_a_large_common_argument_is_sent_once():
    array = np.ones(1000)
    transport = InlineTransport()
    tasks = [delayed(total)(array, x=i) for i in range(50)]
    assert run(transport, tasks, batch_size=1) == [1000.0 + i for i in range(50)]
    assert len(transport.values) == 1
    sizes = [size for _, size in transport.sent]
    assert sizes[0] > array.nbytes
    assert max(sizes[1:]) < 1000


def test_large_arguments_that_differ_stay_with_their_tasks():
    transport = InlineTransport()
    tasks = [delayed(total)(np.full(1000, i)) for i in range(10)]
    assert run(transport, tasks) == [1000.0 * i for i in range(10)]
    assert transport.values == []


def test_a_buffer_that_is_filled_again_is_another_argument():
    array = np.zeros(1000)

    def tasks():
        for i in (1, 1, 2, 2, 1, 3):
            array[:] = i
            yield delayed(total)(array)

    transport = InlineTransport()
    found = run(transport, tasks(), batch_size=1)
    # What was sent once is a copy in a real cluster; here it is the buffer itself, so
    # only what is found to be new can be right.
    assert len(transport.values) == 2
    assert found[0] == 1000.0
    assert found[2] == 2000.0
    assert found[5] == 3000.0


def test_what_is_scattered_is_sent_before_the_first_task():
    array = np.ones(1000)
    transport = InlineTransport()
    results = run(transport, [delayed(total)(array)] * 3, options={"scatter": [array]})
    assert results == [1000.0] * 3
    assert transport.values == [array]
    assert max(size for _, size in transport.sent) < 2000


@pytest.mark.parametrize("large", [-1, 10**6])
def test_small_arguments_are_never_shared(large):
    parts = Parts(lambda value: value, large)
    array = np.ones(1000)
    for _ in range(3):
        assert parts.share((array, 1), {"k": array})[2] == ()


def test_keywords_are_shared_too_and_keep_their_order():
    parts = Parts(lambda value: value, 100)
    array = np.ones(1000)
    parts.share((array,), {})
    args, kwargs, numbers = parts.share((1, array), {"a": array, "b": 2})
    assert numbers == (0, 0)
    assert [type(arg).__name__ for arg in args] == ["int", "Shared"]
    assert list(kwargs) == ["a", "b"]
    assert type(kwargs["a"]).__name__ == "Shared"


def test_fingerprints_tell_values_apart():
    ones = np.ones(1000)
    assert fingerprint(ones) == fingerprint(ones.copy())
    assert fingerprint(ones) != fingerprint(ones.astype(np.float32))
    assert fingerprint(ones) != fingerprint(ones.reshape(10, 100))
    assert fingerprint(b"a") != fingerprint(bytearray(b"a"))


def test_a_lost_batch_is_sent_again_and_one_bad_task_takes_no_other_along():
    transport = InlineTransport(lose={5})
    tasks = [delayed(square)(i) for i in range(16)]
    results = run(transport, tasks, batch_size=8, return_errors=True)
    bad = results[5]
    assert isinstance(bad, TaskError)
    assert isinstance(bad.exception, ClusterError)
    assert "struck by lightning" in str(bad.exception)
    assert results[:5] + results[6:] == [i * i for i in range(16) if i != 5]


def test_a_task_that_is_always_lost_ends_the_call():
    with pytest.raises(ClusterError, match="lost task 0 3 times"):
        run(InlineTransport(lose={0}), [delayed(square)(1)] * 2)


@pytest.mark.parametrize("batch_size", [1, 8, 100])
def test_only_the_task_that_kills_its_worker_is_blamed(batch_size):
    transport = InlineTransport(kill={5, 6, 70})
    tasks = [delayed(square)(i) for i in range(100)]
    results = run(transport, tasks, batch_size=batch_size, return_errors=True)
    for index in (5, 6, 70):
        error = results[index].exception
        assert isinstance(error, TerminatedWorkerError)
        assert f"task {index}: test_cluster.square({index})" in str(error)
        assert results[index].index == index
    assert [r for r in results if not isinstance(r, TaskError)] == [
        i * i for i in range(100) if i not in {5, 6, 70}
    ]


def test_a_task_is_blamed_after_it_has_been_alone():
    transport = InlineTransport(kill={2})
    tasks = [delayed(square)(i) for i in range(50)]
    with pytest.raises(TerminatedWorkerError, match=r"task 2: .*square\(2\)"):
        run(transport, tasks, batch_size=1)
    # Tasks 2 and 3 died; no new ones came before task 2 had died alone.
    assert [list(job[3]) for job in transport.dead] == [[2], [3], [2]]
    assert [i for indices, _ in transport.sent for i in indices] == [*range(6), 2]


def test_a_lost_batch_is_sent_again_in_few_rounds():
    transport = InlineTransport(lose={123})
    tasks = [delayed(square)(i) for i in range(1000)]
    results = run(transport, tasks, batch_size=1000, return_errors=True)
    assert sum(isinstance(result, TaskError) for result in results) == 1
    sizes = [len(indices) for indices, _ in transport.sent]
    assert sizes == [1000, *[32] * 31, 8, *[1] * 32, 1, 1]


def test_a_call_that_fails_cancels_what_is_in_flight():
    def fail():
        raise LookupError("task")

    transport = InlineTransport()
    with pytest.raises(LookupError, match="task"):
        run(transport, [delayed(fail)(), *[delayed(square)(1)] * 50], batch_size=1)
    assert transport.cancelled
    assert transport.closed == 1


def test_a_cluster_that_has_gone_without_a_word_is_an_error(monkeypatch):
    class Gone(InlineTransport):
        def block(self, jobs, timeout):
            """No job will ever end."""

        def check(self):
            raise ClusterError("nobody answers")

    monkeypatch.setattr(cluster, "CHECK_SECONDS", 0.001)
    transport = Gone()
    with pytest.raises(ClusterError, match="nobody answers"):
        run(transport, [delayed(square)(1)] * 3, batch_size=1)
    assert transport.closed == 1


def test_what_is_wrong_may_come_right_again(monkeypatch):
    now = 100.0
    monkeypatch.setattr(cluster, "monotonic", lambda: now)
    answers = iter(["away", "away", "", "away", "away", "away"])
    watch = cluster.Watch(lambda: next(answers), patience=20.0)
    assert watch.wrong() == ""  # is not asked yet
    found = []
    for _ in range(6):
        now += 10.0
        found.append(watch.wrong())
        assert watch.wrong() == ""  # nor so soon again
    assert found == ["", "", "", "", "", "away"]


def test_the_input_is_taken_no_further_than_the_window():
    taken = []

    def tasks():
        for i in range(10**6):
            taken.append(i)
            yield delayed(square)(i)

    transport = InlineTransport()
    call = Call(2, ahead=4, batch_size=1)
    stream = ClusterEngine(transport, call).stream(tasks())
    assert next(stream) == 0
    assert len(taken) <= 6
    stream.close()
    assert len(transport.cancelled) <= 4


@pytest.mark.parametrize(
    ("n_jobs", "total", "count"), [(None, 8, 1), (3, 8, 3), (-1, 8, 8), (-9, 8, 1)]
)
def test_numbers_of_workers(n_jobs, total, count):
    assert count_cluster(n_jobs, total) == count


@pytest.mark.parametrize(
    ("n_workers", "task_seconds", "n_tasks", "least"),
    [
        (2, 0.001, 20_000, 0.97),
        (2, 0.02, 200, 0.95),
        (100, 0.02, 50_000, 0.95),
        (100, 1.0, 2_000, 0.98),
        (1_000, 0.02, 400_000, 0.6),
        (1_000, 1.0, 20_000, 0.85),
        (10_000, 10.0, 40_000, 0.6),
    ],
)
def test_workers_are_kept_busy_in_virtual_time(n_workers, task_seconds, n_tasks, least):
    assert simulate(n_workers, task_seconds, n_tasks).efficiency > least


@pytest.mark.parametrize("row", [row for row in FIGURES if row[1] <= 50_000])
def test_the_documentation_quotes_the_simulation(row):
    page = Path(__file__).parents[1] / "docs" / "scaling.md"
    assert figures(*row) in page.read_text(encoding="utf-8").splitlines()


def test_a_scheduler_is_not_flooded_by_ten_thousand_workers():
    transport = simulate(10_000, 0.02, 100_000)
    assert transport.n_batches < 2_000
