"""Workers that die: the call says which task, and nothing else is lost."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

import pytest
from gates import Bell, Gate, until
from scripts import run

from fastjob import Parallel, TerminatedWorkerError, delayed, parallel_config
from fastjob._pool.pool import oom_kills, pool


def processes(n_jobs=2, **options):
    return Parallel(n_jobs, "processes", **options)


def identity(x):
    return x


def die(how):
    if how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "_exit":
        os._exit(17)
    elif how == "abort":
        os.abort()


def die_at(i, at, how):
    if i == at:
        die(how)
    return i


WAYS = [("SIGKILL", -9), ("segfault", -11), ("_exit", 17), ("abort", -6)]


@pytest.mark.parametrize("batch_size", ["auto", 1, 10])
@pytest.mark.parametrize(("how", "exitcode"), WAYS)
def test_the_error_names_task_and_reason(how, exitcode, batch_size):
    with pytest.raises(TerminatedWorkerError) as caught:
        processes(batch_size=batch_size)(delayed(die_at)(i, 23, how) for i in range(50))
    error = caught.value
    assert error.index == 23
    assert error.function.endswith("die_at")
    assert error.arguments == f"23, 23, '{how}'"
    assert error.exitcode == exitcode
    assert error.pid > 0
    assert error.peak_memory > 1_000_000
    assert processes()(delayed(identity)(i) for i in range(10)) == list(range(10))


@pytest.mark.parametrize(
    ("before", "after", "said"), [(5, 6, True), (5, 5, False), (-1, -1, False)]
)
def test_a_kill_for_lack_of_memory_is_known_by_the_kernels_count(
    monkeypatch, before, after, said
):
    pool.shutdown()
    monkeypatch.setattr("fastjob._pool.pool.oom_kills", lambda: before)
    run = processes(batch_size=1)
    assert run(delayed(identity)(i) for i in range(4)) == [0, 1, 2, 3]
    monkeypatch.setattr("fastjob._pool.pool.oom_kills", lambda: after)
    with pytest.raises(TerminatedWorkerError) as caught:
        run(delayed(die_at)(i, 1, "SIGKILL") for i in range(4))
    assert ("probably out of memory" in str(caught.value)) == said
    # Any other end has another reason, whatever the count says.
    monkeypatch.setattr("fastjob._pool.pool.oom_kills", lambda: after + 1)
    with pytest.raises(TerminatedWorkerError) as caught:
        run(delayed(die_at)(i, 1, "segfault") for i in range(4))
    assert "out of memory" not in str(caught.value)


def test_the_kernels_count_is_read_where_there_is_one():
    count = oom_kills()
    assert count >= 0 if os.path.exists("/proc/vmstat") else count == -1


PEAKS = """
import os
from fastjob import Parallel, TerminatedWorkerError, delayed
def touch_and_die(nbytes):
    data = b"x" * nbytes
    os._exit(1)
