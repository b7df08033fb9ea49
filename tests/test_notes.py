"""What tasks in worker processes say: warnings and log records."""

from __future__ import annotations

import logging
import os
import threading
import warnings

import pytest
from gates import Bell, Gate

from fastjob import Parallel, delayed, parallel_config
from fastjob._pool import notes

LOG = logging.getLogger("fastjob_test")


def processes(n_jobs=2, **options):
    return Parallel(n_jobs, "processes", batch_size=1, **options)


class OwnWarning(UserWarning):
    """A warning with something in it."""

    def __init__(self, text, extra=None):
        super().__init__(text)
        self.extra = extra


def warn(text, category=UserWarning):
    warnings.warn(text, category, stacklevel=1)
    return text


def warn_instance(warning):
    warnings.warn(warning, stacklevel=1)


# -- warnings -------------------------------------------------------------------------


def test_warnings_of_tasks_are_seen_by_the_caller():
    with pytest.warns(UserWarning) as caught:
        assert processes()(delayed(warn)(str(i)) for i in range(4)) == list("0123")
    assert sorted(str(one.message) for one in caught) == list("0123")
    one = caught[0]
    assert one.category is UserWarning
    assert os.path.samefile(one.filename, __file__)
    assert one.lineno == warn.__code__.co_firstlineno + 1


def test_a_warning_arrives_as_the_object_it_was():
    with pytest.warns(OwnWarning) as caught:
        processes()([delayed(warn_instance)(OwnWarning("own", [1, 2]))])
    assert caught[0].message.extra == [1, 2]


def test_a_warning_that_cannot_be_pickled_arrives_as_text():
    with pytest.warns(UserWarning, match="locked") as caught:
        processes()([delayed(warn_with_lock)()])
    assert caught[0].category is UserWarning


def warn_with_lock():
    warn_instance(OwnWarning("locked", threading.Lock()))


@pytest.mark.parametrize("action, n", [("ignore", 0), ("once", 1), ("default", 1)])
def test_the_filters_of_the_caller_hold_over_all_workers(action, n):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        processes()(delayed(warn)("the same") for _ in range(6))
        processes()(delayed(warn)("the same") for _ in range(6))
    assert len(caught) == n


def test_a_warning_shown_once_is_shown_again_under_a_new_record():
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            processes()(delayed(warn)("the same") for _ in range(3))
        assert len(caught) == 1


def test_a_filter_for_a_module_finds_the_module_of_the_task():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module=__name__.replace(".", r"\."))
        processes()(delayed(warn)("unheard") for _ in range(2))
    assert caught == []


def test_what_a_task_catches_itself_is_not_forwarded():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = processes()(delayed(catch)() for _ in range(2))
    assert found == [["caught"]] * 2


def catch():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("caught", UserWarning, stacklevel=1)
    return [str(one.message) for one in caught]


def test_a_filter_of_the_caller_can_make_an_error_of_it():
    note = notes.packed_warning("careful", UserWarning, "nowhere.py", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="careful"):
            notes.hear(note)


def test_an_error_in_showing_a_warning_ends_the_call(monkeypatch):
    def show(*args, **kwargs):
        raise OSError("no screen")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show)
        with pytest.raises(OSError, match="no screen"):
            processes()(delayed(warn)("text") for _ in range(20))
    assert processes()(delayed(abs)(-1) for _ in range(3)) == [1, 1, 1]


def test_a_warning_that_cannot_be_made_here_is_one_of_a_known_kind():
    with pytest.warns(UserWarning, match="text") as caught:
        notes.hear_warning(b"no pickle", UserWarning, "text", "gone.py", 7, None)
    assert (caught[0].filename, caught[0].lineno) == ("gone.py", 7)


def test_a_generator_shows_warnings_too():
    with pytest.warns(UserWarning, match="late"):
        list(processes(return_as="generator")(delayed(warn)("late") for _ in range(2)))


def test_a_warning_of_a_nested_call_comes_all_the_way():
    with pytest.warns(UserWarning, match="deep"):
        processes()(delayed(nested)() for _ in range(2))


def nested():
    with parallel_config("processes"):
        return processes()(delayed(warn)("deep") for _ in range(2))


# -- log records ----------------------------------------------------------------------


def log(level, text, *args, **kwargs):
    LOG.log(level, text, *args, **kwargs)


def test_records_of_tasks_reach_the_handlers_of_the_caller(caplog):
    caplog.set_level(logging.INFO)
    processes()(delayed(log)(logging.INFO, "task %d", i) for i in range(4))
    assert sorted(caplog.messages) == [f"task {i}" for i in range(4)]
    record = caplog.records[0]
    assert (record.name, record.levelname) == ("fastjob_test", "INFO")
    assert record.process != os.getpid()
    assert record.funcName == "log"


