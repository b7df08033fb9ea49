"""The backend on ``multiprocessing.pool``."""

import gc
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import weakref

import numpy as np
import psutil
import pytest
from gates import Bell, Gate, until

from fastjob import Parallel, TaskError, TerminatedWorkerError, delayed
from fastjob._core.call import Call
from fastjob.backends import pool_end
from fastjob.backends.callback import CallbackEngine
from fastjob.backends.multiprocessing import MultiprocessingBackend
from fastjob.errors import ResultPicklingError, TaskPicklingError

pytestmark = pytest.mark.filterwarnings(
    # Python 3.12 and later: the default start method forks beside our threads.
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)

METHODS = multiprocessing.get_all_start_methods()

state = []


def make(*values):
    state.extend(values)


def look():
    return list(state)


def pid_of(_):
    return os.getpid()


def die(how):
    if how == "exit":
        os._exit(7)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return how


def fail_at(bad, value):
    if value == bad:
        raise LookupError("no such value", value)
    return value


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given", ["context as backend", "context", "name"])
def test_any_start_method_can_be_chosen(method, given):
    context = multiprocessing.get_context(method)
    if given == "context as backend":
        parallel = Parallel(n_jobs=2, backend=context)
    else:
        option = method if given == "name" else context
        parallel = Parallel(n_jobs=2, backend="multiprocessing", context=option)
    assert isinstance(parallel._backend, MultiprocessingBackend)
    assert parallel(delayed(abs)(-i) for i in range(10)) == list(range(10))


def test_the_module_itself_is_a_context():
    parallel = Parallel(n_jobs=2, backend=multiprocessing)
    assert parallel([delayed(abs)(-1)]) == [1]


def test_an_unknown_start_method_is_refused():
    with pytest.raises(ValueError, match="cannot find context for 'sheep'"):
        Parallel(n_jobs=2, backend="multiprocessing", context="sheep")([])


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match=r"no option 'sheep'; .*maxtasksperchild"):
        Parallel(n_jobs=2, backend="multiprocessing", sheep=1)


def test_tasks_run_in_other_processes():
    pids = Parallel(n_jobs=2, backend="multiprocessing")(
        delayed(pid_of)(i) for i in range(10)
    )
    assert os.getpid() not in pids


def test_each_worker_is_initialised():
    seen = Parallel(
        n_jobs=2, backend="multiprocessing", initializer=make, initargs=(1, "two")
    )(delayed(look)() for _ in range(5))
    assert seen == [[1, "two"]] * 5


def refuse():
    raise OSError("no database")


@pytest.mark.parametrize("on_error", ["raise", "return"])
def test_an_error_of_the_initializer_is_that_of_the_tasks(on_error, capfd):
    parallel = Parallel(
        2, "multiprocessing", initializer=refuse, on_error=on_error, batch_size=1
    )
    if on_error == "raise":
        with pytest.raises(OSError, match="no database") as caught:
            parallel(delayed(abs)(i) for i in range(4))
        assert "in refuse" in str(caught.value.__cause__)
    else:
        found = parallel(delayed(abs)(i) for i in range(4))
        assert [str(error.exception) for error in found] == ["no database"] * 4
    assert capfd.readouterr().err == ""


def test_workers_are_replaced_after_some_batches():
    parallel = Parallel(
        n_jobs=2, backend="multiprocessing", maxtasksperchild=1, batch_size=1
    )
    assert len(set(parallel(delayed(pid_of)(i) for i in range(6)))) == 6


@pytest.mark.posix
def test_workers_that_were_replaced_hold_no_descriptors():
    me = psutil.Process()
    with Parallel(2, "multiprocessing", maxtasksperchild=1, batch_size=1) as parallel:
        before = me.num_fds()
        parallel(delayed(abs)(i) for i in range(20))
        until(lambda: me.num_fds() <= before)


