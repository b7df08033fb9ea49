"""``benchmarks publish``: one run in the figures and tables of the docs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import page, paths, publish, rows


def make_row(name, **medians):
    ours = medians["fastjob"]
    return {
        "name": name,
        "title": f"The row {name}",
        "unit": "s",
        "noise": 1.1,
        "ideal": None,
        "sides": {side: {"median": value} for side, value in medians.items()},
        "ratios": {
            side: {"median": value / ours, "low": value / ours, "high": value / ours}
            for side, value in medians.items()
            if side != "fastjob"
        },
    }


@pytest.fixture
def values():
    return {
        "command": "versus",
        "date": "2026-05-04T10:20:30Z",
        "machine": {"python": "3.11.7", "cpus": 2, "packages": {"joblib": "1.6.0"}},
        "rows": [
            make_row("blas-2", fastjob=2.0, joblib=1.0),
            make_row("tiny-processes", fastjob=0.01, joblib=0.12, futures=0.5),
        ],
    }


@pytest.fixture
def checkout(tmp_path):
    for name, _ in publish.PAGES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(
            f"Before\n{publish.BEGIN}an old table\n{publish.END}\nAfter\n"
        )
    return tmp_path


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn where; drawing itself is tested in test_benchmarks."""
    found = {}
    monkeypatch.setattr(
        page,
        "draw",
        lambda values, path: found.update({path: [r["name"] for r in values["rows"]]}),
    )
    return found


def test_the_table_says_when_and_on_what_and_the_ratios(values):
    lines = publish.table(values, values["rows"]).splitlines()
    assert lines[0] == "Python 3.11.7, 2 cores, joblib 1.6.0; 2026-05-04."
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert cells[0] == ["work", "fastjob", "joblib", "futures"]
    assert cells[2] == ["The row blas-2", "2 s", "1 s (x0.5)", ""]
    assert cells[3] == [
        "The row tiny-processes",
        "10 ms",
        "120 ms (x12)",
        "500 ms (x50)",
    ]


def test_a_row_with_an_ideal_time_has_its_share(values):
    values["rows"][0]["ideal"] = 1.95
    lines = publish.table(values, values["rows"]).splitlines()
    assert "| 2 s (97.5% of ideal) |" in lines[4]


def test_a_noisy_run_is_said_to_be_one(values):
    values["rows"][0]["noise"] = 1.6
    text = publish.table(values, values["rows"])
    assert "joblib 1.6.0, on a machine with other work to do; 2026" in text


def test_each_page_gets_its_rows_between_its_marks(values, checkout, drawn):
    publish.publish(values, checkout)
    readme = (checkout / "README.md").read_text()
    assert readme.startswith(f"Before\n{publish.BEGIN}Python 3.11.7")
    assert readme.endswith(f" |\n{publish.END}\nAfter\n")
    assert "old" not in readme and "blas-2" not in readme
    assert "blas-2" in (checkout / "docs/benchmarks.md").read_text()
    assert drawn == {
        str(checkout / "docs/figures/versus-few.svg"): ["tiny-processes"],
        str(checkout / "docs/figures/versus.svg"): ["blas-2", "tiny-processes"],
    }
    publish.publish(values, checkout)
    assert (checkout / "README.md").read_text() == readme


def test_the_chosen_rows_are_in_the_order_of_the_choice(values):
    values["rows"].append(make_row("stream-processes", fastjob=1.0, joblib=2.0))
    values["rows"].reverse()
    chosen = [row["name"] for row in publish._rows(values, publish.CHOSEN)]
    assert chosen == ["tiny-processes", "stream-processes"]


def test_nothing_is_written_if_something_is_wrong(values, checkout, drawn):
    (checkout / "docs/benchmarks.md").write_text("no marks")
    before = (checkout / "README.md").read_text()
    with pytest.raises(ValueError, match=r"docs/benchmarks\.md has no lines"):
        publish.publish(values, checkout)
    with pytest.raises(ValueError, match="no row that is to be published"):
        publish.publish({**values, "rows": values["rows"][:1]}, checkout)
    with pytest.raises(ValueError, match="publish takes what"):
        publish.publish({**values, "command": "limits"}, checkout)
    assert (checkout / "README.md").read_text() == before
    assert drawn == {}


def test_the_pages_of_this_checkout_have_their_marks_and_their_figures():
    for name, _ in publish.PAGES:
        text = (paths.ROOT / name).read_text()
        assert publish.between_marks(text, "", name) != text
    assert "](docs/figures/versus-few.svg)" in (paths.ROOT / "README.md").read_text()
    shown = (paths.ROOT / "docs" / "benchmarks.md").read_text()
    assert "](figures/versus.svg)" in shown


def test_the_chosen_rows_exist():
    assert [rows.find(name).name for name in publish.CHOSEN] == list(publish.CHOSEN)


def test_the_command_reads_the_file(values, checkout, drawn, monkeypatch, tmp_path):
    from benchmarks import __main__ as command

    file = tmp_path / "run.json"
    file.write_text(json.dumps(values))
    monkeypatch.setattr(paths, "ROOT", checkout)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "publish", str(file)])
    assert command.main() == 0
    assert len(drawn) == 2
