"""`Parallel` itself, on every backend."""

import contextlib
import inspect
import io
import itertools
import json
import multiprocessing
import operator
import pickle
import sys
import threading
import weakref

import pytest
from gates import Gate

import fastjob.parallel
import fastjob.running
from fastjob import Parallel, TaskError, delayed, effective_n_jobs, parallel_config
from fastjob.backends.sequential import SequentialBackend
from fastjob.backends.threading import ThreadingBackend
from fastjob.options import bytes_of

pytestmark = pytest.mark.filterwarnings(
    # Python 3.12 and later, where the multiprocessing backend forks beside threads.
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


def fail_at(bad, value):
    if value == bad:
        raise LookupError("no such value", value)
    return value


# Results


def test_results_are_in_the_order_of_the_tasks(backend):
    results = Parallel(n_jobs=2, backend=backend)(delayed(abs)(-i) for i in range(50))
    assert results == list(range(50))


def test_keyword_arguments_arrive(backend):
    results = Parallel(n_jobs=2, backend=backend)(
        delayed(int)("11", base=base) for base in (2, 3)
    )
    assert results == [3, 4]


def test_hand_made_tuples_are_tasks(backend):
    results = Parallel(n_jobs=2, backend=backend)(
        [(abs, (-1,), {}), (len, ("ab",), {})]
    )
    assert results == [1, 2]


@pytest.mark.parametrize("tasks", [[], (), iter(()), {}])
def test_no_tasks_give_an_empty_list(backend, tasks):
    assert Parallel(n_jobs=2, backend=backend)(tasks) == []


@pytest.mark.parametrize("tasks", [5, None])
def test_what_cannot_be_iterated_is_a_type_error(backend, tasks):
    parallel = Parallel(n_jobs=2, backend=backend)
    with pytest.raises(TypeError, match="not iterable"):
        parallel(tasks)
    assert parallel([delayed(abs)(-1)]) == [1]


def test_a_generator_keeps_the_order(backend):
    results = Parallel(n_jobs=2, backend=backend, return_as="generator")(
        delayed(abs)(-i) for i in range(50)
    )
    assert iter(results) is results
    assert list(results) == list(range(50))
    assert list(results) == []


def test_an_unordered_generator_gives_every_result_once(backend):
    results = Parallel(n_jobs=2, backend=backend, return_as="generator_unordered")(
        delayed(abs)(-i) for i in range(50)
    )
    assert sorted(results) == list(range(50))


def test_map_and_starmap_need_no_delayed(backend):
    parallel = Parallel(n_jobs=2, backend=backend)
    assert parallel.map(pow, [2, 3, 4], (5, 2)) == [32, 9]
    assert parallel.n_tasks == 2
    assert parallel.starmap(pow, [(2, 5), [3, 2]]) == [32, 9]
    assert parallel.n_tasks == 2
    assert parallel.map(abs, iter([-1])) == [1]
    assert parallel.n_tasks is None


def test_map_streams_too(backend):
    parallel = Parallel(n_jobs=2, backend=backend, return_as="generator")
    assert list(parallel.map(operator.neg, range(4))) == [0, -1, -2, -3]


@pytest.mark.parametrize("way", ["map", "starmap"])
def test_map_runs_no_python_code_for_each_task(way):
    """As `multiprocessing.Pool.map`; a generator and `delayed` would be 5000 calls."""
    parallel = Parallel(2, "processes")
    values = range(5000)
    given = values if way == "map" else [(i,) for i in values]
    parallel.map(abs, range(10))  # imports, and starts workers
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        found = getattr(parallel, way)(abs, given)
    finally:
        sys.setprofile(None)
    assert found == list(values)
    assert calls < 1000


def test_map_without_iterables_is_refused():
    with pytest.raises(TypeError, match="at least one iterable"):
        Parallel().map(abs)


# Errors


def test_an_error_of_a_task_ends_the_call_and_the_next_call_works(backend):
    parallel = Parallel(n_jobs=2, backend=backend)
    with pytest.raises(LookupError) as caught:
        parallel(delayed(fail_at)(3, i) for i in range(6))
    assert caught.value.args == ("no such value", 3)
    assert "fail_at" in str(caught.value.__cause__)
    assert parallel(delayed(fail_at)(9, i) for i in range(3)) == [0, 1, 2]


def test_an_error_of_the_input_ends_the_call_and_the_next_call_works(backend):
    def tasks():
        yield delayed(abs)(-1)
        raise KeyError("input")

    parallel = Parallel(n_jobs=2, backend=backend)
    with pytest.raises(KeyError, match="input"):
        parallel(tasks())
    assert parallel([delayed(abs)(-1)]) == [1]


def test_errors_can_be_returned(backend):
    results = Parallel(n_jobs=2, backend=backend, on_error="return")(
        delayed(fail_at)(1, i) for i in range(3)
    )
    assert results[0::2] == [0, 2]
    assert isinstance(results[1], TaskError)
    assert results[1].index == 1
    assert results[1].exception.args == ("no such value", 1)
    assert "in fail_at" in results[1].traceback
    assert "LookupError" in results[1].traceback
    assert results[1].attempts == 1
    assert results[1].elapsed >= 0


def fail_in_two_steps():
    try:
        raise KeyError("first")
    except KeyError:
        raise LookupError("second") from None


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_kept_error_keeps_no_frames_and_takes_none_from_the_callers(backend, n_jobs):
    runner = Parallel(n_jobs, backend, "generator", on_error="return")
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as error:
        kept = next(runner([delayed(fail_in_two_steps)()] * 5))
        assert error.__traceback__ is not None
    assert kept.exception.__traceback__ is None
    assert kept.exception.__context__.__traceback__ is None
    assert "fail_in_two_steps" in kept.traceback
    # The call is over, as it is without a failure.
    assert len(list(runner([delayed(abs)(-1)]))) == 1


def stop(error):
    raise error


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_what_is_no_exception_is_returned_from_other_processes_only(
    backend, n_jobs, error
):
    run = Parallel(n_jobs, backend, on_error="return")
    tasks = [delayed(abs)(-1), delayed(stop)(error)]
    if n_jobs == 2 and backend in ("processes", "multiprocessing"):
        one, failed = run(tasks)
        assert one == 1
        assert type(failed.exception) is type(error)
    else:
        with pytest.raises(type(error)):
            run(tasks)


def wait_at(gate, i):
    if i == 2:
        gate.wait()
    return i


@pytest.mark.filterwarnings("ignore:A thread cannot be stopped:RuntimeWarning")
def test_a_task_over_its_time_is_named_and_the_others_keep_their_results(
    parallel_backend,
):
    # The clock of a pool of multiprocessing runs while its workers start.
    limit = 1 if sys.platform != "win32" else 15
    limited = Parallel(
        2, parallel_backend, timeout=limit, batch_size=1, on_error="return"
    )
    with Gate() as gate:
        found = limited(delayed(wait_at)(gate, i) for i in range(4))
    assert found[:2] + found[3:] == [0, 1, 3]
    error = found[2].exception
    assert isinstance(error, TimeoutError)
    assert isinstance(error, multiprocessing.TimeoutError)
    assert (error.index, found[2].index) == (2, 2)
    assert "wait_at" in str(error)
    assert limited(delayed(abs)(-i) for i in range(4)) == [0, 1, 2, 3]


class FailsOnce:
    """Fails the first time that a file does not exist."""

    def __init__(self, path):
        self.path = path

    def __call__(self):
        if self.path.exists():
            return "fine"
        self.path.touch()
        raise ConnectionError


def test_a_failed_task_can_be_tried_again(backend, tmp_path):
    parallel = Parallel(n_jobs=2, backend=backend, retries=1)
    tasks = [delayed(FailsOnce(tmp_path / str(i)))() for i in range(3)]
    assert parallel(tasks) == ["fine"] * 3
    assert parallel._counters.retried_tasks == 3


def test_an_error_in_a_generator_comes_at_its_turn_or_before(backend):
    results = Parallel(n_jobs=2, backend=backend, return_as="generator", batch_size=1)(
        delayed(fail_at)(1, i) for i in range(4)
    )
    taken = []
    with pytest.raises(LookupError):
        taken.extend(iter(results.__next__, None))
    assert taken in ([], [0])
    with pytest.raises(StopIteration):
        next(results)


def first_of(values):
    return next(iter(values))


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_stop_iteration_of_a_task_does_not_pass_for_the_end(
    backend, n_jobs, return_as
):
    runner = Parallel(n_jobs, backend, return_as)
    with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
        list(runner(delayed(first_of)(values) for values in ([1], [2], [], [4])))
    assert isinstance(caught.value.__cause__, StopIteration)


@pytest.mark.parametrize("verbose", [0, 1])
def test_what_is_left_of_the_input_stays_the_callers(backend, verbose):
    tasks = (delayed(fail_at)(0, i) for i in itertools.count())
    parallel = Parallel(2, backend, verbose=verbose, pre_dispatch=2)
    with pytest.raises(LookupError):
        parallel(tasks)
    # A thread of the call may be in it for another moment.
    assert inspect.getgeneratorstate(tasks) != inspect.GEN_CLOSED


# One call at a time


def test_a_second_call_while_one_runs_is_refused(backend):
    parallel = Parallel(n_jobs=2, backend=backend)

    def tasks():
        with pytest.raises(RuntimeError, match=r"already running !$"):
            parallel([])
        yield delayed(abs)(-1)

    assert parallel(tasks()) == [1]


def test_a_second_call_while_a_generator_is_unfinished_is_refused(backend):
    parallel = Parallel(n_jobs=2, backend=backend, return_as="generator")
    results = parallel(delayed(abs)(-i) for i in range(10))
    with pytest.raises(RuntimeError, match="clean all references to the output"):
        parallel([])
    assert next(results) == 0
    with pytest.raises(RuntimeError, match="already running !"):
        parallel([])
    results.close()
    results.close()
    assert list(parallel([delayed(abs)(-1)])) == [1]


@pytest.mark.parametrize("taken", [0, 1])
def test_a_generator_that_is_dropped_ends_its_call(backend, taken):
    parallel = Parallel(n_jobs=2, backend=backend, return_as="generator")
    results = parallel(delayed(abs)(-i) for i in range(100))
    for _ in range(taken):
        next(results)
    dropped = weakref.ref(results)
    del results
    assert dropped() is None
    assert list(parallel([delayed(abs)(-1)])) == [1]


def test_two_generators_of_two_objects_live_side_by_side(backend):
    first, second = (
        Parallel(n_jobs=2, backend=backend, return_as="generator")(
            delayed(abs)(-i) for i in range(20)
        )
        for _ in range(2)
    )
    assert list(zip(first, second, strict=True)) == [(i, i) for i in range(20)]


def test_an_object_serves_many_calls_and_a_with_block(backend):
    with Parallel(n_jobs=2, backend=backend) as parallel:
        for n in range(3):
            assert parallel(delayed(abs)(-i) for i in range(n)) == list(range(n))
    assert parallel([delayed(abs)(-1)]) == [1]


def test_leaving_a_with_block_ends_its_generator(backend):
    with Parallel(n_jobs=2, backend=backend, return_as="generator") as parallel:
        results = parallel(delayed(abs)(-i) for i in range(100))
        assert next(results) == 0
    for _ in range(2):
        with pytest.raises(RuntimeError, match="with block of this Parallel has ended"):
            next(results)
    assert list(parallel([delayed(abs)(-1)])) == [1]


def test_a_second_reader_is_refused_and_the_first_gets_everything(backend):
    read, errors = [], []
    refused = threading.Event()

    def reader():
        try:
            read.extend(results)
        except ValueError as error:
            errors.append(error)
            refused.set()

    # The gate is made last: a worker that is forked with it would hold it shut.
    with Parallel(2, backend, "generator") as parallel:
        readers = [threading.Thread(target=reader) for _ in range(2)]
        with Gate() as gate:
            results = parallel(delayed(wait_at)(gate, i) for i in range(2, 8))
            for thread in readers:
                thread.start()
            assert refused.wait(30)
        for thread in readers:
            thread.join()
    assert read == list(range(2, 8))
    assert "already being waited for" in str(errors)


def test_closing_a_generator_wakes_the_thread_that_reads_it(backend):
    refused = threading.Event()

    def reader():
        try:
            list(results)
        except ValueError:  # the other one is inside
            refused.set()

    with Parallel(2, backend, "generator") as parallel:
        readers = [threading.Thread(target=reader) for _ in range(2)]
        with Gate() as gate:
            results = parallel(delayed(wait_at)(gate, i) for i in range(2, 8))
            for thread in readers:
                thread.start()
            assert refused.wait(30)
            results.close()
        for thread in readers:
            thread.join(30)
        assert not any(thread.is_alive() for thread in readers)
        assert list(parallel([delayed(abs)(-1)])) == [1]


@pytest.mark.parametrize("how", ["read", "closed"])
def test_a_generator_that_ended_before_its_with_block_stays_at_its_end(backend, how):
    with Parallel(n_jobs=2, backend=backend, return_as="generator") as parallel:
        results = parallel(delayed(abs)(-i) for i in range(3))
        if how == "read":
            assert list(results) == [0, 1, 2]
        else:
            results.close()
    assert list(results) == []


def test_an_object_that_is_dropped_is_freed_without_the_collector():
    parallel = Parallel(n_jobs=2, backend="threading")
    parallel([delayed(abs)(-1)])
    dropped = weakref.ref(parallel)
    del parallel
    assert dropped() is None


# How far the input is taken


@pytest.mark.parametrize(
    ("pre_dispatch", "window"), [("1.5*n_jobs", 3), (2, 2), ("all", 12), ("n_jobs", 2)]
)
def test_the_input_is_taken_no_further_than_asked(backend, pre_dispatch, window):
    if backend == "sequential":
        window = 1
    parallel = Parallel(
        n_jobs=2, backend=backend, pre_dispatch=pre_dispatch, batch_size=1
    )
    lead = []

    def tasks():
        for i in range(12):
            lead.append(i - parallel.n_completed_tasks)
            yield delayed(abs)(i)

    parallel(tasks())
    assert max(lead) < window
    if pre_dispatch == "all" and backend != "sequential":
        assert parallel.n_dispatched_tasks == 12


def test_every_spelling_of_the_default_counts_batches(monkeypatch):
    seen = []
    call = fastjob.running.Call

    def record(*args, **kwargs):
        seen.append((kwargs["ahead"], kwargs["ahead_in_batches"]))
        return call(*args, **kwargs)

    monkeypatch.setattr(fastjob.running, "Call", record)
    for pre_dispatch in (
        "2 * n_jobs",
        "2*n_jobs",
        " 2* n_jobs",
        6,
        "n_jobs * 2",
        "all",
    ):
        Parallel(3, "threading", pre_dispatch=pre_dispatch)([])
    assert seen == [(6, True)] * 3 + [(6, False)] * 2 + [(0, False)]


# Numbers of workers


@pytest.mark.parametrize(
    ("n_jobs", "taken"), [(None, 1), (2.9, 2), ("3", 3), (-1, -1), (True, 1)]
)
def test_n_jobs_becomes_an_integer(n_jobs, taken):
    assert Parallel(n_jobs=n_jobs, backend="threading").n_jobs == taken


def test_n_jobs_of_zero_is_refused(backend):
    with pytest.raises(ValueError, match="n_jobs == 0 in Parallel has no meaning"):
        Parallel(n_jobs=0, backend=backend)([])


@pytest.mark.parametrize("n_jobs", ["a", [], float("nan"), float("inf")])
def test_n_jobs_that_is_no_number_is_refused(n_jobs):
    with pytest.raises(ValueError, match="n_jobs could not be converted to int"):
        Parallel(n_jobs=n_jobs)


def test_one_worker_is_the_calling_thread(backend):
    [ident] = Parallel(n_jobs=1, backend=backend)([delayed(threading.get_ident)()])
    assert ident == threading.get_ident()


def test_one_worker_keeps_no_time_limit_and_says_so(backend):
    runner = Parallel(1, backend, timeout=9)
    with pytest.warns(
        UserWarning, match="'SequentialBackend' does not support"
    ) as seen:
        assert runner([delayed(abs)(-1)]) == [1]
    assert seen[0].filename == __file__


def test_effective_n_jobs_follows_the_active_backend(monkeypatch):
    monkeypatch.setattr("fastjob.budget.cpu_count", lambda: 4)
    assert effective_n_jobs() == 4
    assert effective_n_jobs(-2) == 3
    assert effective_n_jobs(3) == 3
    assert effective_n_jobs(None) == 1
    with parallel_config(backend="threading", n_jobs=6):
        assert effective_n_jobs(None) == 6
    with parallel_config(backend="sequential"):
        assert effective_n_jobs(8) == 1
    with pytest.raises(ValueError, match="no meaning"):
        effective_n_jobs(0)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"return_as": "sheep"}, "Expected `return_as` parameter .* but got sheep"),
        ({"batch_size": 0}, "batch_size must be 'auto' or a positive integer, got: 0"),
        ({"batch_size": "many"}, "batch_size must be"),
        ({"batch_size": 1.5}, "batch_size must be"),
        ({"timeout": 0}, "timeout must be a positive number"),
        ({"timeout": -1}, "timeout must be a positive number"),
        ({"timeout": "soon"}, "timeout must be a positive number"),
        ({"retries": -1}, "retries must be"),
        ({"retries": 0.5}, "retries must be"),
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'return'"),
        ({"mmap_mode": "z"}, "mmap_mode must be one of"),
        ({"temp_folder": 3}, "temp_folder must be a path or None, got: 3"),
        ({"verbose": "much"}, "verbose must be a number, got: 'much'"),
        ({"verbose": None}, "verbose must be a number, got: None"),
        ({"max_nbytes": "a"}, "max_nbytes='a' is not a size"),
        ({"max_nbytes": -1}, "max_nbytes=-1 is not a size"),
        ({"max_nbytes": []}, "is not a size"),
    ],
)
def test_arguments_without_meaning_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        Parallel(**arguments)


