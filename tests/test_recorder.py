"""The recorder: exact totals, bounded memory, and where the workers' time went."""

import itertools
import os
import threading

import pytest

from fastjob import recorder
from fastjob.recorder import SUMS, Recorder

MS = 1_000_000


@pytest.fixture
def made(tmp_path):
    return Recorder(tmp_path / "run.html")


def ended(call, at):
    """End a call at a given time, in ns after its begin."""
    call._end_ns = call.start_ns + at
    call._recorder._end_call(call)


def spans_of(data):
    return [dict(zip(data["columns"], row, strict=True)) for row in data["spans"]]


def test_a_batch_is_kept_with_all_that_is_known_of_it(made):
    call = made.begin_call("processes", 2, 10)
    t = call.start_ns
    call.batch(77, t + 5, t + 9, 3, 4, 11, 12, 13, 14, 15, 16, 17, 18)
    (span,) = spans_of(made.data())
    begin = t - made.begin
    assert (span["lane"], span["call"], span["first"]) == (0, 0, 4)
    assert (span["start"], span["end"]) == (begin + 5, begin + 9)
    values = [span[name] for name in SUMS]
    assert values == [4, 3, 1, 11, 12, 13, 14, 15, 16, 17, 18]
    assert made.data()["totals"] == dict(zip(SUMS, values, strict=True))


def test_lanes_are_workers_in_the_order_they_are_seen(made):
    call = made.begin_call("processes", 2, None)
    for worker in (10**9, os.getpid(), 10**9):
        call.batch(worker, call.start_ns, call.start_ns + 5, 2, 0)
    lanes = made.data()["lanes"]
    assert [lane["worker"] for lane in lanes] == [10**9, os.getpid()]
    assert [lane["kind"] for lane in lanes] == ["process", "caller"]
    assert [lane["tasks"] for lane in lanes] == [4, 2]
    assert [lane["batches"] for lane in lanes] == [2, 1]
    assert [lane["busy"] for lane in lanes] == [10, 5]


def test_a_thread_of_this_process_is_a_thread(made):
    call = made.begin_call("threading", 2, None)

    def work():
        call.batch(threading.get_native_id(), call.start_ns, call.start_ns + 5, 1, 0)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert made.data()["lanes"][0]["kind"] == "thread"


def test_the_time_of_the_workers_is_split_without_rest(made):
    call = made.begin_call("processes", 3, None)
    t = call.start_ns
    call.batch(1_000_001, t + 10, t + 30, 1, 0)
    call.batch(1_000_001, t + 40, t + 60, 1, 1)
    call.batch(1_000_002, t + 20, t + 100, 1, 2)
    ended(call, 110)
    losses = made.data()["losses"]
    assert losses == {
        "wall": 110,
        "capacity": 330,
        "busy": 120,
        "starting": 10 + 20,
        "ending": 50 + 10,
        "unused": 110,
        "between": 10,
    }


def test_a_worker_that_replaces_a_dead_one_does_not_add_to_the_time(made):
    call = made.begin_call("processes", 1, None)
    t = call.start_ns
    call.batch(1_000_001, t, t + 40, 1, 0)
    call.batch(1_000_002, t + 60, t + 100, 1, 1)
    ended(call, 100)
    losses = made.data()["losses"]
    assert losses["capacity"] == 100
    assert losses["between"] == 20
    assert losses["starting"] == losses["ending"] == losses["unused"] == 0


def test_losses_of_several_calls_add_up(made):
    for _ in range(2):
        call = made.begin_call("processes", 1, None)
        call.batch(1_000_001, call.start_ns, call.start_ns + 40, 1, 0)
        ended(call, 100)
    assert made.data()["losses"]["ending"] == 120


def test_a_call_that_has_not_ended_is_in_the_data(made):
    call = made.begin_call("processes", 1, 5)
    call.batch(1_000_001, call.start_ns, call.start_ns + 40, 1, 0)
    data = made.data()
    assert data["calls"][0]["tasks"] == 1
    assert data["losses"]["busy"] == 40


