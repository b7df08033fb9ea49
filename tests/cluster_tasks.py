"""Tasks and checks that the tests of all clusters share."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import fastjob
from fastjob import Parallel, TaskError, delayed
from fastjob.backends import cluster_calls
from fastjob.errors import (
    ClusterError,
    RemoteTraceback,
    ResultPicklingError,
    TaskPicklingError,
    TaskTimeoutError,
)


def square(x):
    return x * x


def total(array, x):
    return float(array.sum()) + x


def fail_on(x, bad):
    if x in bad:
        raise ValueError(f"no {x}")
    return x


def fail_until(path, times):
    """Fail so often as `path` has not yet noted."""
    with open(path, "a") as file:
        file.write("x")
    if Path(path).stat().st_size <= times:
        raise OSError("not yet")
    return "done"


def die_once(path, x):
    """Kill the worker the first time that anybody comes here with x == 3."""
    if x == 3:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return x
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def wait_for(path):
    while not os.path.exists(path):
        threading.Event().wait(0.01)
    return path


def mark(folder, number):
    """Tell that this has run, and stay until the test has ended."""
    Path(folder, str(number)).touch()
    return wait_for(os.path.join(folder, "end"))


def inside(prefer):
    """Make a call of this machine's own workers from within a task."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        results = Parallel(n_jobs=2, backend=prefer)(
            delayed(square)(i) for i in range(50)
        )
        fastjob.shutdown()
    return results, [str(w.message) for w in shown if "fastjob" in w.filename]


def nested(n):
    inner = Parallel()
    return type(inner._backend).__name__, inner(delayed(square)(i) for i in range(n))


def lock(_):
    return threading.Lock()


def pid(_):
    return os.getpid()