@pytest.mark.parametrize("pre_dispatch", [0, "sheep", None])
def test_a_window_without_meaning_is_refused_and_the_object_stays_usable(pre_dispatch):
    parallel = Parallel(n_jobs=2, backend="threading", pre_dispatch=pre_dispatch)
    for _ in range(2):
        with pytest.raises(ValueError, match="pre_dispatch"):
            parallel([delayed(abs)(-1)])


@pytest.mark.parametrize(
    ("size", "n"),
    [("1M", 1 << 20), ("1.5K", 1536), ("2G", 2 << 30), (10, 10), (2.5, 2), (None, -1)],
)
def test_sizes_are_bytes(size, n):
    assert bytes_of(size) == n


def test_an_option_that_the_backend_does_not_know_is_refused():
    with pytest.raises(TypeError, match="no option 'sheep'; its options are: idle_"):
        Parallel(backend="threading", sheep=1)
    with pytest.raises(TypeError, match="it has no options"):
        Parallel(backend="sequential", sheep=1)


def test_positions_of_the_arguments_are_those_of_joblib():
    parallel = Parallel(
        2, "threading", "generator", 0, 5.0, 7, 3, "/folder", 10, "c", None, "sharedmem"
    )
    assert parallel.return_as == "generator"
    assert (parallel.n_jobs, parallel.verbose, parallel.timeout) == (2, 0, 5.0)
    assert (parallel.pre_dispatch, parallel.batch_size) == (7, 3)
    assert parallel._backend_kwargs["temp_folder"] == "/folder"
    assert parallel._backend_kwargs["max_nbytes"] == 10
    assert parallel._backend_kwargs["mmap_mode"] == "c"
    assert parallel._backend_kwargs["require"] == "sharedmem"