def test_totals_stay_exact_when_spans_are_joined(made, monkeypatch):
    monkeypatch.setattr(recorder, "MAX_SPANS", 64)
    call = made.begin_call("processes", 2, None)
    t = call.start_ns
    n = 5000
    for i in range(n):
        start = t + i * 1000
        call.batch(1_000_001 + i % 2, start, start + 800, 3, 3 * i, input_ns=7)
        assert len(made._spans) <= 64
    data = made.data()
    spans = spans_of(data)
    assert len(spans) <= 64
    assert data["resolution"] > 0
    for name, total in (("tasks", 3 * n), ("busy", 800 * n), ("input", 7 * n)):
        assert data["totals"][name] == total
        assert sum(span[name] for span in spans) == total
        if name != "input":
            assert sum(lane[name] for lane in data["lanes"]) == total
    for lane in (0, 1):
        mine = [span for span in spans if span["lane"] == lane]
        for before, after in itertools.pairwise(mine):
            assert before["end"] <= after["start"]
            assert before["first"] < after["first"]


def test_a_long_batch_stays_a_span_of_its_own_among_short_ones(made, monkeypatch):
    monkeypatch.setattr(recorder, "MAX_SPANS", 64)
    call = made.begin_call("processes", 1, None)
    t = call.start_ns
    for i in range(300):
        call.batch(1_000_001, t + i * 1000, t + i * 1000 + 900, 1, i)
    end = t + 300_000
    call.batch(1_000_001, end, end + 10**9, 1, 300)
    assert spans_of(made.data())[-1]["tasks"] == 1


def test_very_many_short_calls_are_bounded_too(made, monkeypatch):
    monkeypatch.setattr(recorder, "MAX_SPANS", 64)
    monkeypatch.setattr(recorder, "MAX_CALLS", 10)
    for _ in range(1000):
        call = made.begin_call("processes", 1, 1)
        for first in range(3):
            call.batch(1_000_001, call.start_ns, call.start_ns + 5, 1, first)
        ended(call, 10)
    data = made.data()
    assert len(data["spans"]) <= 64
    assert len(data["calls"]) == 10
    assert data["n_calls"] == 1000
    assert data["totals"]["tasks"] == data["lanes"][0]["tasks"] == 3000
    assert data["totals"]["busy"] == data["lanes"][0]["busy"] == 15_000
    assert data["losses"]["wall"] == 10_000


def test_the_longest_tasks_are_kept(made, monkeypatch):
    monkeypatch.setattr(recorder, "MAX_LONGEST", 3)
    call = made.begin_call("processes", 1, None)
    t = call.start_ns
    for i, duration in enumerate([5, 9, 1, 7, 3, 8]):
        call.batch(1_000_001, t, t + duration, 1, i)
    call.batch(1_000_001, t, t + 100, 2, 6)  # of which one was long
    call.task(1_000_001, t, t + 90, 7)
    longest = made.data()["longest"]
    assert [(task["index"], task["duration"]) for task in longest] == [
        (7, 90),
        (1, 9),
        (5, 8),
    ]


def test_events_are_bounded_and_counted(made, monkeypatch):
    monkeypatch.setattr(recorder, "MAX_EVENTS", 3)
    call = made.begin_call("processes", 1, None)
    for i in range(5):
        call.event("error", 1_000_001, call.start_ns + i, "x" * 1000)
    call.event("death", 1_000_001, call.start_ns, "gone")
    data = made.data()
    assert data["event_counts"] == {"error": 5, "death": 1}
    assert len(data["events"]) == 3
    assert len(data["events"][0]["text"]) == 500
    assert data["events"][1]["time"] == call.start_ns + 1 - made.begin


