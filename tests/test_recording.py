"""Who records: an option, a block, the environment; and who does not."""

import os
import subprocess
import sys
import threading

import pytest

import fastjob
from fastjob import recording
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
