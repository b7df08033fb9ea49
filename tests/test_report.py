"""The files of a timeline: page, trace, and the command that makes one of the other."""

import json
import os
import re

import pytest

from fastjob import report
from fastjob.recorder import Recorder

MS = 1_000_000


@pytest.fixture
def data(tmp_path):
    """Two batches, a death and a text that tries to break out of the page."""
    made = Recorder(tmp_path / "unused.json")
    call = made.begin_call("processes", 2, 5)
    t = call.start_ns
    call.batch(1_000_001, t + MS, t + 3 * MS, 4, 0, pickle_ns=500)
    call.batch(1_000_002, t + MS, t + 9 * MS, 1, 4)
    call.event("death", 1_000_002, t + 9 * MS, "<b></script><!-- {{data}}")
    call._end_ns = t + 10 * MS
    made._end_call(call)
    return made.data()


def embedded(page):
    (text,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page
    )
    return json.loads(text)


def test_the_page_holds_the_data_and_refers_to_nothing_outside(data):
    page = report.make_page(data)
    assert embedded(page) == data
    assert re.findall(r"(?:https?:)?//[a-z]+\.", page) == []
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "{{data}}" in data["events"][0]["text"]


def test_the_trace_is_in_the_format_of_chrome(data):
    trace = report.make_trace(data)
    by_phase = {}
    for event in trace["traceEvents"]:
        by_phase.setdefault(event["ph"], []).append(event)
    names = [event["args"]["name"] for event in by_phase["M"]]
    assert names == ["fastjob", "process 1000001", "process 1000002"]
    first, second = by_phase["X"]
    assert (first["name"], first["tid"]) == ("4 tasks", 0)
    assert (second["name"], second["tid"]) == ("task 4", 1)
    assert first["dur"] == 2000.0
    assert first["args"]["pickle"] == 500
    assert second["ts"] == pytest.approx(data["spans"][1][2] / 1000)
    (death,) = by_phase["i"]
    assert death["name"] == "death"
    assert death["args"]["text"] == data["events"][0]["text"]
    assert [event["ts"] for event in by_phase["b"] + by_phase["e"]] == [
        data["calls"][0]["start"] / 1000,
        data["calls"][0]["end"] / 1000,
    ]


def test_a_trace_makes_the_same_page_as_the_run(data, tmp_path, capsys):
    trace, page = str(tmp_path / "run.json"), str(tmp_path / "run.html")
    report.write_timeline(data, trace)
    assert report.main([trace]) == 0
    with open(page, encoding="utf-8") as file:
        assert file.read() == report.make_page(data)
    out = capsys.readouterr().out
    assert data["summary"][0]["text"] in out
    assert page in out


def test_the_page_can_have_another_name(data, tmp_path):
    trace, page = str(tmp_path / "run.json"), str(tmp_path / "other.html")
    report.write_timeline(data, trace)
    assert report.main([trace, "-o", page]) == 0
    assert os.path.exists(page)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "is not a JSON file"),
        ("[]", "is not a timeline that fastjob recorded"),
        ('{"traceEvents": []}', "is not a timeline that fastjob recorded"),
        ('{"fastjob": {"version": 1}}', "is not a timeline that fastjob recorded"),
    ],
)
def test_a_file_of_another_kind_is_one_clear_sentence(tmp_path, capsys, text, words):
    path = tmp_path / "run.json"
    path.write_text(text)
    assert report.main([str(path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("report: ")
    assert words in err
    assert not (tmp_path / "run.html").exists()


def test_a_binary_file_is_one_clear_sentence(tmp_path, capsys):
    path = tmp_path / "run.json"
    path.write_bytes(b"\xff\xfe\x00")
    assert report.main([str(path)]) == 1
    assert "is not a JSON file" in capsys.readouterr().err


def test_a_trace_of_another_version_is_refused(data, tmp_path, capsys):
    path = str(tmp_path / "run.json")
    report.write_timeline(data | {"version": 2}, path)
    assert report.main([path]) == 1
    assert "another version" in capsys.readouterr().err


def test_a_missing_file_is_one_clear_sentence(capsys):
    assert report.main(["missing.json"]) == 1
    assert "missing.json" in capsys.readouterr().err


def test_the_trace_is_never_overwritten_by_the_page(data, tmp_path, capsys):
    path = str(tmp_path / "run.json")
    report.write_timeline(data, path)
    with pytest.raises(SystemExit) as exit_:
        report.main([path, "-o", path])
    assert exit_.value.code == 2
    assert "must end in .html" in capsys.readouterr().err
    assert report.read_trace(path) == data


def test_a_failed_write_leaves_the_old_file_and_no_other(data, tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    path.write_text("old")

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        report.write_timeline(data, str(path))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["run.json"]
