"""The text of a task's traceback."""

import builtins
import heapq
import os
import sys
import warnings

import pytest
from failing import caught, chained, in_context, suppressed

from fastjob import failure, tracetext

ExceptionGroup = getattr(builtins, "ExceptionGroup", Exception)
needs_groups = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="exception groups are new in Python 3.11"
)


def text_of(function, *args, show_values=True, **kwargs):
    error = caught(function, *args, **kwargs)
    return failure.describe(error, 17, function, args, kwargs, show_values)


def test_the_text_names_task_process_and_version():
    text = text_of(heapq.nlargest, 2, 3)
    assert "TypeError in task 17: heapq.nlargest(2, 3)" in text
    assert f"PID {os.getpid()}, Python {sys.version.split()[0]}" in text


def test_a_task_that_was_never_started_has_no_function_to_name():
    text = failure.describe(ValueError("from an initializer"), 17, None, (), {})
    assert "ValueError in task 17: it could not be started\n" in text


def test_a_frame_shows_the_values_of_its_parameters_and_two_lines_of_context():
    rows = text_of(heapq.nlargest, 2, 3).split("\n")
    (where,) = (
        i for i, r in enumerate(rows) if "nlargest(n=2, iterable=3, key=None)" in r
    )
    assert rows[where].startswith('File "')
    arrow = rows[where + 3]
    assert arrow.lstrip().startswith("--> ")
    assert "it = iter(iterable)" in arrow
    assert all(
        "-->" not in r
        for r in (*rows[where + 1 : where + 3], *rows[where + 4 : where + 6])
    )
    assert rows[where + 6] == tracetext.DOTS


def all_kinds(first, /, second, *rest, key=3, **others):
    del second
    raise ValueError("here")


def test_every_kind_of_parameter_is_shown_in_the_order_of_the_signature():
    text = text_of(all_kinds, 1, 2, 3, 4, more=5)
    assert "all_kinds(first=1, *rest=(3, 4), key=3, **others={'more': 5})" in text


def test_values_can_be_switched_off():
    text = text_of(all_kinds, "secret-1", "secret-2", key="secret-3", show_values=False)
    assert "secret" not in text
    assert "task 17: " in text
    assert "all_kinds(first, *rest, key, **others)" in text
    assert failure.shorten(len, ("secret",), {}, show_values=False) == "len(...)"


@pytest.mark.parametrize(
    ("function", "link"),
    [(chained, "direct cause"), (in_context, "being handled"), (suppressed, None)],
)
def test_a_chain_is_shown_as_python_would(function, link):
    text = text_of(function)
    assert ("KeyError: 'key'" in text) == (link is not None)
    if link is not None:
        assert text.index("KeyError: 'key'") < text.index(link)
        assert text.index(link) < text.index("ValueError: outer")


def test_a_chain_that_goes_round_ends():
    a, b = ValueError("a"), ValueError("b")
    a.__context__, b.__context__ = b, a
    text = failure.describe(a, 0, len, (), {})
    assert text.count("ValueError: a") == text.count("ValueError: b") == 1


@needs_groups
def test_a_group_shows_its_members_and_their_members():
    def fail():
        inner = ExceptionGroup("inner", [OSError(2, "no file")])
        raise ExceptionGroup("outer", [ValueError("one"), inner])

    text = text_of(fail)
    for words in (
        "ExceptionGroup: outer (2 sub-exceptions)",
        "+---- 1 of 2",
        "  | ValueError: one",
        "  | ExceptionGroup: inner",
        "  |   | FileNotFoundError: [Errno 2] no file",
    ):
        assert words in text


def test_notes_are_shown():
    def fail():
        error = ValueError("x")
        error.__notes__ = ["look here"]
        raise error

    assert text_of(fail).count("\nlook here\n") == 1


def test_a_syntax_error_shows_the_line():
    text = text_of(compile, "a = = 2", "config.py", "exec")
    assert 'File "config.py", line 1' in text
    assert "a = = 2" in text


def deep(n):
    return deep(n + 1)


def test_a_recursion_error_is_shown_at_both_ends():
    text = text_of(deep, 0)
    assert "deep(n=0)" in text
    assert "more frames)" in text
    assert text.count("File ") == 2 * tracetext.MAX_FRAMES
    assert "RecursionError" in text


def test_a_warning_as_error_is_shown():
    def warn():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.warn("careful", UserWarning, stacklevel=2)

    assert "UserWarning: careful" in text_of(warn)


def test_frames_of_fastjob_are_left_out():
    space = {"__name__": "fastjob._core.worker", "all_kinds": all_kinds}
    exec("def run(): all_kinds(1, 2)", space)
    text = text_of(space["run"])
    assert "in run(" not in text
    assert "in all_kinds(" in text
