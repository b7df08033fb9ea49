"""``benchmarks counts``: reading traces, comparing with the record, real programs."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import count_work, counts, traces

LOG = """\
10 execve("/usr/bin/python", ["python"], 0x7ffe /* 5 vars */) = 0
10 openat(AT_FDCWD</>, "/tmp/early", O_RDWR|O_CREAT, 0600) = 3</tmp/early>
10 clone(child_stack=0x7f00, flags=CLONE_VM|CLONE_THREAD, tls=0x1) = 11
10 newfstatat(AT_FDCWD</>, "/count-begin", 0x7ffd, 0) = -1 ENOENT (No such file)
10 sendmsg(5<UNIX-STREAM:[77->78]>, {msg_iov=[{iov_base="a\\") = 9", iov_len=40}]}) = 40
12 recvmsg(6<UNIX-STREAM:[78->77]>,  <unfinished ...>
11 write(7<pipe:[9]>, "x", 1) = 1
10 write(1</dev/null>, "hello", 5)   = 5
12 <... recvmsg resumed>{msg_iov=[{iov_len=40}]}) = 40
12 write(6<socket:[78]>, "yy", 2 <unfinished ...>
10 --- SIGCHLD {si_signo=SIGCHLD} ---
12 <... write resumed>) = 2
10 send(5<socket:[77]>, "z", 1) = -1 EAGAIN (Resource temporarily unavailable)
10 memfd_create("block", MFD_CLOEXEC) = 8</memfd:block>
12 openat(AT_FDCWD</>, "/dev/shm/x", O_RDWR|O_CREAT|O_EXCL, 0600) = 4</dev/shm/x>
12 openat(AT_FDCWD</>, "/dev/shm/x", O_RDWR|O_CREAT|O_EXCL, 0600) = -1 EEXIST (File)
10 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD) = 13
10 clone3({flags=CLONE_VM|CLONE_THREAD, exit_signal=0}, 88) = 14
14 futex(0x7f, FUTEX_WAKE, 1) = 0
13 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, -1, 0) = 0x7f2000
10 newfstatat(AT_FDCWD</>, "/count-end", 0x7ffd, 0) = -1 ENOENT (No such file)
10 exit_group(0) = ?
10 +++ exited with 0 +++
""".splitlines()


def test_interrupted_calls_are_joined():
    calls = traces.parse(LOG)
    assert [c.result for c in calls if c.name == "recvmsg"] == [40]
    write = next(c for c in calls if c.name == "write" and c.pid == 12)
    assert write.result == 2
    assert write.arguments.startswith("6<socket:[78]>")


def test_a_trace_is_counted_between_its_marks():
    assert traces.counts(traces.parse(LOG)) == {
        # sendmsg, two writes (one in another thread), send, memfd_create, clone,
        # clone3, and futex in the new thread
        "caller syscalls": 8,
        # recvmsg, write, two openat, mmap
        "worker syscalls": 5,
        "bytes sent": 40 + 1 + 2,
        "processes": 1,
        "threads": 1,
        "segments": 2,
    }


@pytest.mark.parametrize("mark", count_work.MARKS)
def test_a_trace_without_a_mark_is_refused(mark):
    calls = traces.parse(line for line in LOG if mark not in line)
    with pytest.raises(ValueError, match=f"no mark {mark}"):
        traces.counts(calls)


@pytest.fixture
def record():
    version, exact = counts.build()
    return {
        version: {"calls, a call": {"pickles": 1.0, "caller syscalls": 8.0}},
        exact: {"calls, a call": {"instructions": 1000.0}},
    }


@pytest.mark.parametrize(
    ("metric", "value", "rises", "falls"),
    [
        ("pickles", 1.0, False, False),
        ("pickles", 1.001, True, False),
        ("pickles", 0.0, False, True),
        ("caller syscalls", 11.0, False, False),
        ("caller syscalls", 11.1, True, False),
        ("caller syscalls", 4.9, False, True),
        ("instructions", 1120.0, False, False),
        ("instructions", 1121.0, True, False),
        ("a new metric", 5.0, False, False),
    ],
)
def test_a_count_may_rise_by_its_slack_only(record, metric, value, rises, falls):
    notes, risen = counts.compare(record, {"calls, a call": {metric: value}})
    assert [bool(risen), bool(notes)] == [rises, falls]
    for text in (*risen, *notes):
        assert "calls, a call" in text and metric in text


def test_what_was_recorded_for_another_interpreter_is_not_compared():
    found = {"calls, a call": {"pickles": 99.0, "instructions": 1e9}}
    notes, risen = counts.compare({"2.7": {"calls, a call": {"pickles": 1.0}}}, found)
    assert risen == []
    assert [note.partition(":")[0] for note in notes] == [
        f"nothing is recorded for {key}" for key in counts.build()
    ]


def test_an_update_changes_only_what_was_counted(record):
    version, exact = counts.build()
    record["2.7"] = {"calls, a call": {"pickles": 5.0}}
    found = {"calls, a call": {"pickles": 2.0}, "tasks, a task": {"instructions": 3.0}}
    new = counts.updated(record, found)
    assert new["2.7"] == record["2.7"]
    assert new[version] == {"calls, a call": {"pickles": 2.0, "caller syscalls": 8.0}}
    assert new[exact] == {
        "calls, a call": {"instructions": 1000.0},
        "tasks, a task": {"instructions": 3.0},
    }
    assert record[version]["calls, a call"]["pickles"] == 1.0


def make_options(**changes) -> argparse.Namespace:
    options = {"update": False, "json": None, "only": None, "library": "fastjob"}
    return argparse.Namespace(**{**options, **changes})


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(ValueError, match="strace and valgrind to be installed"):
        counts.run(make_options())


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """Let `counts.run` find one pickle, and keep its record in a file of the test."""
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    monkeypatch.setattr(counts, "count", lambda program, library: {"pickles": 1.0})
    monkeypatch.setattr(counts, "RECORD", tmp_path / "counts.json")
    return tmp_path / "counts.json"


def test_a_rise_fails_the_command_and_an_update_accepts_it(counted, capsys):
    version, _ = counts.build()
    counted.write_text(json.dumps({version: {"calls, a call": {"pickles": 0.0}}}))
    assert counts.run(make_options(only="calls")) == 1
    assert "RISEN: calls, a call: pickles 0 -> 1" in capsys.readouterr().out
    assert counts.run(make_options(only="calls", update=True)) == 0
    assert json.loads(counted.read_text()) == {
        version: {"calls, a call": {"pickles": 1.0}}
    }
    assert counts.run(make_options(only="calls")) == 0


def test_a_rise_must_be_found_again_and_the_record_holds_the_largest(
    counted, monkeypatch
):
    version, _ = counts.build()
    counted.write_text(json.dumps({version: {"calls, a call": {"pickles": 2.0}}}))
    found = iter([5.0, 3.0, 2.0])
    monkeypatch.setattr(counts, "count", lambda *_: {"pickles": next(found)})
    assert counts.run(make_options(only="calls")) == 0
    found = iter([5.0, 3.0, 4.0])
    assert counts.run(make_options(only="calls")) == 1
    found = iter([5.0, 7.0, 4.0])
    assert counts.run(make_options(only="calls", update=True)) == 0
    assert json.loads(counted.read_text())[version]["calls, a call"] == {"pickles": 7.0}


def test_an_update_of_everything_forgets_programs_that_are_no_more(counted):
    version, exact = counts.build()
    old = {"gone": {"pickles": 5.0}}
    counted.write_text(json.dumps({version: old, exact: old, "2.7": old}))
    assert counts.run(make_options(update=True)) == 0
    names = [f"{program.name}, a {program.unit}" for program in counts.PROGRAMS]
    found = {name: {"pickles": 1.0} for name in names}
    assert json.loads(counted.read_text()) == {version: found, "2.7": old}


def test_another_library_is_counted_and_not_compared(counted, tmp_path):
    file = str(tmp_path / "joblib.json")
    assert counts.run(make_options(only="calls", library="joblib", json=file)) == 0
    assert json.loads(Path(file).read_text()) == {"calls, a call": {"pickles": 1.0}}
    assert not counted.exists()


def test_an_unknown_program_is_refused(counted):
    with pytest.raises(ValueError, match="no program is named 'nonsense'"):
        counts.run(make_options(only="calls,nonsense"))


def test_every_program_exists_and_is_counted_somehow():
    for program in counts.PROGRAMS:
        assert program.traced or program.weighed
        assert program.name == "imports" or hasattr(count_work.Work, program.name)
    methods = {name for name in vars(count_work.Work) if not name.startswith("_")}
    assert methods <= {program.name for program in counts.PROGRAMS}


def test_a_program_that_fails_says_why():
    with pytest.raises(
        ValueError, match=r"(?s)calls failed: .*No module named 'nonsense'"
    ):
        counts._run("calls", 1, "nonsense", ())


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_looking_for_thread_pools_makes_no_system_call_while_none_is_loaded():
    values = counts.count(counts.Program("pools", "look", 500), "fastjob")
    assert values["caller syscalls"] == 0


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_what_a_call_pickles_is_counted_whoever_ran_which_batch():
    program = counts.Program("shared_object", "batch", 20)
    values = counts.count(program, "fastjob")
    assert values["unpickles a call"] == values["pickles a call"] == 200


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize(
    ("name", "copies"), [("shared_array", 1), ("fresh_arrays", 8), ("array_results", 0)]
)
def test_copies_of_arrays_are_counted(name, copies):
    values = counts.count(counts.Program(name, "task", 8), "fastjob")
    assert values["copies a call"] == copies


def test_the_long_and_the_short_run_are_told_apart(monkeypatch):
    monkeypatch.setattr(counts, "_run", lambda *_: {})
    monkeypatch.setattr(counts, "weigh", lambda name, units, library: 100 + 7 * units)
    program = counts.Program("tasks", "task", weighed=(10, 50))
    assert counts.count(program, "fastjob") == {"instructions": 7.0}


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_real_trace_of_the_sequential_loop_holds_no_system_call_a_task():
    values = counts.count(counts.Program("sequential_tasks", "task", 5000), "fastjob")
    assert values["caller syscalls"] < 0.01
    assert values["processes"] == values["threads"] == values["bytes sent"] == 0