def test_the_signature_is_joblibs_with_new_options_by_keyword():
    joblib = pytest.importorskip("joblib")
    from inspect import signature

    ours = signature(Parallel).parameters
    for (name, mine), theirs in zip(
        ours.items(), signature(joblib.Parallel).parameters.values(), strict=False
    ):
        if theirs.kind is theirs.VAR_KEYWORD:
            break
        assert name == theirs.name
        assert mine.kind == theirs.kind
        assert repr(mine.default) == repr(theirs.default)
    added = list(ours.values())[list(ours).index("require") + 1 : -1]
    assert {parameter.kind for parameter in added} == {added[0].KEYWORD_ONLY}


# What others read and override


def test_counts_and_names_that_others_read(backend):
    parallel = Parallel(n_jobs=2, backend=backend, batch_size=2)
    assert repr(parallel) == str(parallel) == "Parallel(n_jobs=2)"
    assert parallel.n_completed_tasks == 0
    parallel([delayed(abs)(i) for i in range(6)])
    assert parallel.n_tasks == 6
    assert parallel.n_dispatched_tasks == 6
    assert parallel.n_completed_tasks == 6
    assert 1 <= parallel.n_dispatched_batches <= 6
    assert parallel._effective_n_jobs() == (1 if backend == "sequential" else 2)
    parallel(delayed(abs)(i) for i in range(3))
    assert parallel.n_tasks is None
    assert parallel.n_completed_tasks == 3