for nbytes in 0, 200_000_000:
    try:
        Parallel(2, "processes")([delayed(touch_and_die)(nbytes)])
    except TerminatedWorkerError as error:
        print(error.peak_memory // 100_000_000)
"""


def test_the_peak_memory_of_a_dead_worker_counts_what_its_task_has_touched():
    """In a small program: without a nursery a worker's peak counts its caller's."""
    assert run(PEAKS) == ("0\n2\n", "", 0)


def die_with(*args, **kwargs):
    os._exit(1)


def test_the_message_of_a_death_is_short_however_long_the_arguments():
    long = {"z" * 5000: b"z" * 5000}
    with pytest.raises(TerminatedWorkerError) as caught:
        processes()([delayed(die_with)("x" * 5_000_000, [long] * 1000, **long)])
    assert caught.value.function.endswith("die_with")
    assert caught.value.arguments.startswith("'xxx")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("batch_size", ["auto", 1, 10])
def test_only_the_tasks_that_kill_are_lost(batch_size):
    deadly = [3, 4, 40, 99]
    found = processes(3, on_error="return", batch_size=batch_size)(
        delayed(die_if_in)(i, deadly) for i in range(100)
    )
    for i, value in enumerate(found):
        if i in deadly:
            assert isinstance(value.exception, TerminatedWorkerError)
            assert (value.index, value.exception.index) == (i, i)
            assert value.exception.arguments == f"{i}, {deadly}"
        else:
            assert value == i


def die_if_in(i, deadly):
    if i in deadly:
        os._exit(1)
    return i


def die_once(folder, i):
    """Die on the first run of each third task."""
    try:
        os.close(os.open(f"{folder}/{i}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return i
    if i % 3 == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return i


def count_and_die_at(folder, at, i):
    """Each run of a task leaves its worker's number in a file of the task."""
    with open(os.path.join(folder, str(i)), "ab", 0) as file:
        file.write(b"%d\n" % os.getpid())
    return die_at(i, at, "SIGKILL")


def check_runs(folder, found, at, runs, batch_size=10):
    """Task `at` of 40 has failed for good, and has cost no other task anything.

    Those of its batch that ended before it may have died with their results, and only
    those; later it was alone. Which those were is not known: batches are divided again
    when a worker has nothing to do.
    """
    assert found[:at] + found[at + 1 :] == [i for i in range(40) if i != at]
    assert (found[at].index, found[at].attempts) == (at, runs)
    workers = [(folder / str(i)).read_text().split() for i in range(40)]
    lost = workers.pop(at)
    assert len(lost) == len(set(lost)) == runs
    twice = [others for others in workers if len(others) != 1]
    assert len(twice) < batch_size
    for first, _second in twice:
        assert first == lost[0]


@pytest.mark.parametrize("batch_size", [1, 10])
def test_only_what_ended_just_before_a_death_runs_twice(tmp_path, batch_size):
    found = processes(batch_size=batch_size, on_error="return")(
        delayed(count_and_die_at)(str(tmp_path), 25, i) for i in range(40)
    )
    check_runs(tmp_path, found, 25, 1, batch_size)


@pytest.mark.parametrize("retries", [1, 2])
def test_a_task_that_always_kills_runs_as_often_as_allowed_and_alone(tmp_path, retries):
    found = processes(batch_size=10, on_error="return", retries=retries)(
        delayed(count_and_die_at)(str(tmp_path), 25, i) for i in range(40)
    )
    assert isinstance(found[25].exception, TerminatedWorkerError)
    check_runs(tmp_path, found, 25, retries + 1)


def test_what_to_do_about_deaths_can_come_from_the_configuration(tmp_path):
    with parallel_config("processes", n_jobs=2, on_error="return", retries=1):
        found = Parallel(batch_size=10)(
            delayed(count_and_die_at)(str(tmp_path), 25, i) for i in range(40)
        )
    assert isinstance(found[25].exception, TerminatedWorkerError)
    check_runs(tmp_path, found, 25, 2)


def count_and_hang_at(folder, gate, at, i):
    count_and_die_at(folder, None, i)
    if i == at:
        gate.wait()
    return i


def test_a_task_that_always_takes_too_long_runs_as_often_as_allowed(tmp_path):
    with Gate() as gate:
        found = processes(batch_size=10, on_error="return", retries=1, timeout=1)(
            delayed(count_and_hang_at)(str(tmp_path), gate, 25, i) for i in range(40)
        )
    assert isinstance(found[25].exception, TimeoutError)
    check_runs(tmp_path, found, 25, 2)


@pytest.mark.parametrize("batch_size", ["auto", 7])
def test_with_retries_a_deadly_task_gets_another_worker(tmp_path, batch_size):
    found = processes(retries=1, batch_size=batch_size)(
        delayed(die_once)(str(tmp_path), i) for i in range(40)
    )
    assert found == list(range(40))


def fail_once_at(gate, path, i):
    """Task 0 fails on its first run, and says where; all others wait for that."""
    if i == 0:
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        raise LookupError
    gate.wait()
    return i


def test_a_failed_task_is_run_again_by_another_worker(tmp_path):
    path = str(tmp_path / "pids")
    with Gate() as gate:
        stream = processes(
            retries=1,
            on_error="return",
            batch_size=1,
            return_as="generator_unordered",
        )(delayed(fail_once_at)(gate, path, i) for i in range(2))
        until(lambda: os.path.exists(path))
        gate.open()
        values = list(stream)
    assert {getattr(v, "index", v) for v in values} == {0, 1}
    with open(path) as file:
        pids = file.read().split()
    assert len(pids) == len(set(pids)) == 2


class DiesWhenLoaded:
    def __init__(self, home):
        self.home = home

    def __setstate__(self, state):
        if os.getpid() != state["home"]:
            os._exit(9)
        raise AssertionError("rebuilt in the caller")


def test_an_argument_that_kills_whoever_rebuilds_it_is_shown_and_not_rebuilt():
    with pytest.raises(TerminatedWorkerError) as caught:
        processes()(
            [delayed(identity)(1), delayed(identity)([DiesWhenLoaded(os.getpid())])]
        )
    assert caught.value.index == 1
    assert caught.value.arguments == "[<DiesWhenLoaded object>]"


class DiesWhenPickled:
    def __reduce__(self):
        os._exit(8)


def test_a_result_that_kills_while_it_is_pickled_ends_the_call():
    with pytest.raises(TerminatedWorkerError) as caught:
        processes()(delayed(dangerous_result)(i) for i in range(3))
    assert caught.value.exitcode == 8
    assert processes()([delayed(identity)(4)]) == [4]


def dangerous_result(i):
    return DiesWhenPickled() if i == 1 else i


def deadly_result(i, deadly, seconds):
    """Run for a time, so that results are sent before the batch has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return DiesWhenPickled() if i in deadly else i


@pytest.mark.parametrize("seconds", [0, 0.06])
@pytest.mark.parametrize("deadly", [[0], [4], [2, 6]])
def test_only_the_results_that_kill_while_they_are_pickled_are_lost(deadly, seconds):
    found = processes(on_error="return", batch_size=7)(
        delayed(deadly_result)(i, deadly, seconds) for i in range(7)
    )
    for i, value in enumerate(found):
        if i in deadly:
            assert isinstance(value.exception, TerminatedWorkerError)
            assert (value.index, value.exception.index) == (i, i)
        else:
            assert value == i


def test_workers_killed_while_idle_are_replaced_unseen():
    assert processes()([delayed(identity)(i) for i in range(4)]) == [0, 1, 2, 3]
    peers = list(pool._idle)
    for peer in peers:
        os.kill(peer.pid, signal.SIGKILL)
    until(lambda: all(peer.poll_closed() for peer in peers))
    assert processes()([delayed(identity)(i) for i in range(4)]) == [0, 1, 2, 3]


def test_a_death_is_seen_although_a_grandchild_holds_the_socket():
    """The nursery ends the stream, and the rest of the worker's process group."""
    with Bell() as bell:
        with pytest.raises(TerminatedWorkerError):
            processes()([delayed(leave_grandchild)(bell, sys.executable)] * 2)
        bell.wait()
    assert processes()([delayed(identity)(4)]) == [4]


def leave_grandchild(bell, python):
    subprocess.Popen([python, "-c", "import time; time.sleep(1000)"], close_fds=False)
    bell.ring()
    os._exit(0)


def fork_and_return(i):
    """Only the parent's return counts; the child must not run tasks of the batch."""
    pid = os.fork()
    if pid == 0:
        return -1
    _, status = os.waitpid(pid, 0)
    return i, os.waitstatus_to_exitcode(status)


def fork_and_exit(i):
    pid = os.fork()
    if pid == 0:
        sys.exit(7)
    _, status = os.waitpid(pid, 0)
    return i, os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize("batch_size", [1, 20])
@pytest.mark.parametrize(("task", "code"), [(fork_and_return, 0), (fork_and_exit, 7)])
def test_a_child_forked_by_a_task_never_becomes_a_worker(task, code, batch_size):
    found = processes(batch_size=batch_size)(delayed(task)(i) for i in range(20))
    assert found == [(i, code) for i in range(20)]


def test_a_task_that_closes_every_descriptor_is_a_death_like_any_other():
    with pytest.raises(TerminatedWorkerError):
        processes()([delayed(os.closerange)(0, 1000)] * 2)
    assert processes()([delayed(identity)(4)]) == [4]


def test_workers_that_die_while_the_input_is_read_lose_nothing(tmp_path):
    """The caller is in the input when it hears of the death."""

    def tasks():
        for i in range(40):
            yield delayed(die_once)(str(tmp_path), i)
            time.sleep(0.002)  # slower than the interval of looking at the sockets

    assert processes(retries=1, batch_size=2)(tasks()) == list(range(40))


def test_a_stopped_worker_holds_up_only_its_own_task():
    with Gate() as gate, Bell() as bell:
        stream = processes(return_as="generator_unordered", batch_size=5)(
            [delayed(ring_pid)(bell, gate), *(delayed(identity)(i) for i in range(50))]
        )
        pid = int(bell.wait(8))
        os.kill(pid, signal.SIGSTOP)
        try:
            assert sorted(next(stream) for _ in range(50)) == list(range(50))
        finally:
            os.kill(pid, signal.SIGCONT)
        gate.open()
        assert list(stream) == [pid]


def ring_pid(bell, gate):
    bell.ring(b"%8d" % os.getpid())
    gate.wait()
    return os.getpid()