class ClusterTests:
    """What every cluster does; a subclass sets `backend` and starts the cluster."""

    backend = ""

    def parallel(self, **options):
        return Parallel(n_jobs=-1, backend=self.backend, **options)

    def test_results_are_in_order_and_from_elsewhere(self):
        results = self.parallel()(delayed(square)(i) for i in range(2000))
        assert results == [i * i for i in range(2000)]
        assert os.getpid() not in self.parallel()(delayed(pid)(i) for i in range(4))

    def test_tiny_tasks_are_batched(self):
        runner = self.parallel()
        assert runner(delayed(square)(i) for i in range(5000))[-1] == 4999**2
        assert runner.n_dispatched_batches < 200

    @pytest.mark.parametrize("kind", ["generator", "generator_unordered"])
    def test_streams(self, kind):
        results = list(
            self.parallel(return_as=kind)(delayed(square)(i) for i in range(500))
        )
        if kind == "generator_unordered":
            results.sort()
        assert results == [i * i for i in range(500)]

    def test_a_stream_that_is_closed_ends_its_call(self):
        taken = []

        def tasks():
            for i in range(10**9):
                taken.append(i)
                yield delayed(square)(i)

        stream = self.parallel(return_as="generator", batch_size=1)(tasks())
        assert next(stream) == 0
        stream.close()
        n_taken = len(taken)
        assert self.parallel()(delayed(square)(i) for i in range(3)) == [0, 1, 4]
        assert len(taken) == n_taken < 1000

    def test_an_error_ends_the_call_with_its_traceback(self):
        with pytest.raises(ValueError, match="no 5") as info:
            self.parallel()(delayed(fail_on)(i, [5]) for i in range(100))
        assert isinstance(info.value.__cause__, RemoteTraceback)
        assert "raise ValueError" in str(info.value.__cause__)

    def test_errors_can_be_returned(self):
        results = self.parallel(on_error="return")(
            delayed(fail_on)(i, [5, 50]) for i in range(100)
        )
        failed = {i for i, r in enumerate(results) if isinstance(r, TaskError)}
        assert failed == {5, 50}
        assert results[50].index == 50
        assert str(results[50].exception) == "no 50"

    def test_a_failed_task_is_run_again(self, tmp_path):
        path = str(tmp_path / "attempts")
        runner = self.parallel(retries=2)
        assert runner([delayed(fail_until)(path, 2)]) == ["done"]
        with pytest.raises(OSError, match="not yet"):
            runner([delayed(fail_until)(str(tmp_path / "more"), 5)])

    def test_a_task_that_takes_too_long_does_not_hold_up_the_others(self, tmp_path):
        end = str(tmp_path / "end")
        tasks = [delayed(wait_for)(end), *(delayed(square)(i) for i in range(8))]
        try:
            runner = self.parallel(timeout=3, on_error="return")
            late, *others = runner(tasks)
        finally:
            Path(end).touch()
        assert others == [i * i for i in range(8)]
        assert isinstance(late.exception, TaskTimeoutError)

    def test_progress_is_told(self):
        seen = []
        self.parallel(progress=seen.append)(delayed(square)(i) for i in range(200))
        assert seen[-1].done == 200

    def test_what_has_not_been_sent_when_a_call_fails_never_runs(self, tmp_path):
        """What has been sent is cancelled, which takes a cluster a moment."""
        folder = str(tmp_path)
        tasks = [delayed(fail_on)(0, [0])]
        tasks += [delayed(mark)(folder, i) for i in range(1, 40)]
        try:
            with pytest.raises(ValueError, match="no 0"):
                self.parallel(batch_size=1)(tasks)
        finally:
            Path(folder, "end").touch()
        assert self.parallel()(delayed(square)(i) for i in range(9))[-1] == 64
        assert not any(Path(folder, str(i)).exists() for i in range(20, 40))

    @pytest.mark.parametrize("kind", ["threading", "processes"])
    def test_tasks_can_use_the_cores_of_their_machine(self, kind):
        for results, shown in self.parallel()([delayed(inside)(kind)] * 2):
            assert results == [i * i for i in range(50)]
            assert len(shown) <= 1

    def test_what_the_workers_cannot_import_is_an_error(self, tmp_path, monkeypatch):
        (tmp_path / "only_here.py").write_text("def f(x):\n    return x\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        import only_here

        monkeypatch.setitem(sys.modules, "only_here", only_here)
        with pytest.raises(
            ClusterError, match=r"(?s)only_here.*must be those of the call"
        ):
            self.parallel()(delayed(only_here.f)(i) for i in range(4))

    def test_another_version_of_fastjob_is_an_error(self, monkeypatch):
        monkeypatch.setattr(cluster_calls, "__version__", "0.0.1")
        with pytest.raises(ClusterError, match=r"the caller 0\.0\.1: install"):
            self.parallel()(delayed(square)(i) for i in range(4))

    def test_closures_and_their_state_travel(self):
        offset = 7
        assert self.parallel()(delayed(lambda x: x + offset)(i) for i in range(3)) == [
            7,
            8,
            9,
        ]

    def test_a_buffer_that_is_filled_again_is_another_argument(self):
        array = np.zeros(1 << 18)

        def tasks():
            for i in range(8):
                array[:] = i
                yield delayed(total)(array, 0)

        results = self.parallel(max_nbytes=1000)(tasks())
        assert results == [i * float(1 << 18) for i in range(8)]

    def test_large_common_arguments_give_the_same_results(self):
        array = np.ones(1 << 18)
        for options in [{}, {"scatter": [array]}, {"max_nbytes": None}]:
            runner = self.parallel(**{"max_nbytes": 1000, **options})
            results = runner(delayed(total)(array, x=i) for i in range(20))
            assert results == [(1 << 18) + i for i in range(20)]

    def test_nested_calls_use_the_same_cluster(self):
        found = self.parallel()(delayed(nested)(n) for n in range(5))
        name = self.parallel()._backend.__class__.__name__
        assert found == [(name, [i * i for i in range(n)]) for n in range(5)]

    def test_a_worker_that_is_killed_costs_no_result(self, tmp_path):
        path = str(tmp_path / "killed")
        results = self.parallel()(delayed(die_once)(path, i) for i in range(10))
        assert results == list(range(10))
        assert os.path.exists(path)

    def test_what_cannot_be_pickled_is_named(self):
        with pytest.raises(TaskPicklingError, match="argument 0"):
            self.parallel()([delayed(square)(threading.Lock())])
        with pytest.raises(ResultPicklingError, match="lock"):
            self.parallel()(delayed(lock)(i) for i in range(4))
        first, second = self.parallel(on_error="return")(
            [delayed(square)(threading.Lock()), delayed(square)(3)]
        )
        assert isinstance(first.exception, TaskPicklingError)
        assert second == 9

    def test_calls_from_several_threads(self):
        results = {}

        def call(n):
            results[n] = self.parallel()(delayed(square)(n) for _ in range(50))

        threads = [threading.Thread(target=call, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {n: [n * n] * 50 for n in range(3)}

    def test_an_unknown_option_is_refused(self):
        with pytest.raises(TypeError, match="no option 'nonsense'"):
            self.parallel(nonsense=1)

    def test_no_worker_is_refused(self):
        with pytest.raises(ValueError, match="n_jobs == 0"):
            Parallel(n_jobs=0, backend=self.backend)([delayed(square)(1)])