def test_a_subclass_may_wrap_the_tasks(backend):
    class Doubled(Parallel):
        def __call__(self, iterable):
            return super().__call__(
                (operator.mul, (2, args[0]), kwargs) for _, args, kwargs in iterable
            )

    parallel = Doubled(n_jobs=2, backend=backend)
    assert parallel(delayed(abs)(i) for i in range(4)) == [0, 2, 4, 6]
    assert repr(parallel) == "Doubled(n_jobs=2)"


def test_print_progress_may_be_overridden(backend):
    seen = []

    class Watching(Parallel):
        def print_progress(self):
            seen.append((self.n_completed_tasks, self.n_tasks))

    Watching(n_jobs=2, backend=backend)([delayed(abs)(i) for i in range(5)])
    assert seen == sorted(seen)
    assert seen[-1] == (5, 5)


def test_an_error_in_print_progress_ends_the_call(backend):
    class Broken(Parallel):
        def print_progress(self):
            raise OSError("screen on fire")

    parallel = Broken(n_jobs=2, backend=backend)
    for _ in range(2):
        with pytest.raises(OSError, match="screen on fire"):
            parallel([delayed(abs)(-1)])


def test_a_patched_callback_sees_every_task(backend, monkeypatch):
    seen = []

    class Counting(fastjob.parallel.BatchCompletionCallBack):
        def __call__(self, *args, **kwargs):
            seen.append(self.batch_size)
            return super().__call__(*args, **kwargs)

    monkeypatch.setattr(fastjob.parallel, "BatchCompletionCallBack", Counting)
    parallel = Parallel(n_jobs=2, backend=backend)
    parallel(delayed(abs)(i) for i in range(7))
    assert sum(seen) == 7
    list(Parallel(2, backend, "generator")(delayed(abs)(i) for i in range(7)))
    assert sum(seen) == 14


