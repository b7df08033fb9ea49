"""The traceback of a task, as text for a person.

For each frame of the user's code: where it is, the values of the function's
parameters, and the line that failed between two lines of context on each side.
fastjob's own frames are left out.  Causes, contexts, groups and notes follow Python's
own rules for what is shown.

This runs where the task ran.  The source of a notebook cell is known only to the
caller, so a frame without source gets a marker line, and `fill_sources` puts the
lines in when the text has arrived there.
"""

from __future__ import annotations

import linecache
import os
import re
import sys
import traceback
from itertools import islice

from fastjob.errors import RemoteTraceback
from fastjob.shortrepr import (
    cut,
    function_name,
    short_arguments,
    short_reprs,
    type_name,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType, TracebackType
    from typing import Any

RULE = "-" * 75
DOTS = "." * 75
CONTEXT_LINES = 2
MAX_FRAMES = 10  # at either end; a RecursionError has a thousand
MAX_CHAIN = 20
MAX_MESSAGE = 10_000
MAX_PARAMETERS = 10
NO_SOURCE = "    (the source is not available)"

_CAUSE = "\nThe exception above was the direct cause of the one below.\n"
_CONTEXT = "\nThe one below happened while the exception above was being handled.\n"
_HEADER = re.compile(
    r'^(?P<margin>[ |]*)File "(?P<file>.*)", line (?P<line>\d+), in .*\n'
    rf"(?P=margin){re.escape(NO_SOURCE)}$",
    re.MULTILINE,
)


def describe_failure(
    exc: BaseException,
    index: int,
    func: Any,
    args: Any,
    kwargs: Any,
    show_values: bool = True,
) -> str:
    """Format the failure of a task; see `fastjob.failure.describe`."""
    if func is None:
        call = "it could not be started"
    else:
        shown = short_arguments(args, kwargs) if show_values else "..."
        call = f"{function_name(func)}({shown})"
    version = ".".join(map(str, sys.version_info[:3]))
    linecache.checkcache()  # a worker lives longer than the files it has shown
    lines = [
        RULE,
        f"{type_name(exc)} in task {index}: {call}",
        f"PID {os.getpid()}, Python {version}: {sys.executable}",
        *_format_chain(exc, show_values, set()),
        RULE,
    ]
    return "\n".join(lines) + "\n"


def fill_sources(text: str) -> str:
    """Put in the source lines that were not available where ``text`` was made."""

    def fill(match: re.Match[str]) -> str:
        margin = match["margin"]
        lines = _source_lines(match["file"], int(match["line"]), None)
        header = match[0].split("\n", 1)[0]
        return "\n".join([header, *(margin + line for line in lines)])

    return _HEADER.sub(fill, text) if NO_SOURCE in text else text


def exception_only(exc: BaseException) -> str:
    """Type, message and notes of an exception, as Python prints them, cut if huge."""
    try:
        text = "".join(traceback.format_exception_only(type(exc), exc))
        if sys.version_info < (3, 11):  # where Python knows no notes
            notes = [str(note) for note in getattr(exc, "__notes__", ())]
            text += "".join(f"{note}\n" for note in notes if note not in text)
    except Exception as error:  # attributes of the exception that lie, for example
        text = f"{type_name(exc)}: <it cannot be shown: {type_name(error)}>"
    return cut(text.rstrip("\n"), MAX_MESSAGE)


def _format_chain(exc: BaseException, show_values: bool, seen: set[int]) -> list[str]:
    """The exception after those that led to it, oldest first."""
    chain: list[tuple[str, BaseException]] = []
    link, current = "", exc
    while True:
        seen.add(id(current))
        chain.append((link, current))
        if current.__cause__ is not None:
            link, following = _CAUSE, current.__cause__
        elif current.__context__ is not None and not current.__suppress_context__:
            link, following = _CONTEXT, current.__context__
        else:
            break
        if id(following) in seen or len(chain) == MAX_CHAIN:
            break
        current = following
    lines = []
    for link, one in reversed(chain):
        lines += _format_one(one, show_values, seen)
        if link:
            lines.append(link)
    return lines


def _format_one(exc: BaseException, show_values: bool, seen: set[int]) -> list[str]:
    if isinstance(exc, RemoteTraceback):  # of a call inside this task
        return exc.text.strip("\n").split("\n")
    lines = []
    frames = list(_user_frames(exc.__traceback__))
    if len(frames) > 2 * MAX_FRAMES:
        left_out = len(frames) - 2 * MAX_FRAMES
        shown = frames[:MAX_FRAMES] + frames[-MAX_FRAMES:]
    else:
        left_out, shown = 0, frames
    parameters = _all_parameters([frame for frame, _ in shown], show_values)
    for i, ((frame, line_number), values) in enumerate(
        zip(shown, parameters, strict=True)
    ):
        if left_out and i == MAX_FRAMES:
            lines += [DOTS, f"({left_out} more frames)"]
        code = frame.f_code
        name = getattr(code, "co_qualname", code.co_name)  # since Python 3.11
        where = name if values is None else f"{name}({values})"
        lines += [DOTS, f'File "{code.co_filename}", line {line_number}, in {where}']
        lines += _source_lines(code.co_filename, line_number, frame.f_globals)
    lines += [DOTS] if frames else []
    lines += exception_only(exc).split("\n")
    members = _members(exc)
    if members:
        for i, member in enumerate(members[:MAX_CHAIN]):
            lines.append(f"  +---- {i + 1} of {len(members)} " + "-" * 20)
            if id(member) not in seen:
                inner = _format_chain(member, show_values, seen)
                lines += [f"  | {row}" for part in inner for row in part.split("\n")]
        lines.append("  +" + "-" * 32)
    return lines


def _members(exc: BaseException) -> tuple[BaseException, ...]:
    """Exceptions of a group, of Python's class or of the backport's for Python 3.10."""
    try:
        members = getattr(exc, "exceptions", None)
    except Exception:  # a property of some other kind of exception
        return ()
    if type(members) is not tuple:
        return ()
    return members if all(isinstance(m, BaseException) for m in members) else ()


def _user_frames(tb: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    """Frames and line numbers of a traceback, without fastjob's own frames."""
    while tb is not None:
        module = tb.tb_frame.f_globals.get("__name__")
        own = isinstance(module, str) and f"{module}.".startswith("fastjob.")
        if not own or module == "fastjob.demo":
            yield tb.tb_frame, tb.tb_lineno
        tb = tb.tb_next


def _all_parameters(frames: list[FrameType], show_values: bool) -> list[str | None]:
    """For each frame ``n=2, key=None``; None for one that is not of a function."""
    values: list[Any] = []
    names: list[list[str] | None] = []
    for frame in frames:
        if frame.f_code.co_name in ("<module>", "<listcomp>", "<genexpr>"):
            names.append(None)
            continue
        found = []
        state = frame.f_locals
        for name in _parameter_names(frame.f_code):
            plain = name.lstrip("*")
            if plain in state:  # it is not after ``del``
                found.append(name)
                values.append(state[plain])
        names.append(found)
    texts = iter(short_reprs(values)) if show_values else None
    rows: list[str | None] = []
    for found_names in names:
        if found_names is None:
            rows.append(None)
        elif texts is None:
            rows.append(", ".join(found_names))
        else:
            parts = [f"{name}={next(texts)}" for name in found_names]
            rows.append(", ".join(parts))
    return rows


def _parameter_names(code: CodeType) -> list[str]:
    """Names of a function's parameters, in the order of its signature."""
    n = code.co_argcount
    keyword_only = code.co_kwonlyargcount
    names = list(code.co_varnames)
    found = names[:n]
    rest = n + keyword_only
    if code.co_flags & 0x04:  # CO_VARARGS
        found.append(f"*{names[rest]}")
        rest += 1
    found += names[n : n + keyword_only]
    if code.co_flags & 0x08:  # CO_VARKEYWORDS
        found.append(f"**{names[rest]}")
    return list(islice(found, MAX_PARAMETERS))


def _source_lines(
    filename: str, line_number: int, module_globals: dict[str, Any] | None
) -> list[str]:
    """The line, with an arrow, and those around it; a marker if there is no source."""
    lines = linecache.getlines(filename, module_globals)
    if not 0 < line_number <= len(lines):
        return [NO_SOURCE]
    first = max(1, line_number - CONTEXT_LINES)
    last = min(len(lines), line_number + CONTEXT_LINES)
    rows = []
    for i in range(first, last + 1):
        arrow = f"--> {i}" if i == line_number else f"{i}"
        rows.append(f"{arrow:>8} {cut(lines[i - 1].rstrip(), 200)}".rstrip())
    return rows
