"""Bars and curves, as SVG or as an HTML page with the SVG and a table inside."""

from __future__ import annotations

import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import amount

#: Colours that stay apart for colour-blind readers (Okabe and Ito, 2008).
_COLOURS = {
    "joblib": "#D55E00",
    "mp_pool": "#0072B2",
    "futures": "#009E73",
    "mpire": "#CC79A7",
    "dask": "#E69F00",
    "ray": "#56B4E9",
}


#: The sides that have a colour, in the order of columns and bars.
PEERS = tuple(_COLOURS)


def draw(values: dict[str, Any], path: str) -> None:
    """Draw the ratios of a ``versus`` run.

    Parameters
    ----------
    values : dict
        What ``--json`` writes.
    path : str
        A file that ends in ``.svg`` or ``.html``.

    Raises
    ------
    ValueError
        The file has another ending, or no row has a ratio.
    """
    _write(path, values, _bars)


def draw_curves(values: dict[str, Any], path: str) -> None:
    """Draw the curves of a ``limits`` run, one panel each.

    Parameters
    ----------
    values : dict
        What ``--json`` writes.
    path : str
        A file that ends in ``.svg`` or ``.html``.

    Raises
    ------
    ValueError
        The file has another ending, or nothing was measured that has a curve.
    """
    _write(path, values, _curves)


def _write(
    path: str, values: dict[str, Any], picture: Callable[[dict[str, Any]], str]
) -> None:
    kind = Path(path).suffix
    if kind not in (".svg", ".html"):
        raise ValueError(f"--page writes .svg or .html, not {kind!r}")
    text = picture(values)
    if kind == ".html":
        text = _html(values, text)
    Path(path).write_text(text, encoding="utf-8")


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("svg")
    # Text stays text, and the same values give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fastjob"})
    from matplotlib import pyplot

    return pyplot


def _curves(values: dict[str, Any]) -> str:
    pyplot = _pyplot()
    panels = [*values["scaling"], *values["autotuner"]]
    if not panels:
        raise ValueError("nothing was measured that has a curve")
    lines = -(-len(panels) // 2)
    figure, grid = pyplot.subplots(
        lines, 2, figsize=(9, 2.8 * lines), layout="constrained", squeeze=False
    )
    for axes, curve in zip(grid.flat, panels, strict=False):
        for name in dict.fromkeys(n for p in curve["points"] for n in p["sides"]):
            points = [p for p in curve["points"] if name in p["sides"]]
            # An instant task has no place on a logarithmic axis; 0.1 us is its length.
            at = [p["at"] or 1e-7 for p in points]
            cost = [p["sides"][name]["median"] / p["per"] for p in points]
            label = f"batch {name}" if name.isdigit() else name
            axes.plot(at, cost, "o-", markersize=3, linewidth=1, label=label)
        axes.set(xscale="log", yscale="log", title=curve["name"])
        axes.set_xlabel(curve["axis"])
        axes.set_ylabel("seconds")
        axes.legend(fontsize=7)
    for axes in list(grid.flat)[len(panels) :]:
        axes.remove()
    text = _svg(figure)
    pyplot.close(figure)
    return text


def _bars(values: dict[str, Any]) -> str:
    pyplot = _pyplot()
    rows = [row for row in values["rows"] if row["ratios"]]
    if not rows:
        raise ValueError("no row has a ratio to draw")
    present = [n for n in _COLOURS if any(n in row["ratios"] for row in rows)]
    height = 0.8 + sum(0.14 + 0.18 * len(row["ratios"]) for row in rows)
    figure, axes = pyplot.subplots(figsize=(9, height), layout="constrained")
    y, ticks = 0.0, []
    for row in rows:
        start = y
        for name in present:
            found = row["ratios"].get(name)
            if found is None:
                continue
            middle = found["median"]
            error = [[middle - found["low"]], [found["high"] - middle]]
            # From 1, so that a side that is faster points to the left.
            axes.barh(
                y,
                middle - 1,
                0.8,
                left=1,
                color=_COLOURS[name],
                xerr=error,
                ecolor="#555555",
            )
            axes.text(found["high"] * 1.05, y, f"{middle:.3g}", va="center", size=7)
            y += 1
        ticks.append(((start + y - 1) / 2, row["title"]))
        y += 0.8
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks([tick for tick, _ in ticks], [title for _, title in ticks], size=8)
    axes.invert_yaxis()
    axes.set_xlabel("times as long as fastjob (log scale; right of 1: fastjob faster)")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=_COLOURS[n]) for n in present]
    axes.legend(handles, present, loc="lower right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    text = _svg(figure)
    pyplot.close(figure)
    return text


def _html(values: dict[str, Any], picture: str) -> str:
    machine = values["machine"]
    lines = []
    for row in values["rows"]:
        cells = "".join(
            f"<td>{html.escape(name)} {amount(side['median'], row['unit'])}</td>"
            for name, side in row["sides"].items()
        )
        lines.append(f"<tr><td>{html.escape(row['title'])}</td>{cells}</tr>")
    packages = ", ".join(f"{k} {v}" for k, v in machine["packages"].items())
    return (
        "<!doctype html><meta charset='utf-8'><title>fastjob beside its peers</title>"
        "<style>body{font:14px sans-serif;margin:2em}td{padding:2px 8px}</style>"
        "<h1>fastjob beside its peers</h1>"
        f"<p>{html.escape(values['date'])}: fastjob {html.escape(machine['fastjob'])}, "
        f"Python {machine['python']}, {machine['cpus']} CPUs, "
        f"{html.escape(machine['system'])}; {html.escape(packages)}</p>"
        f"{picture[picture.index('<svg') :]}<table>{''.join(lines)}</table>\n"
    )
