"""State of the caller that a task finds in its worker, and what the worker says."""

from __future__ import annotations

import _thread
import contextvars
import logging
import os
import sys
import warnings
from contextvars import ContextVar, copy_context

import pytest

from fastjob import Parallel, delayed, variables
from fastjob._pool import levels, lines
from fastjob._pool.pool import pool

request_id: ContextVar[object] = ContextVar("request_id", default="none")
unset: ContextVar[object] = ContextVar("unset")


def processes(n_jobs=2, **options):
    return Parallel(n_jobs, "processes", **options)


def each(function, *args, n=4):
    """What a function returns in each of two workers; the same in all of them."""
    first, *others = processes(batch_size=1)(delayed(function)(*args) for _ in range(n))
    assert others == [first] * (n - 1)
    return first


# -- environment, folder, path, filters --------------------------------------------


def test_the_folder_of_a_task_is_that_of_the_caller_as_of_the_call(tmp_path):
    assert each(os.getcwd) == str(tmp_path)
    (tmp_path / "below").mkdir()
    os.chdir("below")
    assert each(os.getcwd) == str(tmp_path / "below")


def test_the_search_path_of_a_task_is_that_of_the_caller(tmp_path, monkeypatch):
    (tmp_path / "found_by_path.py").write_text("def answer(): return 42\n")
    each(int)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert each(import_and_call, "found_by_path") == 42


def command_line():
    return sys.argv