def test_batches_of_many_threads_are_all_counted(made):
    calls = [made.begin_call("threading", 4, None) for _ in range(2)]

    def work(worker):
        for i in range(500):
            call = calls[i % 2]
            call.batch(worker, call.start_ns + i, call.start_ns + i + 1, 2, 2 * i)

    threads = [threading.Thread(target=work, args=(10**6 + i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    data = made.data()
    assert data["totals"]["tasks"] == 4 * 500 * 2
    assert data["totals"]["batches"] == len(data["spans"]) == 4 * 500


def test_what_a_destructor_records_within_a_change_comes_after_it(made):
    call, other = (made.begin_call("sequential", 1, None) for _ in "ab")
    seen = []

    class Span(list):
        def __getitem__(self, at):
            # As an allocation, it runs the garbage collector.
            if not seen:
                seen.append("dropped")
                other.batch(78, other.start_ns, other.start_ns + 3, 4, 0)
                other.event("error", 78, other.start_ns, "text")
                other.end()
                assert 78 not in made._lanes, "in the middle of a change"
            return super().__getitem__(at)

    made._change(call._batch, 77, Span([0, 0, 1, 3, 0, 2, 5, 1, *[0] * 8]))
    call.end()
    data = made.data()
    assert [lane["worker"] for lane in data["lanes"]] == [77, 78]
    assert [lane["tasks"] for lane in data["lanes"]] == [5, 4]
    assert sorted((c["number"], c["tasks"]) for c in data["calls"]) == [(0, 5), (1, 4)]
    assert data["event_counts"] == {"error": 1}


def test_a_call_that_ends_within_a_change_still_writes_its_file(made):
    call = made.begin_call("sequential", 1, None, write=True)
    call.batch(77, call.start_ns, call.start_ns + 3, 4, 0)
    made._change(call.end)
    with open(made.path, encoding="utf-8") as file:
        assert "77" in file.read()


def test_generators_in_cycles_can_be_collected_at_any_allocation(run_python, tmp_path):
    done = run_python(
        """
import gc, sys
from fastjob import Parallel, delayed, timeline

class Holder:
    pass

gc.set_threshold(5)
with timeline(sys.argv[1]) as recorder:
    for _ in range(300):
        holder = Holder()
        holder.me = holder
        tasks = (delayed(abs)(i) for i in range(5))
        holder.results = Parallel(n_jobs=1, return_as="generator")(tasks)
        next(holder.results)
        del holder
        Parallel(n_jobs=1)(delayed(abs)(i) for i in range(5))
    gc.collect()
    assert recorder.data()["n_calls"] == 600
    assert not recorder._open
""",
        tmp_path / "run.json",
    )
    assert done.returncode == 0, done.stderr


def test_the_peak_memory_of_a_worker_process_is_read_at_the_end(made):
    if not os.path.exists("/proc/1/status"):
        pytest.skip("needs /proc")
    call = made.begin_call("processes", 1, None)
    call.batch(os.getppid(), call.start_ns, call.start_ns + 1, 1, 0)
    ended(call, 10)
    assert made.data()["lanes"][0]["peak_memory"] > 0


def test_the_memory_of_a_worker_is_read_once_a_second_while_calls_end(
    made, monkeypatch
):
    read = []
    monkeypatch.setattr(recorder, "_peak_memory", lambda pid: read.append(pid) or 7)

    def call():
        call = made.begin_call("processes", 1, None)
        call.batch(1_000_001, call.start_ns, call.start_ns + 1, 1, 0)
        ended(call, 10)

    call()
    made._peaks_read -= recorder.PEAK_INTERVAL_NS + 1
    before = len(read)
    call()
    assert len(read) == before + 1
    made._peaks_read += 1000 * recorder.PEAK_INTERVAL_NS  # a slow machine
    call()
    assert len(read) == before + 1
    # The worker may be gone by now: what was seen of it stays.
    monkeypatch.setattr(recorder, "_peak_memory", lambda pid: 0)
    assert made.data()["lanes"][0]["peak_memory"] == 7


def test_ending_twice_counts_once(made):
    call = made.begin_call("processes", 1, None)
    call.end()
    call.end()
    assert made.data()["n_calls"] == len(made.data()["calls"]) == 1


@pytest.mark.parametrize("name", ["run.txt", "run", "run.html.gz"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"\.html or a \.json"):
        Recorder(tmp_path / name)


def test_a_missing_folder_is_told_before_the_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="No folder"):
        Recorder(tmp_path / "missing" / "run.html")


def test_the_process_id_can_be_part_of_the_name(tmp_path):
    made = Recorder(tmp_path / "run-{pid}.html")
    assert made.path == str(tmp_path / f"run-{os.getpid()}.html")


def test_a_file_that_cannot_be_written_is_a_warning(made):
    os.mkdir(made.path)
    with pytest.warns(RuntimeWarning, match=r"could not be written to .*run\.html"):
        made.write_or_warn()
    assert os.listdir(os.path.dirname(made.path)) == ["run.html"]