def test_closures_and_lambdas_are_carried():
    factor = 3
    parallel = Parallel(n_jobs=2, backend="multiprocessing")
    assert parallel(delayed(lambda x: x * factor)(i) for i in range(3)) == [0, 3, 6]
    [made] = parallel([delayed(lambda: lambda: factor)()])
    assert made() == 3


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_a_buffer_that_is_filled_again_does_not_change_a_task(batch_size):
    buffer = [0]

    def tasks():
        for i in range(9):
            buffer[0] = i
            yield delayed(list)(buffer)

    parallel = Parallel(n_jobs=2, backend="multiprocessing", batch_size=batch_size)
    assert parallel(tasks()) == [[i] for i in range(9)]


def test_a_task_is_run_again_as_it_was_first(tmp_path):
    buffer = [1, tmp_path / "tried"]

    def tasks():
        yield delayed(fails_first)(buffer)
        buffer[0] = 2
        yield delayed(fails_first)(buffer)

    parallel = Parallel(n_jobs=2, backend="multiprocessing", retries=1, batch_size=1)
    assert parallel(tasks()) == [1, 2]


def fails_first(buffer):
    value, path = buffer
    try:
        path.with_suffix(f".{value}").touch(exist_ok=False)
    except FileExistsError:
        return value
    raise ConnectionError


# What cannot be sent


def test_an_argument_that_cannot_be_pickled_is_named():
    parallel = Parallel(n_jobs=2, backend="multiprocessing")
    with pytest.raises(TaskPicklingError, match="task 1") as caught:
        parallel(delayed(print)(x) for x in (1, threading.Lock()))
    assert caught.value.part == 0
    assert parallel([delayed(abs)(-1)]) == [1]


def test_a_result_that_cannot_be_pickled_is_named():
    parallel = Parallel(n_jobs=2, backend="multiprocessing")
    with pytest.raises(ResultPicklingError, match="task 0") as caught:
        parallel([delayed(threading.Lock)()])
    assert caught.value.type_name == "lock"


def test_what_cannot_be_sent_costs_only_its_own_task_when_errors_are_returned():
    parallel = Parallel(
        n_jobs=2, backend="multiprocessing", on_error="return", batch_size=4
    )
    results = parallel(
        [delayed(abs)(-1), delayed(abs)(threading.Lock()), delayed(threading.Lock)()]
    )
    assert results[0] == 1
    assert isinstance(results[1].exception, TaskPicklingError)
    assert isinstance(results[2].exception, ResultPicklingError)


def never_comes_back():
    raise ValueError("not an int")


class Unloadable:
    def __reduce__(self):
        return never_comes_back, ()


def test_an_argument_that_cannot_be_unpickled_fails_its_task():
    parallel = Parallel(n_jobs=2, backend="multiprocessing")
    with pytest.raises(ValueError, match="not an int"):
        parallel([delayed(print)(Unloadable())])
    with pytest.raises(ValueError, match="not an int"):
        parallel([delayed(Unloadable)()])
    assert parallel([delayed(abs)(-1)]) == [1]


# Workers that die


@pytest.mark.posix
@pytest.mark.parametrize(("how", "code"), [("exit", 7), ("kill", -9)])
def test_a_worker_that_dies_ends_the_call(how, code):
    parallel = Parallel(n_jobs=2, backend="multiprocessing", batch_size=1)
    with pytest.raises(TerminatedWorkerError) as caught:
        parallel(delayed(die)(x) for x in ("no", how, "no"))
    assert caught.value.exitcode == code
    assert parallel([delayed(abs)(-1)]) == [1]


def local(name):
    """What the loop of a worker of the pool has in a variable."""
    frame = sys._getframe()
    while frame.f_code.co_name != "worker":
        frame = frame.f_back
    return frame.f_locals[name]


def die_holding(what):
    results = local("put").__self__
    results._wlock.acquire()
    if what == "half a result":
        os.write(results._writer.fileno(), struct.pack("!i", 1000) + b"half")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.posix
@pytest.mark.parametrize("what", ["the lock of the results", "half a result"])
@pytest.mark.parametrize("n_others", [0, 10])
def test_a_worker_that_dies_with_something_in_hand_ends_the_call(what, n_others):
    """`Pool.terminate` would wait for ever."""
    parallel = Parallel(n_jobs=2, backend="multiprocessing", batch_size=1)
    tasks = [delayed(die_holding)(what), *[delayed(abs)(-1)] * n_others]
    with pytest.raises(TerminatedWorkerError):
        parallel(tasks)
    assert parallel([delayed(abs)(-1)]) == [1]


