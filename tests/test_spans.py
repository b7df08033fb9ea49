"""Tasks that run one by one are joined in the timeline, and pauses are not work."""

import threading
import time
from itertools import pairwise

import pytest

from fastjob import Parallel, TaskError, delayed
from fastjob._core.call import Call
from fastjob._core.sequential import SequentialEngine
from fastjob.recorder import Recorder

MS = 1_000_000
N = 100_000


@pytest.fixture
def made(tmp_path):
    return Recorder(tmp_path / "run.json")


def spin(ms):
    """Work that is known to take so long, at least."""
    end = time.monotonic_ns() + ms * MS
    while time.monotonic_ns() < end:
        pass
    return ms


def recorded(made, tasks, stream=False, **options):
    """Run tasks one by one; return the spans, and how long the whole took."""
    call = made.begin_call("sequential", 1, None)
    engine = SequentialEngine(Call(1, timeline=call, **options))
    begin = time.monotonic_ns()
    if stream:
        for value in engine.stream(iter(tasks)):
            if callable(stream):
                stream(value)
    else:
        engine.run(iter(tasks))
    elapsed = time.monotonic_ns() - begin
    call.end()
    data = made.data()
    names = data["columns"]
    return [dict(zip(names, row, strict=True)) for row in data["spans"]], elapsed


def test_tiny_tasks_are_joined_and_all_are_counted(made):
    spans, elapsed = recorded(made, [(abs, (i,), {}) for i in range(N)])
    assert sum(span["tasks"] for span in spans) == N
    # About one a millisecond at the most, not one a task.
    assert len(spans) <= elapsed / MS + 2
    expected = 0
    for span in spans:
        assert span["first"] == expected
        expected += span["tasks"]


def test_long_tasks_are_spans_of_their_own_with_exact_times(made):
    spans, _ = recorded(made, [(spin, (12,), {})] * 5)
    assert [span["first"] for span in spans] == [0, 1, 2, 3, 4]
    assert all(span["tasks"] == 1 for span in spans)
    assert all(span["busy"] >= 12 * MS for span in spans)


@pytest.mark.parametrize("stream", [False, True])
def test_a_slow_input_is_not_work(made, stream):
    def slow():
        for i in range(6):
            spin(12)
            yield abs, (i,), {}

    spans, _ = recorded(made, slow(), stream)
    assert sum(span["tasks"] for span in spans) == 6
    gaps = [b["start"] - a["end"] for a, b in pairwise(spans)]
    assert len(gaps) == 5
    assert min(gaps) >= 7 * MS  # a tick of the coarse clock may be missing
    if not stream:
        assert sum(span["input"] for span in spans) == sum(gaps)


def test_a_slow_reader_of_a_stream_is_not_work(made):
    spans, _ = recorded(made, [(abs, (i,), {}) for i in range(6)], lambda v: spin(12))
    assert len(spans) == 6
    assert all(span["input"] == 0 for span in spans)
    assert all(b["start"] - a["end"] >= 7 * MS for a, b in pairwise(spans))


def test_a_reader_that_closes_late_is_not_work(made):
    call = made.begin_call("sequential", 1, None)
    stream = SequentialEngine(Call(1, timeline=call)).stream([(abs, (1,), {})] * 2)
    next(stream)
    spin(12)
    stream.close()
    call.end()
    assert made.data()["totals"]["tasks"] == 1
    assert made.data()["totals"]["busy"] <= 9 * MS  # a tick of the coarse clock


def fail(i):
    raise ValueError(i)


def test_errors_and_retries_are_events(made):
    tasks = [(abs, (1,), {}), (fail, (2,), {})]
    recorded(made, tasks, return_errors=True, retries=2)
    events = made.data()["events"]
    assert [event["kind"] for event in events] == ["retry", "retry", "error"]
    assert events[0]["text"] == "task 1, attempt 2"
    assert "ValueError in task 1: " in events[-1]["text"]


def test_what_ran_before_an_error_is_in_the_timeline(made):
    call = made.begin_call("sequential", 1, None)
    engine = SequentialEngine(Call(1, timeline=call))
    with pytest.raises(ValueError, match="2"):
        engine.run(iter([(abs, (1,), {}), (abs, (1,), {}), (fail, (2,), {})]))
    assert made.data()["totals"]["tasks"] == 2


def test_a_stream_that_is_closed_or_fails_is_in_the_timeline(made):
    for ending in ("close", "error"):
        call = made.begin_call("sequential", 1, None)
        stream = SequentialEngine(Call(1, timeline=call)).stream(
            iter([(abs, (1,), {}), (fail, (2,), {})])
        )
        next(stream)
        if ending == "close":
            stream.close()
        else:
            with pytest.raises(ValueError, match="2"):
                next(stream)
        call.end()
    assert [call["tasks"] for call in made.data()["calls"]] == [1, 1]


def test_a_stream_that_its_own_task_closes_is_in_the_timeline(made):
    call = made.begin_call("sequential", 1, None)
    engine = SequentialEngine(Call(1, timeline=call))
    stream = engine.stream(iter([(engine.close, (), {}), (abs, (1,), {})]))
    assert list(stream) == [None]
    assert made.data()["totals"]["tasks"] == 1


def test_the_lane_is_the_thread_that_made_the_call(made):
    def work():
        recorded(made, [(abs, (1,), {})])

    thread = threading.Thread(target=work)
    thread.start()
    native = thread.native_id
    thread.join()
    assert [lane["worker"] for lane in made.data()["lanes"]] == [native]


def test_a_call_of_one_job_records_itself(tmp_path):
    path = tmp_path / "run.json"
    out = Parallel(n_jobs=1, timeline=path, on_error="return")(
        [delayed(abs)(-1), delayed(fail)(2)]
    )
    assert out[0] == 1
    assert isinstance(out[1], TaskError)
    assert '"tasks":2' in path.read_text()