def test_the_level_of_the_caller_decides(caplog):
    caplog.set_level(logging.ERROR, logger="fastjob_test")
    caplog.set_level(logging.DEBUG)
    processes()(
        [delayed(log)(logging.WARNING, "no"), delayed(log)(logging.ERROR, "yes")]
    )
    assert caplog.messages == ["yes"]


def log_error():
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        LOG.exception("failed", extra={"lock": threading.Lock()})
        LOG.error("again", extra={"answer": 42})


def test_a_record_brings_its_traceback_and_what_was_added(caplog):
    processes()([delayed(log_error)()])
    first, second = caplog.records
    assert "ZeroDivisionError" in first.exc_text
    assert "ZeroDivisionError" in caplog.text
    assert not hasattr(first, "lock")
    assert second.answer == 42


def test_a_record_whose_arguments_do_not_fit_arrives_with_the_reason(caplog):
    processes()([delayed(log)(logging.ERROR, "%d and %d", 1)])
    assert "'%d and %d' % (1,)" in caplog.messages[0]
    assert "TypeError" in caplog.messages[0]


def log_with_own_handler(path):
    handler = logging.FileHandler(path)
    try:
        LOG.addHandler(handler)
        LOG.error("to the file")
    finally:
        LOG.removeHandler(handler)
        handler.close()
    LOG.addHandler(logging.NullHandler())
    LOG.error("to the caller")


def test_what_a_handler_of_the_worker_takes_is_not_shown_twice(tmp_path, caplog):
    path = tmp_path / "log"
    processes()([delayed(log_with_own_handler)(path)])
    assert path.read_text() == "to the file\n"
    assert caplog.messages == ["to the caller"]


def log_and_wait(bell, gate):
    LOG.error("before")
    bell.ring()
    gate.wait()


def test_a_record_arrives_while_its_task_still_runs(caplog):
    seen = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record):
            seen.set()

    handler = Handler()
    LOG.addHandler(handler)
    try:
        with Bell() as bell, Gate() as gate:
            thread = threading.Thread(target=open_when, args=(seen, gate))
            thread.start()
            processes()([delayed(log_and_wait)(bell, gate)])
            thread.join()
    finally:
        LOG.removeHandler(handler)
    assert caplog.messages == ["before"]


def open_when(seen, gate):
    assert seen.wait(30)
    gate.open()


def log_many(n):
    for i in range(n):
        LOG.error("%d", i)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_very_many_records_neither_block_nor_gather():
    n, seen = 30_000, []

    class Handler(logging.Handler):
        def emit(self, record):
            seen.append(int(record.msg))

    handler = Handler()
    LOG.addHandler(handler)
    LOG.propagate = False
    try:
        (small,) = processes()([delayed(log_many)(10)])
        del seen[:]
        (large,) = processes()([delayed(log_many)(n)])
    finally:
        LOG.removeHandler(handler)
        LOG.propagate = True
    assert seen == list(range(n))
    assert large - small < 8_000  # KiB; the records are 30 times as much


def log_from_threads(n):
    threads = [
        threading.Thread(target=log_numbers, args=(name, n)) for name in ("a", "b", "c")
    ]
    for thread in threads:
        thread.start()
    log_numbers("main", n)
    for thread in threads:
        thread.join()
    return b"x" * 100_000


def log_numbers(name, n):
    for i in range(n):
        LOG.error("%s %d", name, i)


def test_threads_of_a_task_may_log_at_the_same_time(caplog):
    found = processes()(delayed(log_from_threads)(200) for _ in range(3))
    assert {len(data) for data in found} == {100_000}
    expected = [f"{name} {i}" for name in ("a", "b", "c", "main") for i in range(200)]
    assert sorted(caplog.messages) == sorted(expected * 3)


class LogsWhenPickled:
    def __reduce__(self):
        LOG.error("pickled")
        return int, ()


def make(cls):
    return cls()


def test_a_result_may_log_while_it_is_pickled(caplog):
    assert processes()([delayed(make)(LogsWhenPickled)]) == [0]
    assert caplog.messages == ["pickled"]


def keep_in_background(bell, gate):
    def later():
        gate.wait()
        LOG.error("from the background")
        bell.ring()

    threading.Thread(target=later, daemon=True).start()
    return os.getpid()