def test_the_command_line_of_a_task_is_that_of_the_caller(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", "--verbose"])
    assert each(command_line) == ["program", "--verbose"]
    sys.argv.append("file")
    assert each(command_line) == ["program", "--verbose", "file"]
    each(spoil_the_command_line)
    assert each(command_line) == ["program", "--verbose", "file"]


def spoil_the_command_line():
    sys.argv.clear()


def import_and_call(name):
    return __import__(name).answer()


def warns_or_raises():
    with warnings.catch_warnings(record=True) as caught:
        try:
            warnings.warn("careful", UserWarning, stacklevel=1)
        except UserWarning:
            return "raised"
    return len(caught)


def test_warning_filters_follow_and_change_from_call_to_call():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert each(warns_or_raises) == "raised"
        warnings.filterwarnings("ignore", "care.*")
        assert each(warns_or_raises) == 0
        warnings.filterwarnings("always", "care.*")
        assert each(warns_or_raises) == 1


def test_a_generator_has_the_state_of_the_moment_it_was_made(tmp_path):
    stream = processes(return_as="generator")(delayed(os.getcwd)() for _ in range(3))
    (tmp_path / "later").mkdir()
    os.chdir("later")
    assert list(stream) == [str(tmp_path)] * 3


# -- log levels ---------------------------------------------------------------------


def effective(*names):
    return [logging.getLogger(name).getEffectiveLevel() for name in names]


@pytest.fixture
def loggers():
    """Loggers of which nothing stays."""
    names = ["follow", "follow.below", "follow.other"]
    root = logging.root.level
    yield [logging.getLogger(name) for name in names]
    logging.disable(logging.NOTSET)
    logging.root.setLevel(root)
    for name in names:
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_log_levels_follow_and_change_from_call_to_call(loggers):
    names = [logger.name for logger in loggers]
    logging.root.setLevel(logging.ERROR)
    assert each(effective, "", *names) == [40, 40, 40, 40]
    loggers[0].setLevel(logging.DEBUG)
    loggers[1].setLevel(logging.CRITICAL)
    assert each(effective, "", *names) == [40, 10, 50, 10]
    loggers[0].setLevel(logging.NOTSET)
    assert each(effective, "", *names) == [40, 40, 50, 40]
    logging.disable(logging.INFO)
    assert each(disabled_below) == logging.INFO
    logging.disable(logging.NOTSET)
    assert each(disabled_below) == logging.NOTSET


def disabled_below():
    return logging.root.manager.disable


def set_level(name, level):
    logging.getLogger(name).setLevel(level)


def test_a_level_that_a_task_sets_ends_with_its_call(loggers):
    loggers[0].setLevel(logging.INFO)
    each(set_level, "follow", logging.DEBUG)
    assert each(effective, "follow") == [logging.INFO]


def test_levels_that_did_not_change_are_not_collected_again(loggers):
    first = levels.capture_levels()
    assert levels.capture_levels() is first
    loggers[2].setLevel(logging.INFO)
    assert levels.capture_levels()[1]["follow.other"] == logging.INFO
    logging.disable(logging.INFO)
    assert levels.capture_levels()[0] == logging.INFO


def test_without_logging_nothing_of_it_is_imported(run_python):
    done = run_python(
        "import sys\n"
        "from fastjob import Parallel, delayed\n"
        "asked = \"'logging' in __import__('sys').modules\"\n"
        "print(Parallel(2, 'processes')(delayed(eval)(asked) for _ in range(2)))\n"
        "import fastjob._pool.levels as levels\n"
        "print(levels.capture_levels())\n"
    )
    assert done.stdout == "[False, False]\nNone\n", done.stderr


# -- context variables ----------------------------------------------------------------


def value_of(variable_name):
    return globals()[variable_name].get("missing")


def test_context_variables_of_modules_follow_as_of_the_call():
    def calls():
        before = each(value_of, "request_id")
        request_id.set({"user": 7})
        first = each(value_of, "request_id")
        request_id.get()["user"] = 8  # changed in place
        second = each(value_of, "request_id")
        return before, first, second, each(value_of, "unset")

    assert copy_context().run(calls) == (
        "missing",
        {"user": 7},
        {"user": 8},
        "missing",
    )
    assert each(value_of, "request_id") == "missing"


def change(value):
    before = request_id.get("missing")
    request_id.set(value)
    return before


def test_what_a_task_sets_ends_with_its_call():
    processes(batch_size=1)(delayed(change)("mine") for _ in range(4))
    assert each(value_of, "request_id") == "missing"


def initialize():
    request_id.set("initial")


def test_what_an_initializer_sets_stays():
    run = processes(initializer=initialize, batch_size=1)
    for _ in range(2):
        found = run(delayed(value_of)("request_id") for _ in range(4))
        assert found == ["initial"] * 4


def test_a_value_that_cannot_be_pickled_is_left_out():
    def call():
        request_id.set(_thread.allocate_lock())
        unset.set(3)
        return each(value_of, "request_id"), each(value_of, "unset")

    assert copy_context().run(call) == ("missing", 3)


class OnlyHere:
    """Cannot be made in a worker."""

    def __reduce__(self):
        return import_and_call, ("fastjob_has_no_such_module",)


def test_a_value_that_cannot_be_made_in_the_worker_is_left_out():
    def call():
        request_id.set(OnlyHere())
        return each(value_of, "request_id")

    assert copy_context().run(call) == "missing"


def test_a_variable_that_no_module_has_does_not_follow():
    hidden = ContextVar("hidden")

    def call():
        hidden.set(1)
        return variables.capture_variables()

    assert copy_context().run(call) == ()
    with pytest.raises(TypeError, match="'hidden' is no attribute of a module"):
        variables.reduce_variable(hidden)


def test_a_variable_is_looked_for_again_when_modules_were_imported(monkeypatch):
    late = ContextVar("late")
    assert variables.place_of(late) is None
    module = type(sys)("late_module")
    module.late = late
    monkeypatch.setitem(sys.modules, "late_module", module)
    assert variables.place_of(late) == ("late_module", "late", "late", {})


def test_a_place_without_its_variable_is_an_error():
    with pytest.raises(AttributeError, match="no context variable nothing"):
        variables.variable_at(__name__, "nothing", "nothing", {})
    with pytest.raises(ImportError):
        variables.variable_at("no_such_module", "nothing", "nothing", {})


MAIN_SCRIPT = """
from contextvars import ContextVar
from fastjob import Parallel, delayed

level = ContextVar("level", default="default")
bare = ContextVar("bare")

def found():
    return level.get(), bare.get("missing")

def nested():
    bare.set("outer")
    return Parallel(2, "threading")(delayed(found)() for _ in range(2))

if __name__ == "__main__":
    run = Parallel(2, "processes", batch_size=1)
    print(run(delayed(found)() for _ in range(2)))
    level.set("set")
    print(run(delayed(found)() for _ in range(2)))
    bare.set((1, 2))
    print(run(delayed(found)() for _ in range(2)))
    print(run(delayed(nested)() for _ in range(1)))
    print(run(delayed(lambda v: v.get())(level) for _ in range(1)))
"""


def test_a_variable_of_the_script_follows_its_functions(run_python):
    done = run_python(MAIN_SCRIPT)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "[('default', 'missing'), ('default', 'missing')]",
        "[('set', 'missing'), ('set', 'missing')]",
        "[('set', (1, 2)), ('set', (1, 2))]",
        "[[('set', 'outer'), ('set', 'outer')]]",
        "['set']",
    ]