def kill_the_idle_one():
    """It waits for a task, and has the lock of the tasks meanwhile."""
    me = psutil.Process()
    for other in me.parent().children():
        if other != me and other.cmdline() == me.cmdline():  # a fork, too
            other.kill()


@pytest.mark.posix
def test_an_idle_worker_that_dies_does_not_hold_up_the_end():
    parallel = Parallel(
        n_jobs=2, backend="multiprocessing", batch_size=1, on_error="return"
    )
    assert len(parallel([delayed(kill_the_idle_one)()])) == 1
    assert parallel([delayed(abs)(-1)]) == [1]


def ignore_the_end(gate, bell):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    bell.ring()
    gate.wait()


class FewStarts:
    """A context whose processes can be started so many times."""

    def __init__(self, number):
        self.left = number
        self.context = multiprocessing.get_context(METHODS[0])

    def __getattr__(self, name):
        return getattr(self.context, name)

    def Process(self, *args, **kwargs):
        process = self.context.Process(*args, **kwargs)
        if self.left == 0:
            process.start = self.refuse
        else:
            self.left -= 1
        return process

    def refuse(self):
        raise BlockingIOError(11, "Resource temporarily unavailable")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_workers_that_cannot_be_replaced_are_an_error():
    few = {"context": FewStarts(2)}
    with Parallel(2, "multiprocessing", on_error="return", **few) as parallel:
        found = parallel(delayed(die)("exit") for _ in range(8))
        assert [type(result) for result in found] == [TaskError] * 8
        # No worker that was there is left: one death fails half of these at most.
        (later,) = parallel([delayed(abs)(-1)])
        assert "no worker left" in str(later.exception)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_those_that_are_left_go_on_where_a_worker_cannot_be_replaced():
    few = {"context": FewStarts(2), "batch_size": 1}
    tasks = [delayed(die)(how) for how in ["exit"] + ["live"] * 20]
    with Parallel(2, "multiprocessing", on_error="return", **few) as parallel:
        assert isinstance(parallel(tasks)[0], TaskError)
        assert parallel(tasks[1:]) == ["live"] * 20


@pytest.mark.posix
def test_workers_that_ignore_sigterm_end_too():
    with Gate() as gate, Bell() as bell:
        stream = Parallel(
            n_jobs=2, backend="multiprocessing", batch_size=1, return_as="generator"
        )(delayed(ignore_the_end)(gate, bell) for _ in range(2))
        bell.wait(2)
        stream.close()
    assert multiprocessing.active_children() == []


def write_slowly(gate, bell):
    with local("put").__self__._wlock:
        bell.ring()
        gate.wait()
    bell.ring()
    signal.pause()


@pytest.mark.posix
def test_a_worker_that_writes_slowly_may_finish_when_it_was_given_up(monkeypatch):
    parallel = Parallel(2, "multiprocessing", return_as="generator")
    # A worker that was forked later would hold the gate closed.
    with parallel, Gate() as gate, Bell() as bell:

        def finish_and_end(workers):
            gate.open()
            bell.wait()
            end_workers(workers)

        stream = parallel([delayed(write_slowly)(gate, bell)])
        bell.wait()
        end_workers = pool_end._end_workers
        with monkeypatch.context() as patch:
            patch.setattr(pool_end, "_end_workers", finish_and_end)
            patch.setattr(pool_end, "PATIENCE", 0.01)
            stream.close()
        assert list(parallel([delayed(abs)(-1)])) == [1]


def test_a_death_can_be_returned():
    results = Parallel(
        n_jobs=2, backend="multiprocessing", batch_size=1, on_error="return"
    )(delayed(die)(x) for x in ("exit",))
    assert isinstance(results[0], TaskError)
    assert isinstance(results[0].exception, TerminatedWorkerError)


