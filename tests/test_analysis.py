"""The summary: each way a run can be held back is named, with its figures."""

import pytest

from fastjob.analysis import format_time, lane_name, plural, summarise
from fastjob.recorder import SUMS

S = 10**9


def run(n_jobs=4, cpus=4, wall=10 * S, tasks=400, losses=(), longest=(), **sums):
    """Data of a run whose workers were busy but for the given losses."""
    parts = dict.fromkeys(("starting", "ending", "unused", "between"), 0) | dict(losses)
    capacity = n_jobs * wall
    busy = capacity - sum(parts.values())
    totals = dict.fromkeys(SUMS, 0) | {"busy": busy, "tasks": tasks, "batches": 40}
    call = {"number": 0, "n_jobs": n_jobs, "lanes": n_jobs, "tasks": tasks}
    return {
        "cpus": cpus,
        "memory": 16 * 10**9,
        "n_calls": 1,
        "calls": [call],
        "lanes": [{"kind": "process", "worker": 100 + i} for i in range(n_jobs)],
        "totals": totals | sums,
        "losses": {"wall": wall, "capacity": capacity, "busy": busy, **parts},
        "event_counts": {},
        "longest": list(longest),
    }


def reasons(data):
    return {reason["kind"]: reason for reason in summarise(data)[1:]}


def only(data):
    found = reasons(data)
    assert len(found) == 1, found
    (reason,) = found.values()
    return reason


def test_a_good_run_is_told_so():
    overview, nothing = summarise(run(losses={"ending": S // 10}))
    assert overview["text"] == (
        "400 tasks in 40 batches and 1 call took 10 s on 4 workers, which ran tasks "
        "for 100% of that time."
    )
    assert nothing["text"] == "Nothing held the run back."


def test_a_run_without_tasks_is_told_so():
    (reason,) = summarise(run(tasks=0))
    assert reason["text"] == "No task was recorded."


def test_serial_input():
    data = run(losses={"between": 20 * S}, input=9 * S)
    reason = only(data)
    assert (reason["kind"], reason["share"]) == ("input", 0.5)
    assert "waited 50%" in reason["text"]
    assert "took 9 s (90% of the run)" in reason["text"]


def test_serial_input_that_is_slow_from_the_start():
    assert only(run(losses={"starting": 20 * S}, input=9 * S))["kind"] == "input"


def test_pickling():
    data = run(
        losses={"between": 20 * S}, pickle=4 * S, unpickle=2 * S, bytes_out=5 * 10**9
    )
    reason = only(data)
    assert reason["kind"] == "pickling"
    assert "took 6 s (60% of the run)" in reason["text"]
    assert "5.0 GB in all" in reason["text"]


def test_copying():
    data = run(losses={"between": 20 * S}, copy=24 * S, bytes_in=7 * 10**9)
    reason = only(data)
    assert reason["kind"] == "copying"
    assert "7.0 GB of large arrays were copied, which took 6 s (60%" in reason["text"]


def test_tiny_tasks():
    data = run(losses={"between": 20 * S}, tasks=20_000_000)
    reason = only(data)
    assert reason["kind"] == "tiny tasks"
    assert "took 1 µs on average" in reason["text"]


def test_waiting_that_nothing_explains():
    assert only(run(losses={"between": 20 * S}))["kind"] == "waiting"


def test_starting():
    reason = only(run(losses={"starting": 8 * S}))
    assert reason["kind"] == "starting"
    assert "took 20%" in reason["text"]


def test_too_few_tasks_for_the_workers():
    data = run(losses={"unused": 20 * S}, tasks=2)
    data["calls"][0]["lanes"] = 2
    reason = only(data)
    assert reason["kind"] == "too few tasks"
    assert "call 1 had 2 tasks for 4 workers, of which 2 got any" in reason["text"]


def test_too_few_tasks_to_share_out_evenly():
    longest = [{"index": 3, "duration": 5 * S, "lane": 1}]
    reason = only(run(losses={"ending": 10 * S}, tasks=6, longest=longest))
    assert reason["kind"] == "too few tasks"
    assert "A task took 5 s on average" in reason["text"]


def test_a_straggler():
    longest = [{"index": 398, "duration": 6 * S, "lane": 1}]
    reason = only(run(losses={"ending": 15 * S}, longest=longest))
    assert reason["kind"] == "straggler"
    assert (
        "Task 398 took 6 s on process 101, 96 times the mean of 62.5 ms"
        in (reason["text"])
    )


def test_more_workers_than_processors():
    data = run(n_jobs=8, cpus=2, cpu=20 * S)
    reason = only(data)
    assert reason["kind"] == "oversubscription"
    assert reason["share"] == pytest.approx(0.75)
    assert "8 workers on 2 processors" in reason["text"]
    assert "a processor for 25% of the time" in reason["text"]


def test_inner_threads():
    reason = only(run(cpu=80 * S))
    assert reason["kind"] == "oversubscription"
    assert "each task used 2.0 processors" in reason["text"]


def test_tasks_that_wait_are_not_taken_for_oversubscription():
    assert only(run(n_jobs=4, cpus=4, cpu=4 * S))["kind"] == "nothing"


def test_memory():
    data = run()
    data["lanes"][0]["peak_memory"] = 15 * 10**9
    reason = only(data)
    assert reason["kind"] == "memory"
    assert "15.0 GB of 16.0 GB" in reason["text"]


def test_troubles_are_counted_last():
    data = run(losses={"between": 20 * S})
    data["event_counts"] = {"death": 1, "error": 2, "retry": 1, "timeout": 3}
    assert [reason["kind"] for reason in summarise(data)[1:]] == ["waiting", "trouble"]
    text = reasons(data)["trouble"]["text"]
    assert text == "1 worker died, 3 tasks timed out, 2 tasks failed, 1 retry made."


def test_the_largest_loss_is_said_first():
    data = run(losses={"between": 4 * S, "starting": 12 * S})
    assert [reason["kind"] for reason in summarise(data)[1:]] == ["starting", "waiting"]


def test_times_are_written_for_a_person():
    times = [0, 999, 4_200, 59.94 * S, 119.7 * S, 3599.8 * S, 7199 * S, 3600 * S]
    assert [format_time(t) for t in times] == [
        *("0 ns", "999 ns", "4.2 µs", "59.9 s"),
        *("2 min 0 s", "1 h 0 min", "2 h 0 min", "1 h 0 min"),
    ]


def test_numbers_of_things_have_the_right_form():
    assert [plural(n, "batch") for n in (1, 1200)] == ["1 batch", "1,200 batches"]
    assert plural(2, "retry") == "2 retries"


def test_a_lane_has_a_name():
    assert lane_name({"kind": "caller", "worker": 5}) == "the caller"
    assert lane_name({"kind": "thread", "worker": 5}) == "thread 5"