@pytest.fixture
def tqdm(monkeypatch):
    module = pytest.importorskip("tqdm")
    monkeypatch.setattr(module.tqdm, "monitor_interval", 0)  # no thread of its own
    return module


@contextlib.contextmanager
def bar_of_all_calls(module, bar):
    """The recipe that users of joblib patch a progress bar in with."""

    class Updating(module.parallel.BatchCompletionCallBack):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

        def __call__(self, *args, **kwargs):
            bar.update(n=self.batch_size)
            return super().__call__(*args, **kwargs)

    original = module.parallel.BatchCompletionCallBack
    module.parallel.BatchCompletionCallBack = Updating
    try:
        yield bar
    finally:
        module.parallel.BatchCompletionCallBack = original
        bar.close()


@pytest.mark.parametrize("name", ["fastjob", "joblib"])
def test_the_usual_recipe_for_a_bar_works_as_it_does_there(name, tqdm):
    module = pytest.importorskip(name)
    with bar_of_all_calls(module, tqdm.tqdm(total=9, file=io.StringIO())) as bar:
        found = module.Parallel(n_jobs=2, backend="threading")(
            module.delayed(abs)(-i) for i in range(9)
        )
    assert found == list(range(9))
    assert bar.n == bar.total
    with_bar = module.parallel.BatchCompletionCallBack
    assert with_bar.__module__.startswith(name)  # it is as it was


