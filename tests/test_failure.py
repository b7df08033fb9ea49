"""The way of an exception from a task to its caller."""

import builtins
import heapq
import linecache
import os
import pickle
import subprocess
import sys
import threading
import traceback

import pytest
from failing import (
    caught,
    chained,
    grouped,
    in_context,
    noted,
    suppressed,
    too_deep,
    warned,
    wrong_syntax,
)

import fastjob
from fastjob import Parallel, delayed, failure, tracetext
from fastjob.errors import RemoteTraceback, TaskPicklingError, UnpicklableExceptionError

ExceptionGroup = getattr(builtins, "ExceptionGroup", Exception)
needs_groups = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="exception groups are new in Python 3.11"
)


def carried(error, text="text"):
    """The exception as it reaches the caller."""
    return failure.unpack(failure.pack(error, text))


class Picky(Exception):
    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")
        self.code = code


class PickyOS(OSError):
    def __init__(self, path, why):
        super().__init__(2, why, path)


class Lying(Exception):
    def __reduce__(self):
        return ValueError, ("not me",)


class Number(Exception):
    def __reduce__(self):
        return int, ("3",)


class Refusing(Exception):
    def __reduce__(self):
        raise RuntimeError("never")


class Exiting(Exception):
    def __reduce__(self):
        return sys.exit, (3,)


class Mute(Exception):
    def __reduce__(self):
        return Mute, ()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x", 3),
        Picky(3, "bad"),
        OSError(2, "no", "name"),
        PickyOS("name", "no"),
        ImportError("no", name="module", path="file"),
        SyntaxError("bad", ("file", 1, 2, "text", 1, 3)),
        UnicodeDecodeError("utf8", b"a", 0, 1, "bad"),
        SystemExit(3),
        TaskPicklingError(1, "f", None, "t", "r"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_exception_arrives_as_it_was_with_the_text_as_cause(error):
    back = carried(error, "the text")
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)
    assert back.__dict__ == error.__dict__
    assert isinstance(back.__cause__, RemoteTraceback)
    assert str(back.__cause__) == "\nthe text\n"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Lying("words"), "it became ValueError"),
        (Number("words"), "an object of type int"),
        (Refusing("words"), "RuntimeError: never"),
        (Exiting("words"), "SystemExit: 3"),
        (ValueError("words", threading.Lock()), "cannot pickle"),
    ],
    ids=["another type", "no exception", "refuses", "exits", "bad argument"],
)
def test_an_exception_that_cannot_be_carried_is_told_in_words(error, reason):
    back = carried(error, "the text")
    assert isinstance(back, UnpicklableExceptionError)
    assert back.type_name.endswith(type(error).__name__)
    assert "words" in str(back)
    assert reason in str(back)
    assert back.traceback == "the text"
    assert back.__cause__.text == "the text"


def test_what_loads_in_the_worker_but_not_in_the_caller_is_told_in_words(monkeypatch):
    data = failure.pack(Picky(3, "bad"), "the text")
    monkeypatch.delitem(globals(), "Picky")
    back = failure.unpack(data)
    assert isinstance(back, UnpicklableExceptionError)
    assert "3: bad" in str(back)
    assert "AttributeError" in back.reason


def test_an_interrupt_while_unpacking_is_not_swallowed(monkeypatch):
    data = failure.pack(Mute(), "")

    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Mute, "__init__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        failure.unpack(data)


def test_an_attribute_that_cannot_be_pickled_is_left_out_with_a_note():
    error = Picky(3, "bad")
    error.lock = threading.Lock()
    back = carried(error)
    assert type(back) is Picky
    assert back.code == 3
    assert not hasattr(back, "lock")
    assert back.__notes__ == ["(attributes that could not be pickled: lock)"]


def test_notes_arrive_even_if_the_class_forgets_its_attributes():
    error = Mute()
    error.__notes__ = ["look here"]
    assert carried(error).__notes__ == ["look here"]


def test_the_original_cause_comes_behind_the_text():
    back = carried(caught(chained))
    assert type(back.__cause__) is RemoteTraceback
    assert type(back.__cause__.__cause__) is KeyError
    assert back.__cause__.__cause__ is back.__context__
    shown = "".join(traceback.format_exception(type(back), back, None))
    assert shown.index("KeyError: 'key'") < shown.index("ValueError: outer")


