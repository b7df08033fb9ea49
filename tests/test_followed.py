"""State of the caller, and what tasks say, on the ``multiprocessing`` backend."""

import contextvars
import logging
import multiprocessing
import os
import sys
import warnings

import pytest

from fastjob import Parallel, delayed

pytestmark = pytest.mark.filterwarnings(
    # Python 3.12 and later: the default start method forks beside our threads.
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)

LOG = logging.getLogger("fastjob_test_followed")
request_id = contextvars.ContextVar("request_id", default="none")


@pytest.fixture(params=multiprocessing.get_all_start_methods())
def method(request):
    return request.param


def pooled(method, **options):
    return Parallel(2, "multiprocessing", context=method, batch_size=1, **options)


@pytest.fixture
def records():
    """What reaches a handler of this process, which a fork of it has as well."""
    found = []

    class Keep(logging.Handler):
        def emit(self, record):
            found.append(record.getMessage())

    handler = Keep()
    LOG.addHandler(handler)
    yield found
    LOG.removeHandler(handler)
    LOG.setLevel(logging.NOTSET)


def surroundings():
    action = next((f[0] for f in warnings.filters if f[2] is ImportWarning), None)
    return os.getcwd(), sys.path[-1], LOG.level, request_id.get(), action


def test_tasks_find_the_state_of_each_call(method, tmp_path, monkeypatch, records):
    (tmp_path / "below").mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, "first"])
    with pooled(method) as parallel, warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)
        found = parallel([delayed(surroundings)()] * 3)
        assert found == [(str(tmp_path), "first", 0, "none", "ignore")] * 3

        # The workers stay, and what changes here changes there.
        os.chdir("below")
        sys.path[-1] = "second"
        LOG.setLevel(logging.INFO)
        token = request_id.set("some")
        warnings.simplefilter("always", ImportWarning)
        found = parallel([delayed(surroundings)()] * 3)
        request_id.reset(token)
        below = str(tmp_path / "below")
        assert found == [(below, "second", logging.INFO, "some", "always")] * 3


def spoil():
    os.chdir("/")
    sys.path.append("spoilt")
    warnings.simplefilter("error", ImportWarning)


def test_what_a_task_changes_ends_with_its_batch(method, tmp_path):
    with pooled(method) as parallel:
        before = parallel([delayed(surroundings)()] * 2)
        parallel([delayed(spoil)()] * 4)
        assert parallel([delayed(surroundings)()] * 2) == before


def say(i):
    LOG.info("record %d", i)
    LOG.debug("nothing that is asked for")
    warnings.warn(f"warning {i}", stacklevel=1)
    return i


def said(caught):
    """What was warned of, but for what Python 3.12 says of forks beside threads."""
    return [str(w.message) for w in caught if w.category is not DeprecationWarning]


def test_what_tasks_say_reaches_the_caller(method, records):
    LOG.setLevel(logging.INFO)
    with pytest.warns(UserWarning) as caught:
        assert pooled(method)(delayed(say)(i) for i in range(4)) == [0, 1, 2, 3]
    assert sorted(said(caught)) == [f"warning {i}" for i in range(4)]
    assert sorted(records) == [f"record {i}" for i in range(4)]


def test_a_filter_that_makes_an_error_of_a_warning_does_so_in_the_task(method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="warning 1"):
            pooled(method)([delayed(say)(1)] * 2)


def test_what_tasks_say_can_be_left_to_them(method, records):
    LOG.setLevel(logging.ERROR)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        pooled(method, forward_logs=False)(delayed(say)(i) for i in range(2))
        warnings.simplefilter("always")
        assert pooled(method, forward_logs=False)([delayed(muted)()] * 2) == [1, 1]
    assert said(caught) == []
    assert records == []


def muted():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("for this process alone", stacklevel=1)
    return len(caught)


def log_to(path):
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.addHandler(handler)


def test_a_handler_of_an_initializer_takes_the_records_itself(
    method, records, tmp_path
):
    LOG.setLevel(logging.INFO)
    path = tmp_path / "log"
    with pytest.warns(UserWarning):
        pooled(method, initializer=log_to, initargs=(path,))([delayed(say)(5)] * 2)
    assert path.read_text().splitlines() == ["record 5"] * 2
    assert records == []


def test_the_state_of_a_generator_is_that_of_the_moment_it_was_made(method, tmp_path):
    (tmp_path / "below").mkdir()
    stream = pooled(method, return_as="generator")([delayed(surroundings)()] * 20)
    os.chdir("below")
    assert {cwd for cwd, *_ in stream} == {str(tmp_path)}


PRINTS = """
import sys
from fastjob import Parallel, delayed

def write(i):
    for k in range(2000):
        print(i, "a" * 50, k, sep="|")
    print("no end of line", end="")

if __name__ == "__main__":
    with Parallel(2, "multiprocessing", context=sys.argv[1], batch_size=1) as parallel:
        parallel(delayed(write)(i) for i in range(4))
        print("", flush=True)
"""


def test_what_tasks_print_appears_in_whole_lines(method, run_python):
    done = run_python(PRINTS, method)
    assert done.stderr == ""
    whole = {f"{i}|{'a' * 50}|{k}" for i in range(4) for k in range(2000)}
    found = [
        part for line in done.stdout.split("no end of line") for part in line.split()
    ]
    assert len(found) == len(whole)
    assert set(found) == whole