def test_sys_exit_in_a_task_is_an_error_of_that_task():
    with pytest.raises(SystemExit):
        Parallel(n_jobs=2, backend="multiprocessing")([delayed(sys.exit)(3)])


@pytest.mark.posix
def test_a_task_that_runs_for_too_long_ends_the_call():
    parallel = Parallel(n_jobs=2, backend="multiprocessing", timeout=0.2)
    with pytest.raises(TimeoutError, match="task 0"):
        parallel([delayed(signal.pause)()])
    assert parallel([delayed(abs)(-1)]) == [1]


# Ctrl-C


@pytest.mark.posix
@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_at_a_terminal_reaches_the_caller_alone(run_python, method):
    """The whole process group gets it; its workers, busy or idle, say nothing."""
    done = run_python(
        "import os, signal, sys\n"
        "from fastjob import Parallel, delayed\n"
        f"sys.path.append({os.path.dirname(__file__)!r})\n"
        "from gates import Bell\n"
        "def handle(*_):\n"
        "    print('handled', flush=True)\n"
        "    raise KeyboardInterrupt\n"
        "def hang(bell):\n"
        "    bell.ring()\n"
        "    while True:\n"
        "        signal.pause()\n"
        "def tasks(bell):\n"
        "    yield delayed(hang)(bell)\n"
        "    yield delayed(hang)(bell)\n"
        "    bell.wait(5)\n"  # three workers have begun, two tasks
        "    os.killpg(0, signal.SIGINT)\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, handle)\n"
        "    heard, told = os.pipe()\n"
        "    os.set_blocking(told, False)\n"
        "    signal.set_wakeup_fd(told)\n"
        "    bell = Bell()\n"
        f"    options = dict(context={method!r}, initializer=bell.ring, batch_size=1)\n"
        "    run = Parallel(3, 'multiprocessing', **options)\n"
        "    try:\n"
        "        run(tasks(bell))\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted')\n"
        "    print(run(delayed(abs)(-i) for i in range(3)))\n"
        "    print(len(os.read(heard, 100)))\n",
        start_new_session=True,
    )
    assert (done.stdout, done.stderr) == ("handled\ninterrupted\n[0, 1, 2]\n1\n", "")


@pytest.mark.posix
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_ctrl_c_while_a_worker_starts_leaves_it_alone(run_python, method):
    """At its first instant, and while it imports the main module."""
    done = run_python(
        "import os, signal\n"
        "from functools import partial\n"
        "from fastjob import Parallel, delayed\n"
        "interrupt = partial(signal.raise_signal, signal.SIGINT)\n"
        "if __name__ == '__main__':\n"
        "    os.register_at_fork(after_in_child=interrupt)\n"
        f"    options = dict(context={method!r}, maxtasksperchild=1, batch_size=1)\n"
        "    run = Parallel(2, 'multiprocessing', **options)\n"
        "    print(run(delayed(abs)(-i) for i in range(5)))\n"
        "    print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))\n"
        "else:\n"
        "    interrupt()\n"
    )
    assert (done.stdout, done.stderr) == ("[0, 1, 2, 3, 4]\nset()\n", "")


def interrupts_in_a_program():
    program = (
        "import signal\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler,\n"
        "      signal.pthread_sigmask(signal.SIG_BLOCK, ()))\n"
    )
    return subprocess.check_output([sys.executable, "-c", program], text=True)


@pytest.mark.posix
@pytest.mark.parametrize("method", METHODS)
def test_a_program_that_a_task_starts_can_be_interrupted(method):
    parallel = Parallel(2, "multiprocessing", context=method)
    assert parallel([delayed(interrupts_in_a_program)()]) == ["True set()\n"]


# Where there can be no pool


def in_daemon(queue):
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = Parallel(n_jobs=2, backend="multiprocessing")(
            delayed(pid_of)(i) for i in range(2)
        )
    queue.put((set(result) == {os.getpid()}, [str(w.message) for w in caught]))


def test_inside_a_daemon_it_is_a_plain_loop_with_a_warning():
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=in_daemon, args=(queue,), daemon=True)
    process.start()
    try:
        alone, [message] = queue.get()
        assert alone
        assert message == (
            "Multiprocessing-backed parallel loops cannot be nested, setting n_jobs=1"
        )
    finally:
        process.join()
        process.close()
        queue.close()