@pytest.mark.parametrize(
    ("function", "context"), [(in_context, KeyError), (suppressed, type(None))]
)
def test_a_context_is_shown_unless_it_was_suppressed(function, context):
    back = carried(caught(function))
    assert type(back.__cause__.__context__) is context
    assert type(back.__context__) is KeyError


def test_a_chain_that_goes_round_is_carried():
    a, b = ValueError("a"), ValueError("b")
    a.__cause__, b.__cause__ = b, a
    back = carried(a)
    assert str(back.__cause__.__cause__) == "b"
    assert back.__cause__.__cause__.__cause__ is back


def test_an_endless_chain_is_cut():
    first = error = ValueError(0)
    for i in range(1, 1000):
        error.__context__ = ValueError(i)
        error = error.__context__
    assert carried(first).args == (0,)


@needs_groups
def test_a_group_arrives_with_the_chains_of_its_members():
    member = caught(chained)
    inner = ExceptionGroup("inner", [member, Refusing("words")])
    back = carried(ExceptionGroup("outer", [KeyError("k"), inner]))
    assert type(back) is ExceptionGroup
    assert back.message == "outer"
    assert type(back.exceptions[0]) is KeyError
    carried_member, stand_in = back.exceptions[1].exceptions
    assert type(carried_member.__cause__) is KeyError
    assert isinstance(stand_in, UnpicklableExceptionError)
    assert "words" in str(stand_in)


@needs_groups
def test_a_group_with_fields_of_its_own_arrives():
    back = carried(Grouped("g", [ValueError(1)], 7))
    assert type(back) is Grouped
    assert back.code == 7
    assert repr(back.exceptions) == "(ValueError(1),)"


@needs_groups
def test_too_large_a_group_is_told_in_words():
    members = [ValueError(i) for i in range(failure.MAX_NODES + 1)]
    back = carried(ExceptionGroup("many", members))
    assert isinstance(back, UnpicklableExceptionError)
    assert "too large a group" in back.reason


if sys.version_info >= (3, 11):

    class Grouped(ExceptionGroup):
        def __new__(cls, message, members, code):
            self = super().__new__(cls, message, members)
            self.code = code
            return self