def test_the_usual_subclass_with_a_bar_works(backend, tqdm):
    class WithBar(Parallel):
        def __call__(self, *args, **kwargs):
            with tqdm.tqdm(file=io.StringIO()) as self.bar:
                return super().__call__(*args, **kwargs)

        def print_progress(self):
            self.bar.total = self.n_dispatched_tasks
            self.bar.n = self.n_completed_tasks
            self.bar.refresh()

    parallel = WithBar(n_jobs=2, backend=backend)
    assert parallel(delayed(abs)(-i) for i in range(9)) == list(range(9))
    assert (parallel.bar.n, parallel.bar.total) == (9, 9)


def test_nobody_is_told_where_nobody_listens(monkeypatch):
    given = []
    call = fastjob.running.Call

    def record(*args, **kwargs):
        given.append(kwargs["on_batch"])
        return call(*args, **kwargs)

    monkeypatch.setattr(fastjob.running, "Call", record)
    Parallel(n_jobs=2, backend="threading")([])
    Parallel(n_jobs=2, backend="threading", verbose=1)([])
    assert given[0] is None
    assert callable(given[1])


def test_progress_is_shown_for_any_backend(backend):
    seen = []
    Parallel(n_jobs=2, backend=backend, progress=seen.append)(
        [delayed(abs)(i) for i in range(5)]
    )
    assert (seen[-1].done, seen[-1].total) == (5, 5)