def test_below_threads_it_is_a_plain_loop_with_a_warning():
    def inner():
        with pytest.warns(UserWarning, match="cannot be nested below threads"):
            return Parallel(n_jobs=2, backend="multiprocessing")(
                delayed(os.getpid)() for _ in range(2)
            )

    results = Parallel(n_jobs=2, backend="threading")([delayed(inner)()])
    assert results == [[os.getpid()] * 2]


def test_one_worker_needs_no_pool_and_warns_of_nothing():
    assert MultiprocessingBackend().effective_n_jobs(1) == 1
    with pytest.raises(ValueError, match="n_jobs == 0"):
        MultiprocessingBackend().effective_n_jobs(0)


def total(array):
    return float(array.sum())


@pytest.mark.posix
def test_arguments_are_dropped_without_a_collection():
    """Else a `with` block keeps all that was ever passed to its calls."""
    refs = []

    def tasks():
        for i in range(6):
            array = np.full(20_000, float(i))
            refs.append(weakref.ref(array))
            yield delayed(total)(array)

    gc.disable()
    try:
        with Parallel(2, "multiprocessing") as parallel:
            assert parallel(tasks()) == [20_000.0 * i for i in range(6)]
            until(lambda: not any(ref() is not None for ref in refs))
    finally:
        gc.enable()


def totals_of_parts(array):
    return Parallel(2, "multiprocessing")(delayed(total)(array[i:]) for i in (0, 1, 7))


@pytest.mark.posix
def test_parts_of_an_argument_go_to_workers_of_the_worker():
    array = np.arange(100_000.0)
    found = Parallel(2, "processes")([delayed(totals_of_parts)(array)] * 2)
    assert found == [[array[i:].sum() for i in (0, 1, 7)]] * 2


def ring_and_wait(bell, gate):
    bell.ring()
    gate.wait()


@pytest.mark.parametrize("return_as", ["list", "generator"])
def test_a_call_whose_workers_another_thread_ends_is_an_error(return_as):
    errors = []
    made = threading.Event()

    def call():
        with pytest.raises(RuntimeError, match="with block of this Parallel") as caught:
            results = parallel([delayed(ring_and_wait)(bell, gate)])
            made.set()
            list(results)
        errors.append(caught.value)

    with Parallel(2, "multiprocessing", return_as) as parallel:
        thread = threading.Thread(target=call)
        with Bell() as bell, Gate() as gate:
            thread.start()
            bell.wait()
            if return_as == "generator":
                made.wait()
            parallel.__exit__()
            thread.join(30)
    assert errors


@pytest.mark.parametrize("return_as", ["list", "generator"])
def test_workers_that_end_while_a_call_takes_its_first_tasks_end_it(return_as):
    def tasks():
        yield delayed(abs)(-1)
        leaver = threading.Thread(target=parallel.__exit__)
        leaver.start()
        leaver.join()
        yield delayed(abs)(-2)

    parallel = Parallel(2, "multiprocessing", return_as, batch_size=1)
    with parallel, pytest.raises(RuntimeError, match="with block of this Parallel"):
        parallel(tasks())
    assert Parallel(2, "multiprocessing")([delayed(abs)(-3)]) == [3]


def test_a_reader_hears_that_the_workers_ended_before_it_had_the_generator():
    with Parallel(2, "multiprocessing") as parallel:
        call = Call(2, ahead=1)
        engine = CallbackEngine(parallel._backend, call)
        stream = engine.stream(iter([delayed(abs)(-1)] * 3))
        engine.cut()
        engine.cut()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="with block of this Parallel"):
                next(stream)


def test_a_stream_that_was_read_to_its_end_cannot_be_cut_any_more():
    with Parallel(2, "multiprocessing") as parallel:
        engine = CallbackEngine(parallel._backend, Call(2, ahead=1))
        stream = engine.stream(iter([delayed(abs)(-1)] * 3))
        assert list(stream) == [1] * 3
        engine.cut()
        assert list(stream) == []