def test_a_class_of_main_is_the_same_class_when_it_comes_back():
    # What a script defines goes to a worker, and back, by value.
    script = """
import cloudpickle, pickle, subprocess, sys
class Mine(Exception):
    pass
def task():
    raise Mine("words")
code = '''
import pickle, sys
from fastjob import failure
task = pickle.loads(sys.stdin.buffer.read())
try:
    task()
except Exception as error:
    text = failure.describe(error, 0, task, (), {})
    sys.stdout.buffer.write(failure.pack(error, text))
'''
data = subprocess.run(
    [sys.executable, "-c", code], input=cloudpickle.dumps(task), stdout=subprocess.PIPE,
    check=True,
).stdout
from fastjob import failure
error = failure.unpack(data)
assert type(error) is Mine, type(error)
assert error.args == ("words",)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_attach_gives_the_text_and_keeps_the_own_cause():
    error = caught(chained)
    own = error.__cause__
    text = failure.attach(error, 17, chained, (), {})
    assert error.__cause__.text == text
    assert error.__cause__.__cause__ is own


@pytest.mark.parametrize(
    ("args", "kwargs", "part", "kind"),
    [
        ((1, threading.Lock()), {}, 1, "_thread.lock"),
        ((1,), {"k": [threading.Lock()]}, "k", "list"),
    ],
)
def test_the_part_that_cannot_be_pickled_is_blamed(args, kwargs, part, kind):
    original = TypeError("cannot pickle")
    error = failure.blame(original, 7, len, args, kwargs)
    assert isinstance(error, TaskPicklingError)
    assert (error.index, error.function, error.part) == (7, "len", part)
    assert error.type_name == kind
    assert "_thread.lock" in error.reason
    assert error.__cause__ is original


def test_a_function_that_cannot_be_pickled_is_blamed():
    lock = threading.Lock()

    def task():
        return lock

    assert failure.blame(TypeError("x"), 7, task, (), {}).part is None


def test_blame_tells_what_was_said_if_every_part_can_be_pickled():
    error = failure.blame(pickle.PicklingError("odd"), 7, len, (1,), {})
    assert error.reason == "odd"


def test_a_task_is_written_on_one_line():
    assert failure.shorten(len, ([1, 2],), {"k": 3}) == "len([1, 2], k=3)"
    assert failure.shorten_parts(len, (1,), {}) == ("len", "1")


def test_nothing_heavy_is_imported_before_something_fails():
    code = (
        "import sys, fastjob.failure; "
        "assert not {'traceback', 'linecache', 'cloudpickle', 'numpy', "
        "'fastjob.tracetext', 'multiprocessing'} & set(sys.modules) - before"
    )
    subprocess.run(
        [sys.executable, "-c", f"import sys; before = set(sys.modules); {code}"],
        check=True,
    )


def test_the_text_of_an_inner_call_is_shown_once():
    def outer():
        error = ValueError("x")
        error.__cause__ = RemoteTraceback("inner" + "text")
        raise error

    error = caught(outer)
    text = failure.attach(error, 1, outer, (), {})
    assert text.count("innertext") == 1
    assert error.__cause__.text == text
    assert error.__cause__.__cause__ is None


class BadString(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class BadEverything(Exception):
    def __getattribute__(self, name):
        raise RuntimeError(name)


def raise_it(error):
    raise error


def test_an_exception_that_resists_is_still_described_and_carried():
    for error in (BadString(), BadEverything()):
        text = failure.describe(error, 17, raise_it, (error,), {})
        assert type(error).__name__ in text
        assert "task 17" in text
    assert type(carried(BadString())) is BadString
    back = carried(BadEverything(), "the text")
    assert isinstance(back, UnpicklableExceptionError)
    assert back.traceback == "the text"


def test_describing_never_fails(monkeypatch):
    def fail(*args):
        raise MemoryError

    monkeypatch.setattr(tracetext, "describe_failure", fail)
    text = failure.describe(ValueError("x"), 17, len, (), {})
    assert text == "ValueError in task 17 (no traceback could be made: MemoryError)\n"


def test_source_that_only_the_caller_has_is_filled_in_there():
    name = "<cell 1>"
    source = "def f(n):\n    a = 1\n    return n / 0\n"
    space = {"__name__": "__main__"}
    exec(compile(source, name, "exec"), space)
    error = caught(space["f"], 3)
    text = failure.describe(error, 17, space["f"], (3,), {})
    unfilled = carried(error, text)
    assert tracetext.NO_SOURCE in unfilled.__cause__.text
    # As IPython does it: entries without a time of change are kept for ever.
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    try:
        back = carried(error, text)
    finally:
        del linecache.cache[name]
    assert tracetext.NO_SOURCE not in back.__cause__.text
    assert "--> 3     return n / 0" in back.__cause__.text


# Through a call of Parallel

forks_beside_threads = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


@forks_beside_threads
@pytest.mark.parametrize("show_values", [True, False])
def test_a_failure_is_shown_in_the_same_way_by_every_backend(backend, show_values):
    parallel = Parallel(n_jobs=2, backend=backend, show_values=show_values)
    with pytest.raises(TypeError) as info:
        parallel([delayed(heapq.nlargest)(1, [2]), delayed(heapq.nlargest)(2, 3)])
    assert isinstance(info.value.__cause__, RemoteTraceback)
    text = str(info.value.__cause__)
    assert "TypeError in task 1: heapq.nlargest" in text
    assert f"Python {sys.version.split()[0]}" in text
    assert ("nlargest(n=2, iterable=3, key=None)" in text) == show_values
    assert ("nlargest(2, 3)" in text) == show_values
    assert "--> " in text
    assert os.path.dirname(fastjob.__file__) not in text
    here = f"PID {os.getpid()}," in text
    assert here == (backend in ("sequential", "threading"))


@forks_beside_threads
@pytest.mark.parametrize(
    "function",
    [
        chained,
        in_context,
        suppressed,
        pytest.param(grouped, marks=needs_groups),
        pytest.param(noted, marks=needs_groups),
        wrong_syntax,
        too_deep,
        warned,
    ],
)
def test_what_a_task_raises_is_what_its_caller_gets(backend, function):
    expected = caught(function)
    with pytest.raises(type(expected)) as info:
        Parallel(n_jobs=2, backend=backend)([delayed(abs)(1), delayed(function)()])
    error = info.value
    assert type(error) is type(expected)
    if function is not too_deep:  # what it says depends on where the limit was met
        assert error.args == expected.args or str(error) == str(expected)
    assert getattr(error, "__notes__", []) == getattr(expected, "__notes__", [])
    inner = [type(e) for e in getattr(error, "exceptions", ())]
    assert inner == [type(e) for e in getattr(expected, "exceptions", ())]
    assert isinstance(error.__cause__, RemoteTraceback)
    assert type(error.__cause__.__cause__) is type(expected.__cause__)