def test_what_is_said_between_two_calls_comes_with_the_next_one(caplog):
    with Bell() as bell, Gate() as gate:
        (pid,) = processes(1 + 1)([delayed(keep_in_background)(bell, gate)])
        gate.open()
        bell.wait()
        assert caplog.messages == []
        found = set()
        while pid not in found:
            found = set(processes()(delayed(os.getpid)() for _ in range(8)))
    assert caplog.messages == ["from the background"]


def fork_and_warn(path):
    pid = os.fork()
    if pid == 0:
        with open(path, "w") as file:
            os.dup2(file.fileno(), 2)
        warnings.simplefilter("always")
        warnings.warn("of the child", UserWarning, stacklevel=1)
        os._exit(0)
    os.waitpid(pid, 0)


def test_a_child_of_a_task_speaks_for_itself(tmp_path):
    path = tmp_path / "stderr"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        processes()([delayed(fork_and_warn)(path)])
    assert [str(one.message) for one in caught] == []
    assert "UserWarning: of the child" in path.read_text()


# -- opting out -----------------------------------------------------------------------

OPT_OUT = """
import logging, sys, warnings
from fastjob import Parallel, delayed, parallel_config

logging.basicConfig(format="handled by the caller: %(message)s", stream=sys.stdout)

def say(text):
    warnings.warn(text + " warning", UserWarning, stacklevel=1)
    logging.error(text + " record")

if __name__ == "__main__":
    run = Parallel(2, "processes")
    run([delayed(say)("first")])
    Parallel(2, "processes", forward_logs=False)([delayed(say)("second")])
    with parallel_config(forward_logs=False):
        Parallel(2, "processes")([delayed(say)("third")])
    sys.stderr.flush()
    warnings.showwarning = lambda message, *rest: print("shown by the caller:", message)
    run([delayed(say)("fourth")])
"""


def test_forwarding_can_be_turned_off(run_python):
    done = run_python(OPT_OUT)
    assert done.stdout.splitlines() == [
        "handled by the caller: first record",
        "shown by the caller: fourth warning",
        "handled by the caller: fourth record",
    ]
    lines = done.stderr.splitlines()
    assert [line for line in lines if "warning" in line and "warn(" not in line] == [
        line for line in lines if "UserWarning: " in line
    ]
    for name in ("first", "second", "third"):
        assert sum(f"UserWarning: {name} warning" in line for line in lines) == 1
    assert [line for line in lines if line.endswith("record")] == [
        "ERROR:root:second record",
        "ERROR:root:third record",
    ]


# -- the two ends, apart --------------------------------------------------------------


@pytest.fixture
def sender():
    """Notes whose socket is a list; they replace nothing."""
    made, sent = notes.Notes(), []
    made.send = sent.append
    yield made, sent
    made.keep()


def test_notes_wait_until_there_is_a_batch(sender):
    made, sent = sender
    made._say(b"1")
    assert sent == []
    made.open = True
    made._say(b"2")
    assert sent == [b"1", b"2"]
    made.lock.acquire()
    made.send_waiting(last=True)
    made._say(b"3")  # while the last reply is written
    made.lock.release()
    made._say(b"4")
    assert sent == [b"1", b"2"]
    made.open = True
    made.lock.acquire()
    made.send_waiting()
    made.lock.release()
    assert sent == [b"1", b"2", b"3", b"4"]


def test_notes_that_nobody_fetches_are_bounded(sender):
    made, sent = sender
    for i in range(3 * notes.MOST_WAITING):
        made._say(b"%d" % i)
    made.open = True
    made.lock.acquire()
    made.send_waiting()
    made.lock.release()
    assert len(sent) == notes.MOST_WAITING
    assert sent[-1] == b"%d" % (3 * notes.MOST_WAITING - 1)


def test_an_exception_while_a_note_is_sent_leaves_the_lock_free(sender):
    """A signal handler of the task may raise while the socket is full."""
    made, _ = sender

    def send(note):
        raise TimeoutError

    made.send = send
    made.open = True
    with pytest.raises(TimeoutError):
        made._say(b"1")
    assert not made.lock._is_owned()


def test_a_caller_that_is_gone_does_not_fail_the_task(sender):
    made, _ = sender

    def send(note):
        raise BrokenPipeError

    made.send = send
    made.open = True
    made._say(b"1")
    assert not made.open


def test_a_huge_message_is_cut():
    assert len(notes.shortened("x" * (1 << 22))) == notes.MOST_TEXT + 3
    assert notes.pickled(bytes(1 << 22)) == b""


def test_a_warning_of_no_running_code_has_no_module():
    assert notes.module_of("nowhere.py", 1) is None
    assert notes.module_of(__file__, 0) is None
