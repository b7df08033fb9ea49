"""``benchmarks limits``: shares, curves and the autotuner's efficiency; never times."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import curves, floors, limits, page, paths, peers, report, rounds, rows
from benchmarks.rows.curves import durations


def make_outcome(row="curve-array-in", size=100, ideal=None, **samples):
    outcome = rounds.Outcome(rows.find(row), size, 2)
    outcome.samples = {name.strip("_"): values for name, values in samples.items()}
    outcome.ideal = ideal
    return outcome


def test_the_share_is_of_the_measured_limit_or_of_the_ideal_schedule():
    measured = make_outcome(limit=[1.0, 2.0], fastjob=[4.0, 8.0])
    assert limits.share(measured).median == 0.25
    ideal = make_outcome("spin-1ms", ideal=1.0, fastjob=[2.0, 2.0])
    assert limits.share(ideal).median == 0.5
    assert limits.share(make_outcome(limit=[1.0])) is None


def test_efficiency_compares_with_the_best_fixed_size_pair_by_pair():
    outcome = make_outcome(
        "curve-batches", fastjob=[2.0, 4.0], _1=[20.0, 40.0], _10=[1.8, 3.6]
    )
    assert curves.efficiency(outcome) == pytest.approx(0.9)
    assert curves.efficiency(make_outcome(fastjob=[1.0])) is None


@pytest.mark.parametrize("shape", curves.SHAPES)
def test_durations_are_the_same_on_every_side_and_near_their_mean(shape):
    size = {"count": 4001, "seconds": 0.01, "shape": shape}
    found = durations(size)
    assert found == durations(size) and len(found) == 4001
    if shape == "change":
        assert found[:2001] == [0.0] * 2001 and set(found[2001:]) == {0.01}
    else:
        assert sum(found) / 4001 == pytest.approx(0.01, rel=0.15)
        assert max(found) <= 1.0


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="unknown shape 'flat'"):
        durations({"count": 1, "seconds": 1.0, "shape": "flat"})


def test_every_row_has_a_limit_but_the_import_of_the_library_itself():
    without = {row.name for row in rows.ALL if not limits.limited(row)}
    assert without == {"cold-import"}


def test_the_limit_of_a_fit_is_the_share_of_one_worker():
    pytest.importorskip("sklearn")
    for name, count in ("sklearn-cross-validation", 40), ("sklearn-grid-search", 20):
        row = rows.find(name)
        assert len(row.limit(row.prepare(100), 5)) == count


@pytest.mark.parametrize("row", rows.ALL, ids=lambda row: row.name)
def test_limits_have_a_title(row):
    if limits.limited(row) and row.ideal is None:
        assert row.limit_title


def test_curves_and_batches_ask_for_what_they_say(monkeypatch):
    asked = []

    def measure(row, names, effort, *, size, n_jobs=None, **options):
        asked.append((row.name, size, n_jobs))
        outcome = make_outcome(row.name, size, fastjob=[1.0], limit=[0.5])
        outcome.samples.update((n, [2.0]) for n in names if n not in outcome.samples)
        return outcome

    monkeypatch.setattr(rounds, "measure", measure)
    scaling = {curve.name: curve for curve in curves.scaling(quick=False)}
    assert [p.at for p in scaling["tiny tasks, threads"].points] == [
        1e2,
        1e3,
        1e4,
        1e5,
        1e6,
    ]
    assert ("curve-workers", 6400, 64) in asked
    assert ("curve-array-in", 10**9, None) in asked and (
        "curve-array-in",
        1000,
        None,
    ) in asked
    shapes = list(curves.autotuner(quick=False))
    assert [curve.name for curve in shapes] == list(curves.SHAPES)
    assert [p.at for p in shapes[0].points] == list(curves.LENGTHS)
    # Two seconds-long tasks a worker leave room for no batch but of one.
    assert set(shapes[0].points[-1].outcome.samples) == {"fastjob", "limit", "1"}


@pytest.fixture
def measured():
    tasks = curves.Curve(
        "tiny tasks",
        "tasks",
        float,
        [
            curves.Point(100.0, make_outcome(limit=[1e-5], fastjob=[4e-5])),
            curves.Point(1000.0, make_outcome(limit=[1e-4])),
        ],
    )
    size = {"count": 50, "seconds": 0.01, "shape": "constant"}
    batches = curves.Curve(
        "constant",
        "seconds a task",
        lambda at: 1.0,
        [
            curves.Point(
                0.01,
                make_outcome(
                    "curve-batches", size, 0.25, fastjob=[0.5], _1=[0.4], _10=[0.8]
                ),
            ),
            curves.Point(0.0, make_outcome("curve-batches", size, 0.0, fastjob=[0.5])),
        ],
    )
    return tasks, batches


def test_curve_tables_show_cost_a_task_and_share(measured):
    lines = limits.curve_table(measured[0]).splitlines()
    assert lines[0] == "tiny tasks"
    cells = [cell.strip() for cell in lines[3].split("|")]
    assert cells[1:5] == ["100", "100 ns", "400 ns", "25 % [25, 25]"]
    assert "failed" in lines[4]


def test_batch_tables_show_every_size_and_the_efficiency(measured):
    lines = limits.batch_table(measured[1]).splitlines()
    assert [cell.strip() for cell in lines[3].split("|")][1:-1] == [
        "10 ms",
        "50",
        "500 ms",
        "400 ms",
        "800 ms",
        "",
        "",
        "80 %",
        "50 % [50, 50]",
    ]
    assert "instant" in lines[4]


def test_curves_are_drawn(measured, run_python, tmp_path):
    pytest.importorskip("matplotlib")
    values = report.as_json([], "limits")
    values["scaling"] = [limits._curve_json(measured[0])]
    values["autotuner"] = [limits._curve_json(measured[1])]
    report.write_json("in.json", values)
    script = (
        f"import json, sys\nsys.path.append({str(paths.ROOT)!r})\n"
        "from benchmarks import page\n"
        "page.draw_curves(json.load(open('in.json')), 'curves.svg')\n"
    )
    done = run_python(script)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "curves.svg").read_text().count("batch 10") >= 1


def test_a_page_without_curves_is_refused():
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="nothing was measured that has a curve"):
        page.draw_curves({"scaling": [], "autotuner": []}, "curves.svg")


def test_an_unknown_part_is_refused():
    options = argparse.Namespace(parts="rows,nonsense")
    with pytest.raises(ValueError, match="no part is named 'nonsense'"):
        limits.run(options)


def test_limits_of_a_real_row(tmp_path, capsys):
    options = argparse.Namespace(
        parts="rows",
        rows="tiny-sequential",
        quick=True,
        json=str(tmp_path / "out.json"),
        page=None,
    )
    assert limits.run(options) == 0
    assert "plain loop" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert set(row["sides"]) == {"limit", "fastjob"}
    assert row["ratios"]["limit"]["median"] > 0


def test_a_warm_copy_copies_all_bytes():
    np = pytest.importorskip("numpy")
    copy = floors.WarmCopy()
    arrays = [np.arange(6.0), np.arange(4.0)]
    copy(arrays)
    assert copy._target.size == 48
    assert bytes(copy._target[:32]) == arrays[1].tobytes()
    assert bytes(copy._target[32:]) == arrays[0].tobytes()[32:]


def test_the_limit_is_no_peer_but_can_run_every_row_that_has_one():
    assert "limit" not in peers.NAMES
    for row in rows.ALL:
        expected = row.limit is not None or row.script in (
            "first call",
            "first numpy call",
        )
        assert peers.can_run("limit", row) == expected
