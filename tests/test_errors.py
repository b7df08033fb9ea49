"""Errors: their messages, their bases, and that they survive pickling."""

import multiprocessing
import pickle
import subprocess
import sys

import pytest

from fastjob import errors

EXAMPLES = [
    errors.FastjobError("something"),
    errors.TerminatedWorkerError(
        3, "f", "1, k=2", pid=77, exitcode=-11, peak_memory=2_500_000
    ),
    errors.TaskTimeoutError(3, "f", "1", 2.5, pid=77),
    errors.TaskPicklingError(3, "f", "k", "lock", "cannot pickle"),
    errors.ResultPicklingError(3, "f", "1", "lock", "cannot pickle"),
    errors.ResultUnpicklingError(3, "f", "1", "no such module"),
    errors.UnpicklableExceptionError("m.E", "text", "traceback", "reason"),
    errors.NurseryError("It died."),
    errors.ClusterError("It is gone."),
]


def test_every_error_has_an_example():
    public = {getattr(errors, name) for name in errors.__all__}
    raised = {c for c in public if issubclass(c, errors.FastjobError)}
    assert {type(error) for error in EXAMPLES} == raised


OF_TASK = [error for error in EXAMPLES if isinstance(error, errors.OfTask)]


@pytest.mark.parametrize("error", OF_TASK, ids=lambda e: type(e).__name__)
def test_an_error_about_a_task_names_it(error):
    assert (error.index, error.function) == (3, "f")
    assert "task 3" in str(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_an_error_survives_pickling_with_its_message_and_its_fields(error):
    error.extra = ["kept"]
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.args == error.args
    assert back.__dict__ == error.__dict__
    assert isinstance(back, errors.FastjobError)


def test_importing_the_errors_imports_no_multiprocessing():
    code = (
        "import sys, fastjob.errors as e; "
        "assert 'multiprocessing' not in sys.modules; "
        "e.TaskTimeoutError; assert 'multiprocessing' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_task_timeout_is_both_kinds_of_timeout_error():
    error = errors.TaskTimeoutError(3, "f", "1", 2.5)
    assert isinstance(error, TimeoutError)
    assert isinstance(error, multiprocessing.TimeoutError)
    assert "task 3: f(1)" in str(error)
    assert "timeout=2.5 seconds" in str(error)


def test_the_timeout_error_is_one_class():
    assert errors.TaskTimeoutError is errors.TaskTimeoutError
    assert errors.TaskTimeoutError.__qualname__ == "TaskTimeoutError"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        errors.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("exitcode", "words"),
    [
        (-9, ["was killed by SIGKILL", "Somebody killed it"]),
        (-11, ["was killed by SIGSEGV", "faulthandler"]),
        (-40, ["was killed by signal 40"]),
        (3, ["exited with code 3", "ended the process"]),
        (None, ["Worker process 77 died"]),
    ],
)
@pytest.mark.posix
def test_a_death_tells_task_ending_and_remedy(exitcode, words):
    error = errors.TerminatedWorkerError(
        5, "m.f", "1, k=2", pid=77, exitcode=exitcode, peak_memory=1_200_000_000
    )
    for part in [*words, "task 5: m.f(1, k=2)", "1.2 GB", "on_error='return'"]:
        assert part in str(error)
    assert isinstance(error, RuntimeError)


def test_a_death_for_want_of_memory_says_so():
    error = errors.TerminatedWorkerError(5, "f", "", exitcode=-9, probably_oom=True)
    assert "probably out of memory" in str(error)
    assert "Somebody" not in str(error)


def test_a_death_outside_any_task_names_none():
    assert "task" not in str(errors.TerminatedWorkerError(exitcode=1)).split(".")[0]


@pytest.mark.parametrize(
    ("part", "words"),
    [(None, "the function itself"), (2, "argument 2 (counted from 0)"), ("k", "'k'")],
)
def test_a_pickling_error_names_the_part(part, words):
    error = errors.TaskPicklingError(7, "f", part, "_thread.lock", "cannot pickle it")
    assert isinstance(error, pickle.PicklingError)
    for text in [words, "task 7 (f)", "_thread.lock", "cannot pickle it", "threading"]:
        assert text in str(error)


def test_a_result_that_cannot_be_pickled_is_named():
    error = errors.ResultPicklingError(7, "f", "1", "_thread.lock", "cannot pickle it")
    assert isinstance(error, pickle.PicklingError)
    assert "result of task 7: f(1), of type _thread.lock" in str(error)


def test_a_task_error_shows_and_keeps_everything():
    error = errors.TaskError(3, ValueError("x"), "text", attempts=2, elapsed=0.5)
    assert repr(error) == (
        "TaskError(index=3, exception=ValueError('x'), attempts=2, elapsed=0.5)"
    )
    back = pickle.loads(pickle.dumps(error))
    assert repr(back) == repr(error)
    assert back.traceback == "text"


class Picky(Exception):
    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")
        self.code = code


@pytest.mark.parametrize(
    "error",
    [
        Picky(3, "bad"),
        UnicodeDecodeError("utf8", b"a", 0, 1, "bad"),
        KeyError("k"),
        StopIteration(3),
        SyntaxError("bad", ("file", 1, 2, "text", 1, 3)),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_exception_is_rebuilt_from_its_parts(error):
    back = errors.rebuild(type(error), error.args, error.args, error.__dict__)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.args == error.args
    assert back.__dict__ == error.__dict__


def test_bytes_are_written_for_a_person():
    assert [errors.format_bytes(n) for n in (5, 2_500_000, 3e12)] == [
        "5 bytes",
        "2.5 MB",
        "3.0 TB",
    ]