def test_a_warm_call_sends_the_state_to_no_worker_again():
    """What is captured compares equal, also with variables that are set."""
    from fastjob._core.call import Call
    from fastjob._pool.state import capture

    def captures():
        request_id.set([1, 2])
        return capture(Call(2)), capture(Call(2))

    first, second = contextvars.Context().run(captures)
    assert first is second


# -- print ----------------------------------------------------------------------------

PRINTING = """
import sys, threading
from fastjob import Parallel, delayed

def say(name, size, n):
    for i in range(n):
        print(name * size, i, name * size, sep=",")

def threads(name, size, n):
    each = [threading.Thread(target=say, args=(name + k, size, n)) for k in "xy"]
    [t.start() for t in each]
    [t.join() for t in each]

if __name__ == "__main__":
    run = Parallel(4, "processes", batch_size=1)
    run(delayed({function})(name, {size}, {n}) for name in "abcd")
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("size, n", [(3, 300), (9000, 30)])
@pytest.mark.parametrize("function", ["say", "threads"])
def test_lines_of_several_workers_are_not_torn(
    run_python, tmp_path, function, size, n, unbuffered
):
    source = PRINTING.format(function=function, size=size, n=n)
    done = run_python(source, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    assert done.stderr == ""
    names = "abcd" if function == "say" else [a + b for a in "abcd" for b in "xy"]
    expected = sorted(
        f"{name * size},{i},{name * size}" for name in names for i in range(n)
    )
    assert sorted(done.stdout.splitlines()) == expected


def test_text_without_an_end_of_line_appears_when_its_task_has_ended(run_python):
    done = run_python(
        "from fastjob import Parallel, delayed\n"
        "def dot(): print('.', end='')\n"
        "def main():\n"
        "    run = Parallel(2, 'processes', batch_size=1)\n"
        "    run(delayed(dot)() for _ in range(6))\n"
        "    print('end', flush=True)\n"
        "if __name__ == '__main__': main()\n"
    )
    assert done.stdout == "......end\n"


@pytest.fixture
def stream(tmp_path):
    """A stream of whole lines into a file, and what is in the file."""
    path = tmp_path / "out"
    original = open(path, "w", encoding="latin-1", errors="replace")  # noqa: SIM115
    common = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    made = lines.Lines(original, common)
    yield made, lambda: path.read_text("latin-1")
    made.close()
    os.close(common)


def test_a_line_is_held_back_until_its_end(stream):
    out, written = stream
    print("one", "two", sep=" ", end="", file=out)
    assert written() == ""
    print(file=out)
    assert written() == "one two\n"
    assert out.write("three\nfo") == 8
    assert written() == "one two\nthree\n"
    out.flush()
    assert written() == "one two\nthree\nfo"


def test_very_long_text_is_not_held_back(stream):
    out, written = stream
    out.write("x" * (lines.MOST_HELD + 1))
    assert len(written()) == lines.MOST_HELD + 1


def test_text_of_a_thread_appears_at_the_end_of_the_batch(stream):
    import threading

    out, written = stream
    thread = threading.Thread(target=out.write, args=("held",))
    thread.start()
    thread.join()
    out.flush()
    assert written() == ""
    out.flush_all()
    assert written() == "held"


def test_encoding_and_errors_of_the_stream_stay(stream):
    out, written = stream
    out.write("\xe9 \u20ac\n")
    assert written() == "\xe9 ?\n"
    with pytest.raises(TypeError):
        out.write(b"bytes")


def test_the_pool_is_used_warm_in_these_tests():
    each(int)
    before = pool.n_started
    each(int)
    assert pool.n_started == before
