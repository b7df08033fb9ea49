"""The harness of ``benchmarks/``: pairing, medians, verdicts, JSON; never times."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

# Last, so that the checkout's sources never hide the installed package.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import (
    digest,
    page,
    paths,
    peers,
    processes,
    report,
    rounds,
    rows,
    stats,
    versus,
)
from benchmarks.demands import demands
from benchmarks.row import Row
from benchmarks.side import Side, SideFailed

times = st.floats(1e-6, 1e3)


# --- statistics


@given(st.lists(times, min_size=1, max_size=40))
def test_an_interval_encloses_its_median(samples):
    found = stats.interval(samples)
    assert min(samples) <= found.low <= found.median <= found.high <= max(samples)


@pytest.mark.parametrize(
    ("count", "low", "high", "confidence"),
    [
        (1, 1, 1, 0.0),
        (3, 1, 3, 0.75),
        (5, 1, 5, 0.9375),
        (8, 2, 7, 1 - 2 * 9 / 256),
        (15, 4, 12, 1 - 2 * (1 + 15 + 105 + 455) / 2**15),
    ],
)
def test_the_interval_is_the_narrowest_of_the_asked_confidence(
    count, low, high, confidence
):
    found = stats.interval([float(i) for i in range(count, 0, -1)])
    assert (found.low, found.high) == (low, high)
    assert found.confidence == pytest.approx(confidence)


def test_an_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="samples is empty"):
        stats.interval([])


def test_ratios_are_taken_round_by_round():
    assert stats.ratios([10.0, 40.0], [1.0, 4.0]) == [10.0, 10.0]
    with pytest.raises(ValueError, match="argument 2"):
        stats.ratios([1.0, 2.0], [1.0])


def test_the_spread_of_a_steady_probe_is_one():
    assert stats.spread([2.0] * 7) == 1.0
    assert stats.spread([1.0] * 5 + [3.0] * 5) == 3.0


@pytest.mark.parametrize(
    ("low", "high", "noise", "expected"),
    [
        (8.0, 9.0, 1.0, "reached"),
        (8.0, 9.0, 9.0, "reached"),
        (6.0, 7.9, 1.0, "short"),
        (6.0, 7.9, 9.0, "short"),
        (7.0, 9.0, 1.0, "unclear"),
        (7.0, 9.0, 9.0, "too noisy"),
    ],
)
def test_a_verdict_needs_the_whole_interval(low, high, noise, expected):
    found = stats.Interval((low + high) / 2, low, high, 0.9)
    assert stats.verdict(found, 8.0, noise) == expected
    assert stats.verdict(found, None, noise) == ""


# --- digests


def test_equal_results_have_equal_digests():
    np = pytest.importorskip("numpy")
    value = [1, 2.5, (None, "a"), np.arange(6.0).reshape(2, 3)]
    same = [np.int64(1), 2.5, (None, "a"), np.arange(6.0).reshape(2, 3)]
    assert digest.digest(value) == digest.digest(same)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1, 2], [2, 1]),
        ([1], [1.0]),
        ([[1], 2], [[1, 2]]),
        (["ab", "c"], ["a", "bc"]),
        ([None], []),
    ],
)
def test_different_results_have_different_digests(first, second):
    assert digest.digest(first) != digest.digest(second)


def test_arrays_of_another_shape_or_type_differ():
    np = pytest.importorskip("numpy")
    array = np.zeros(6)
    others = [np.zeros(7), np.zeros((2, 3)), np.zeros(6, np.int64), array + 1]
    found = {digest.digest([other]) for other in [array, *others]}
    assert len(found) == 5


def test_a_result_that_cannot_be_compared_is_refused():
    with pytest.raises(TypeError, match="result of type object"):
        digest.digest([object()])


def test_close_results_are_compared_to_nine_digits():
    assert digest.numbers([(1, 2.0), [3]]) == [1.0, 2.0, 3.0]
    assert digest.equal([1.0, 2.0], [1.0 + 1e-12, 2.0])
    assert not digest.equal([1.0], [1.0 + 1e-6])
    assert not digest.equal([1.0], [1.0, 1.0])


# --- rounds, with sides that answer from a script


def make_row(**changes) -> Row:
    options = {
        "name": "a-row",
        "title": "A row",
        "kind": "processes",
        "prepare": range,
        "work": lambda session, data: None,
        "size": 10,
        "quick_size": 1,
        "target": 4.0,
        **changes,
    }
    return Row(**options)


class FakeSides:
    """Opens sides that take fixed times, and logs what they are asked."""

    def __init__(self, values, *, digests=None, fail=None, ideal=None):
        self.values, self.digests = values, digests or {}
        self.fail, self.ideal = fail or {}, ideal
        self.log: list[tuple[str, str]] = []

    def __call__(self, peer, row, size, n_jobs):
        self.log.append((peer, "open"))
        if self.fail.get(peer) == "open":
            raise SideFailed("ImportError: none here")
        return FakeSide(self, peer)


class FakeSide:
    first = 9.0  # seconds, of the run that warms; not a sample where hosts stay

    def __init__(self, sides, peer):
        self._sides, self._peer, self.ideal = sides, peer, sides.ideal

    def ask(self, request):
        self._sides.log.append((self._peer, request))
        asked = [entry for entry in self._sides.log if entry == (self._peer, request)]
        if self._sides.fail.get(self._peer) == (request, len(asked)):
            raise SideFailed("RuntimeError: broken")
        if request == "check":
            digest = self._sides.digests.get(self._peer, "0")
            return {"digest": digest, "value": self.first, "probe": 0.002}
        if request == "observe":
            return {"context_switches": 7, "busy_threads": 2}
        value = self._sides.values[self._peer]
        return {"value": value[len(asked) - 1], "probe": 0.002}

    def close(self):
        self._sides.log.append((self._peer, "close"))


THREE = rounds.Effort(rounds=3, least=3, seconds=1e9)
BOTH = ("fastjob", "joblib")


def measure(sides, row=None, effort=THREE, names=BOTH, **options):
    return rounds.measure(
        row or make_row(), names, effort, size=10, opener=sides, **options
    )


def test_sides_run_in_turn():
    sides = FakeSides({"fastjob": [1.0, 2.0, 4.0], "joblib": [8.0, 16.0, 32.0]})
    outcome = measure(sides)
    samples = [peer for peer, request in sides.log if request == "time"]
    assert samples == ["fastjob", "joblib"] * 3
    assert sides.log.count(("fastjob", "open")) == 1
    assert {("fastjob", "close"), ("joblib", "close")} <= set(sides.log)
    # Though the samples differ by a factor of four, each pair has the same ratio.
    assert outcome.ratio("joblib") == stats.Interval(8.0, 8.0, 8.0, 0.75)


def test_a_fresh_row_opens_a_host_for_each_sample():
    sides = FakeSides({"fastjob": [1.0] * 3, "joblib": [1.0] * 3})
    measure(sides, make_row(fresh=True))
    opened, alive = 0, 0
    for _, request in sides.log:
        opened += request == "open"
        alive += (request == "open") - (request == "close")
        assert alive <= 1
    assert opened == 6


def test_the_first_run_of_a_fresh_row_is_a_sample():
    sides = FakeSides({"fastjob": [1.0] * 2, "joblib": [1.0] * 2})
    outcome = measure(sides, make_row(fresh=True))
    assert outcome.samples == {"fastjob": [9.0, 1.0, 1.0], "joblib": [9.0, 1.0, 1.0]}
    assert outcome.digests == {"fastjob": "0", "joblib": "0"}
    assert len(outcome.probes) == 6


def test_rounds_end_when_the_time_is_up_but_not_before_the_least():
    clock = itertools.count(0.0, 10.0)
    sides = FakeSides({"fastjob": [1.0] * 9, "joblib": [1.0] * 9})
    effort = rounds.Effort(rounds=9, least=4, seconds=15.0)
    outcome = measure(sides, effort=effort, clock=lambda: next(clock))
    assert len(outcome.samples["fastjob"]) == 5


@pytest.mark.parametrize("when", ["open", ("check", 1), ("time", 1), ("time", 3)])
def test_a_side_that_fails_is_left_out_and_the_others_go_on(when):
    sides = FakeSides(
        {"fastjob": [1.0] * 3, "joblib": [1.0] * 3}, fail={"joblib": when}
    )
    outcome = measure(sides)
    assert list(outcome.errors) == ["joblib"]
    assert outcome.samples == {"fastjob": [1.0] * 3}
    assert outcome.ratio("joblib") is None
    assert [demand.verdict for demand in demands(outcome)] == ["not measured"]
    if when != "open":
        assert sides.log.count(("joblib", "close")) == 1


def test_different_results_are_found():
    values = {"fastjob": [1.0] * 3, "joblib": [1.0] * 3, "limit": [1.0] * 3}
    sides = FakeSides(values, digests={"joblib": "1", "limit": None})
    outcome = measure(sides, names=("limit", *BOTH))
    assert outcome.different == ["joblib"]


def test_an_observed_row_is_observed_in_a_run_of_its_own():
    sides = FakeSides({"fastjob": [1.0] * 3, "joblib": [1.0] * 3})
    outcome = measure(sides, make_row(observe=True))
    assert outcome.observed["joblib"] == {"context_switches": 7, "busy_threads": 2}
    assert sides.log.index(("fastjob", "observe")) > sides.log.index(("joblib", "time"))


def test_demands_of_all_kinds():
    values = {"fastjob": [2.0] * 3, "joblib": [10.0] * 3, "mp_pool": [3.0] * 3}
    row = make_row(versus={"mp_pool": 2.0, "ray": 20.0}, share=0.4)
    outcome = measure(FakeSides(values, ideal=1.0), row, names=(*BOTH, "mp_pool"))
    found = {
        d.of: (d.wanted, d.found and d.found.median, d.verdict)
        for d in demands(outcome)
    }
    assert found == {
        "joblib": (4.0, 5.0, "reached"),
        "mp_pool": (2.0, 1.5, "short"),
        "ray": (20.0, None, "not measured"),
        "ideal": (0.4, 0.5, "reached"),
    }


# --- the report


@pytest.fixture
def outcomes():
    sides = FakeSides({"fastjob": [1.0] * 3, "joblib": [5.0, 6.0, 7.0]}, ideal=0.5)
    failing = FakeSides({"fastjob": [1.0] * 3, "joblib": []}, fail={"joblib": "open"})
    return [
        measure(sides, make_row(share=0.9)),
        measure(failing, make_row(name="another", title="Another row")),
    ]


def test_the_table_shows_medians_ratios_and_verdicts(outcomes):
    text = report.table(outcomes, BOTH)
    lines = text.splitlines()
    assert [c.strip() for c in lines[0].split("|")[3:5]] == ["fastjob", "joblib"]
    assert "| 6 s (x6 [5, 7]) |" in lines[2]
    assert "joblib 4: 6 [5, 7]; ideal 90 %: 50 [50, 50]" in lines[2]
    assert "reached; short" in lines[2]
    assert "failed" in lines[3]
    assert "another: joblib failed: ImportError: none here" in text
    assert len({len(line) for line in lines[:4]}) == 1


def test_a_row_of_another_size_says_so(outcomes):
    assert report.title(outcomes[0]) == "A row"
    outcomes[0].size = 2
    assert report.title(outcomes[0]) == "A row [20 %]"
    assert "| A row [20 %] |" in report.table(outcomes, BOTH)
    assert report.row_json(outcomes[0])["title"] == "A row [20 %]"
    outcomes[0].n_jobs = 1
    assert report.title(outcomes[0]) == "A row [20 %, 1 workers]"
    outcomes[0].row = make_row(size=0)  # the row of a curve has no size of its own
    assert report.title(outcomes[0]) == "A row"


def test_the_json_holds_every_sample_and_survives_a_round_trip(outcomes, tmp_path):
    values = report.as_json(outcomes, "versus")
    report.write_json(str(tmp_path / "out.json"), values)
    read = json.loads((tmp_path / "out.json").read_text())
    assert read["schema"] == report.SCHEMA
    assert read["reference"] == "fastjob"
    assert {"python", "cpus", "fastjob", "packages"} <= set(read["machine"])
    first, second = read["rows"]
    assert first["sides"]["joblib"] == {"median": 6.0, "samples": [5.0, 6.0, 7.0]}
    assert first["ratios"] == {
        "joblib": {"median": 6.0, "low": 5.0, "high": 7.0, "confidence": 0.75}
    }
    assert [d["verdict"] for d in first["demands"]] == ["reached", "short"]
    assert second["errors"] == {"joblib": "ImportError: none here"}
    assert second["ratios"] == {}


def test_the_report_names_the_fastjob_that_is_measured():
    import fastjob

    assert report.fastjob_in_use().split()[0] == fastjob.__version__


@pytest.mark.parametrize("ending", ["svg", "html"])
def test_the_page_is_drawn(outcomes, tmp_path, run_python, ending):
    pytest.importorskip("matplotlib")
    report.write_json("in.json", report.as_json(outcomes, "versus"))
    # In another process: matplotlib keeps its font files open.
    done = run_python(
        f"""
        import json, sys
        sys.path.append({str(paths.ROOT)!r})
        from benchmarks import page
        page.draw(json.load(open("in.json")), "bars.{ending}")
        """.replace("\n        ", "\n")
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / f"bars.{ending}").read_text()
    assert "<svg" in text
    assert ("<table>" in text) == (ending == "html")


def test_a_page_of_another_kind_is_refused(outcomes):
    with pytest.raises(ValueError, match=r"writes \.svg or \.html, not '\.pdf'"):
        page.draw(report.as_json(outcomes, "versus"), "bars.pdf")


# --- rows and peers


def test_row_names_are_unique_and_found():
    names = [row.name for row in rows.ALL]
    assert len(set(names)) == len(names)
    assert [rows.find(name).name for name in names] == names
    assert [row.name for row in rows.select("tiny-*,call-threads")] == [
        "tiny-processes",
        "tiny-threads",
        "tiny-sequential",
        "call-threads",
    ]


# What is wanted of the engine and of arrays, and of what has threads inside.
WANTED = {
    "tiny-processes": 8,
    "closure-processes": 8,
    "stream-processes": 6,
    "tiny-threads": 60,
    "tiny-sequential": 10,
    "call-processes": 100,
    "call-threads": 150,
    "dict-processes": 60,
    "spin-1ms": 0.99,
    "spin-0.1ms": 0.97,
    "instant-then-slow": 1.9,
    "sleep-64": 5,
    "cold-first-call": 8,
    "cold-first-numpy-call": 2.5,
    "cold-import": 6,
    "idle-memory": 7,
    "array-shared": 1.5,
    "arrays-in": 3.5,
    "results-large": 15,
    "results-many": 10,
    "arrays-both-ways": 8,
    "frame-shared": 2,
    "blas-2": 1,
    "blas-8": 1,
    "sklearn-cross-validation": 1.5,
    "sklearn-grid-search": 1.5,
    "dask-tiny": 20,
    "dask-20ms": 0.95,
    "ray-tiny": 20,
    "ray-20ms": 0.95,
}


def test_every_wanted_figure_has_its_row():
    found = {
        row.name: row.target or row.share or next(iter(row.versus.values()))
        for row in rows.ALL
    }
    assert {name: found.get(name) for name in WANTED} == WANTED
    assert rows.find("blas-8").versus == {"mp_pool": 1.3}
    assert rows.find("dask-tiny").versus == {"dask": 20.0}
    assert rows.find("ray-tiny").versus == {"ray": 20.0}


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no row matches 'nonsense'; there are tiny-"):
        rows.select("tiny-*,nonsense")
    with pytest.raises(ValueError, match="no row is named 'nonsense'"):
        rows.find("nonsense")
    with pytest.raises(ValueError, match="no peer is named 'nonsense'"):
        peers.load("nonsense")
    with pytest.raises(ValueError, match="'nonsense' is not among the installed peers"):
        versus.sides("fastjob,nonsense", quick=False)


@pytest.mark.parametrize("row", rows.ALL, ids=lambda row: row.name)
def test_every_row_can_be_run_by_fastjob_and_by_those_it_is_measured_against(row):
    assert peers.can_run("fastjob", row)
    if row.target is not None:
        assert peers.can_run("joblib", row)
    for name in row.versus:
        assert peers.can_run(name, row)
    assert (row.share is None) or (row.ideal is not None)
    # `wanted` of some kind, or the row says nothing about fastjob.
    assert row.target or row.share or row.versus


@pytest.mark.parametrize("name", [*peers.NAMES, "limit"])
def test_every_peer_says_what_it_can(name):
    peer = peers.load(name)
    assert isinstance(peer.REQUIRES, str)
    assert peer.ABILITIES.issubset({"closure", "stream", "batch_size"})
    for script in peer.COLD.values():
        compile(script, name, "exec")


def test_quick_runs_less_on_no_more_workers():
    row = make_row(quick_jobs=1)
    assert row.scale(quick=True) == (1, 1)
    assert row.scale(quick=False) == (10, 2)
    for row in rows.ALL:
        size, n_jobs = row.scale(quick=True)
        assert size <= row.size and n_jobs <= row.n_jobs


def test_quick_runs_fastjob_and_joblib_only():
    assert versus.sides(None, quick=True) == ["fastjob", "joblib"]
    assert {"fastjob", "mp_pool", "futures"} <= set(versus.sides(None, quick=False))


def test_chunks_are_a_quarter_of_a_share():
    assert [peers.chunk_size(n, 2) for n in (0, 1, 8, 9, 1000)] == [1, 1, 1, 2, 125]


# --- real host processes


@pytest.mark.parametrize("name", ["call-processes", "call-threads", "cold-import"])
def test_a_host_runs_a_row_and_leaves_nothing(name):
    before = processes.descendants(os.getpid())
    row = rows.find(name)
    found = {}
    for peer in ("mp_pool", "futures"):
        side = Side(peer, name, row.quick_size, row.n_jobs)
        try:
            found[peer] = side.ask("check")["digest"]
            answer = side.ask("time")
        finally:
            side.close()
        assert answer["value"] > 0 and answer["probe"] > 0
    assert found["mp_pool"] == found["futures"]
    assert processes.descendants(os.getpid()) == before


def test_a_host_tells_the_ideal_time():
    side = Side("mp_pool", "instant-then-slow", 5, 2)
    try:
        assert side.ideal == pytest.approx(0.5)
    finally:
        side.close()


def test_a_host_that_cannot_prepare_says_why():
    with pytest.raises(SideFailed, match=r"TypeError: .*cannot be interpreted"):
        Side("mp_pool", "call-processes", "many", 2)


def test_a_host_that_dies_is_noticed():
    side = Side("mp_pool", "call-processes", 2, 2)
    try:
        with pytest.raises(SideFailed, match="has no attribute 'nonsense'"):
            side.ask("nonsense")
        with pytest.raises(SideFailed, match="the process ended: AttributeError"):
            side.ask("time")
            side.ask("time")
    finally:
        side.close()


def test_a_measuring_process_has_none_of_the_settings_for_old_processors(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert "OPENBLAS_CORETYPE" not in paths.environment()
    assert "PATH" in paths.environment()


def test_versus_prints_the_table_and_writes_the_samples(tmp_path, capsys):
    options = argparse.Namespace(
        quick=True,
        rows="call-threads",
        peers="mp_pool,futures",
        json=str(tmp_path / "out.json"),
        page=None,
    )
    assert versus.run(options) == 0
    assert "one warm call of 2 tasks, threads" in capsys.readouterr().out
    sides = json.loads((tmp_path / "out.json").read_text())["rows"][0]["sides"]
    lengths = {len(side["samples"]) for side in sides.values()}
    assert set(sides) == {"mp_pool", "futures"} and len(lengths) == 1
    assert all(math.isfinite(side["median"]) for side in sides.values())


CI = paths.ROOT / ".ci" / "run"


@pytest.mark.skipif(not CI.exists(), reason="not in a checkout")
def test_ci_compares_quickly_counts_in_full_and_keeps_both():
    lines = [line for line in CI.read_text().splitlines() if "-m benchmarks" in line]
    commands = [line.split("benchmarks ")[1].split(" --json ")[0] for line in lines]
    assert commands == ["versus --quick", "counts"]
    kept = "benchmarks/results"
    assert all(f"--json {kept}/" in line for line in lines)
    assert f"path: {kept}/" in (
        paths.ROOT / ".github" / "workflows" / "ci.yml"
    ).read_text(encoding="utf-8")


# --- asv


def test_asv_finds_every_row_and_can_run_it():
    from benchmarks import asv_suite

    found = {
        member: value
        for value in vars(asv_suite).values()
        if isinstance(value, type) and hasattr(value, "row")
        for member in vars(value)
        if member.startswith(("time_", "peakmem_", "track_"))
    }
    expected = [row for row in rows.ALL if row.work and row.requires is None]
    assert {value.row.name for value in found.values()} == {r.name for r in expected}
    assert "track_idle_memory" in found and "peakmem_results_large" in found
    benchmark = found["time_tiny_threads"]()
    benchmark.setup()
    assert benchmark.time_tiny_threads()[:3] == [1, 2, 3]
    benchmark.teardown()
