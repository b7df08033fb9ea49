"""A timeline's files: the page, Chrome's trace format, and one from the other.

``python -m fastjob report run.json`` makes the page from a trace.  The trace carries
what the recorder knew under a key of its own, which trace viewers ignore, so that
nothing is lost on the way.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.resources import files

from fastjob.analysis import lane_name, plural

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["main", "make_page", "make_trace", "write_timeline"]

KEY = "fastjob"
NEEDED = ("calls", "columns", "events", "lanes", "longest", "spans", "summary")


def write_timeline(data: dict[str, Any], path: str) -> None:
    """Write the data of a timeline as a page or a trace, whole or not at all.

    Parameters
    ----------
    data : dict
        From `recorder.Recorder.data`.
    path : str
        Ends in ``.html`` or ``.json``.
    """
    if path.endswith(".html"):
        text = make_page(data)
    else:
        text = json.dumps(make_trace(data), separators=(",", ":"))
    unfinished = f"{path}.{os.getpid()}.part"
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(unfinished, path)
    except OSError:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        raise


def make_page(data: dict[str, Any]) -> str:
    """Put the data into the page, which then needs nothing from outside."""
    template = files("fastjob").joinpath("timeline.html").read_text(encoding="utf-8")
    # Nothing in the data can end the script element that holds it.
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return template.replace("{{data}}", embedded, 1)


def make_trace(data: dict[str, Any]) -> dict[str, Any]:
    """Write the data in the trace format of Chrome and Perfetto (times in µs)."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "fastjob"}}
    ]
    for number, lane in enumerate(data["lanes"]):
        events.append(
            {
                "ph": "M",
                "name": "thread_name",
                "pid": 0,
                "tid": number,
                "args": {"name": lane_name(lane)},
            }
        )
    for call in data["calls"]:
        name = f"call {call['number'] + 1}: {call['backend']}, n_jobs={call['n_jobs']}"
        same = {"cat": "call", "id": call["number"], "name": name, "pid": 0, "tid": 0}
        events.append({"ph": "b", "ts": call["start"] / 1e3, **same})
        events.append({"ph": "e", "ts": call["end"] / 1e3, **same})
    for row in data["spans"]:
        span = dict(zip(data["columns"], row, strict=True))
        one = span["tasks"] == 1
        events.append(
            {
                "ph": "X",
                "cat": "batch",
                "name": f"task {span['first']}"
                if one
                else plural(span["tasks"], "task"),
                "pid": 0,
                "tid": span["lane"],
                "ts": span["start"] / 1e3,
                "dur": (span["end"] - span["start"]) / 1e3,
                "args": {k: v for k, v in span.items() if v and k not in _PLACE},
            }
        )
    for event in data["events"]:
        events.append(
            {
                "ph": "i",
                "s": "t",
                "cat": event["kind"],
                "name": event["kind"],
                "pid": 0,
                "tid": event["lane"],
                "ts": event["time"] / 1e3,
                "args": {"text": event["text"]},
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms", KEY: data}


_PLACE = ("lane", "start", "end")


def read_trace(path: str) -> dict[str, Any]:
    """Read the data of a timeline back from a trace.

    Raises
    ------
    ValueError
        If the file is not a trace that fastjob wrote.
    """
    with open(path, encoding="utf-8") as file:
        try:
            trace = json.load(file)
        except ValueError as error:  # not JSON, or not even text
            raise ValueError(f"{path} is not a JSON file: {error}") from error
    data = trace.get(KEY) if isinstance(trace, dict) else None
    if not isinstance(data, dict) or any(name not in data for name in NEEDED):
        raise ValueError(f"{path} is not a timeline that fastjob recorded.")
    if data.get("version") != 1:
        raise ValueError(f"{path} was recorded by another version of fastjob.")
    return data


def main(argv: list[str]) -> int:
    """Make the page of a recorded run: ``python -m fastjob report``.

    Parameters
    ----------
    argv : list of str
        The arguments after ``report``.

    Returns
    -------
    int
        0 for success, 1 if the file cannot be read or written.
    """
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m fastjob report",
        description="Make a timeline page from a run recorded as .json.",
    )
    parser.add_argument("trace", help="the file recorded with timeline='run.json'")
    parser.add_argument(
        "-o", "--output", help="the page to write (default: the same name, .html)"
    )
    options = parser.parse_args(argv)
    output = options.output or f"{os.path.splitext(options.trace)[0]}.html"
    if not output.endswith(".html"):
        parser.error(f"the page must end in .html, not {output}")
    try:
        data = read_trace(options.trace)
        write_timeline(data, output)
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    for reason in data["summary"]:
        print(reason["text"])
    print(f"\nThe page is {output}")
    return 0
