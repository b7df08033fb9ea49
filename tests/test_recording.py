"""Who records: an option, a block, the environment; and who does not."""

import os
import subprocess
import sys
import threading
import time

import pytest

import fastjob
from fastjob import Parallel, TerminatedWorkerError, delayed, recording
from fastjob.recorder import Recorder
from fastjob.recording import record_call, recorder_for, timeline

CALL = {"backend": "threading", "n_jobs": 2, "total": 3}


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(recording.VARIABLE, raising=False)


def test_nobody_records_unless_asked():
    assert recorder_for(None) is None
    assert record_call(None, **CALL) is None


def test_the_public_name_is_the_block():
    assert fastjob.timeline is timeline


def test_a_path_is_written_when_its_call_ends(tmp_path):
    path = tmp_path / "run.json"
    call = record_call(path, **CALL)
    assert not path.exists()
    call.end()
    assert path.exists()


def test_a_recorder_is_used_and_written_by_its_owner(tmp_path):
    made = Recorder(tmp_path / "run.json")
    record_call(made, **CALL).end()
    assert made.data()["n_calls"] == 1
    assert not (tmp_path / "run.json").exists()


def test_a_block_records_calls_of_all_threads_and_writes_at_its_end(tmp_path):
    path = tmp_path / "run.json"
    with timeline(path) as made:
        record_call(None, **CALL).end()
        thread = threading.Thread(target=lambda: record_call(None, **CALL).end())
        thread.start()
        thread.join()
        assert not path.exists()
    assert made.data()["n_calls"] == 2
    assert path.exists()
    assert record_call(None, **CALL) is None


def test_a_block_is_written_when_an_error_leaves_it(tmp_path):
    path = tmp_path / "run.json"
    with pytest.raises(RuntimeError, match="stop"), timeline(path):
        raise RuntimeError("stop")
    assert path.exists()


def test_the_inner_block_records_and_an_option_wins_over_both(tmp_path):
    outer, inner = timeline(tmp_path / "a.json"), timeline(tmp_path / "b.json")
    with outer as first, inner as second:
        record_call(None, **CALL).end()
        record_call(tmp_path / "c.json", **CALL).end()
    assert (first.data()["n_calls"], second.data()["n_calls"]) == (0, 1)
    assert (tmp_path / "c.json").exists()


def test_the_variable_records_all_calls_and_writes_when_the_process_ends(tmp_path):
    path = tmp_path / "run.json"
    script = (
        "import os; from fastjob.recording import record_call\n"
        f"for _ in range(2): record_call(None, **{CALL!r}).end()\n"
        f"assert not os.path.exists({str(path)!r})"
    )
    env = {**os.environ, recording.VARIABLE: str(path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=env)
    assert '"n_calls":2' in path.read_text()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def burn(seconds):
    """Use the processor for so long, by its own clock; return what was used."""
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        pass
    return time.process_time() - begin


def test_the_processor_time_of_tasks_in_workers_is_recorded(tmp_path):
    made = Recorder(tmp_path / "run.json")
    used = Parallel(n_jobs=2, timeline=made)(delayed(burn)(0.02) for _ in range(6))
    first = made.data()["totals"]["cpu"]
    assert first >= sum(used) * 1e9
    Parallel(n_jobs=2, timeline=made)(delayed(time.sleep)(0.05) for _ in range(6))
    # Nothing of the first call was taken for the second.
    assert made.data()["totals"]["cpu"] - first < 6 * 0.05e9 / 2


def test_what_pickling_and_copying_of_results_took_is_recorded(tmp_path):
    np = pytest.importorskip("numpy")
    lists, arrays = Recorder(tmp_path / "1.json"), Recorder(tmp_path / "2.json")
    Parallel(n_jobs=2, timeline=lists)(delayed(list)(range(1000)) for _ in range(4))
    Parallel(n_jobs=2, timeline=arrays)(delayed(np.ones)(10**6) for _ in range(4))
    assert lists.data()["totals"]["copy"] == 0 < lists.data()["totals"]["pickle"]
    assert arrays.data()["totals"]["copy"] > 0
    assert arrays.data()["totals"]["bytes_in"] > 4 * 8 * 10**6


def test_tiny_tasks_cost_the_timeline_a_batch_and_not_a_task(tmp_path, monkeypatch):
    made = Recorder(tmp_path / "run.json")
    told = []
    monkeypatch.setattr(Recorder, "_add", lambda self, span: told.append(span))
    tasks = (delayed(abs)(i) for i in range(20_000))
    Parallel(n_jobs=2, batch_size=1000, timeline=made)(tasks)
    # More than 20 only where a batch is split, or reported in parts.
    assert 20 <= len(told) <= 200


def fail_once(path):
    """Fail the first time, for good the second time the worker with it."""
    if not os.path.exists(path):
        with open(path, "w"):
            pass
        raise ValueError("once")
    os._exit(3)


def test_retries_and_deaths_of_worker_processes_are_recorded(tmp_path):
    made = Recorder(tmp_path / "run.json")
    with pytest.raises(TerminatedWorkerError):
        Parallel(n_jobs=2, timeline=made, retries=1)(
            [delayed(fail_once)(tmp_path / "mark")]
        )
    counts = made.data()["event_counts"]
    assert counts["retry"] == 1
    assert counts["death"] >= 1
    lanes = made.data()["lanes"]
    assert {lanes[e["lane"]]["kind"] for e in made.data()["events"]} == {"process"}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity")
def test_more_workers_than_processors_are_told_so(run_python):
    done = run_python(
        """
        import os, time
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

        import fastjob
        from fastjob import Parallel, delayed

        def burn(seconds):
            end = time.process_time() + seconds
            while time.process_time() < end:
                pass

        with fastjob.timeline("run.json") as recorder:
            Parallel(n_jobs=4)(delayed(burn)(0.1) for _ in range(12))
        kinds = [reason["kind"] for reason in recorder.data()["summary"]]
        print("oversubscription" in kinds, kinds)
        """.replace("\n        ", "\n")
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True"), done.stdout


def test_a_forked_child_neither_records_nor_writes(tmp_path):
    path = tmp_path / "run.json"
    script = f"""
import os
from fastjob.recording import record_call, recorder_for, timeline
with timeline({str(path)!r}) as made:
    pid = os.fork()
    if pid == 0:
        nothing = recorder_for(None) is None and record_call(None, **{CALL!r}) is None
        made.write()
        os._exit(0 if nothing and not os.path.exists({str(path)!r}) else 1)
    assert os.waitpid(pid, 0)[1] == 0
"""
    subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script], check=True
    )
    assert path.exists()