def test_a_timeline_is_written_when_the_call_ends(backend, tmp_path):
    path = tmp_path / "run.json"
    Parallel(n_jobs=2, backend=backend, timeline=path)([delayed(abs)(1)])
    assert json.loads(path.read_text())
    path.unlink()
    with pytest.raises(LookupError), parallel_config(timeline=path):
        Parallel(n_jobs=2, backend=backend)([delayed(fail_at)(1, 1)])
    assert json.loads(path.read_text())


def test_a_block_records_calls_and_the_environment_does(monkeypatch, tmp_path):
    with fastjob.timeline(tmp_path / "block.json"):
        Parallel(n_jobs=2, backend="threading")([delayed(abs)(1)])
    assert json.loads((tmp_path / "block.json").read_text())
    monkeypatch.setenv("FASTJOB_TIMELINE", str(tmp_path / "sheep"))
    with pytest.raises(ValueError, match=r"\.html or a \.json"):
        Parallel(n_jobs=2, backend="threading")([delayed(abs)(1)])


def test_the_backend_of_the_object_can_be_read(backend):
    parallel = Parallel(n_jobs=2, backend=backend)
    assert parallel._backend.nesting_level == 0
    with parallel_config(backend=ThreadingBackend(nesting_level=1)):
        assert Parallel(backend="sequential")._backend.nesting_level == 1
        assert Parallel(backend=SequentialBackend())._backend.nesting_level == 1


def test_the_type_can_be_subscripted():
    assert Parallel[int] is not None


# wrap_non_picklable_objects


class Callable:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x


def test_wrapped_objects_survive_plain_pickle():
    wrap = fastjob.wrap_non_picklable_objects
    double = pickle.loads(pickle.dumps(wrap(lambda x: 2 * x)))
    assert double(4) == 8
    again = pickle.loads(pickle.dumps(double))
    assert again(5) == 10
    bare = pickle.loads(pickle.dumps(wrap(lambda x: 2 * x, keep_wrapper=False)))
    assert bare.__name__ == "<lambda>"
    assert bare(4) == 8


def test_wrapped_instances_behave_like_what_they_wrap():
    wrap = fastjob.wrap_non_picklable_objects
    instance = wrap(Callable(3))
    assert instance.factor == 3
    assert instance(2) == 6
    assert "Callable" in repr(instance)
    with pytest.raises(AttributeError):
        _ = instance.sheep
    assert not callable(wrap({"a": 1}))


def test_wrapped_classes_make_wrapped_instances():
    class Local:
        """Local doc."""

        def __init__(self, x):
            self.x = x

    wrap = fastjob.wrap_non_picklable_objects
    wrapped = wrap(Local)
    assert wrapped.__name__ == "Local"
    assert wrapped.__doc__ == "Local doc."
    assert not callable(wrapped(1))
    assert pickle.loads(pickle.dumps(wrapped(7))).x == 7
    assert wrap(Callable)(3)(2) == 6
