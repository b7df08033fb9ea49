"""fastjob's worker processes under joblib's own front end, and under its users."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest

import fastjob
from fastjob.errors import RemoteTraceback, TerminatedWorkerError

joblib = pytest.importorskip("joblib")
sklearn_only = pytest.mark.skipif(
    "not __import__('importlib.util').util.find_spec('sklearn')",
    reason="needs scikit-learn",
)


@pytest.fixture(autouse=True, scope="module")
def registered():
    fastjob.register_joblib()
    yield
    joblib.parallel.BACKENDS.pop("fastjob")


@pytest.fixture
def parallel():
    """``joblib.Parallel`` on fastjob with two workers."""

    def make(**options):
        return joblib.Parallel(**{"n_jobs": 2, "backend": "fastjob", **options})

    return make


def square(x):
    return x * x


def fail(x):
    raise ValueError(f"no {x}")


def fail_at(x, bad):
    if x == bad:
        raise KeyError(x)
    return x


def pid(_):
    return os.getpid()


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def calls_of(function, items, *args):
    return (joblib.delayed(function)(item, *args) for item in items)


def test_results_come_in_order_from_other_processes(parallel):
    assert parallel()(calls_of(square, range(500))) == [x * x for x in range(500)]
    pids = set(parallel()(calls_of(pid, range(50))))
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2


def test_workers_stay_warm_between_calls(parallel):
    first = set(parallel()(calls_of(pid, range(50))))
    second = set(parallel()(calls_of(pid, range(50))))
    assert len(first | second) <= 2


def test_the_backend_can_be_configured_by_name():
    with joblib.parallel_config(backend="fastjob", n_jobs=2):
        assert joblib.effective_n_jobs() == 2
        assert os.getpid() not in joblib.Parallel()(calls_of(pid, range(4)))


def test_it_can_be_made_the_default(monkeypatch):
    monkeypatch.setattr(joblib.parallel, "DEFAULT_BACKEND", "loky")
    fastjob.register_joblib(make_default=True)
    backend = joblib.Parallel(n_jobs=2)._backend
    assert type(backend).__name__ == "FastjobBackend"


def test_one_job_runs_in_the_caller(parallel):
    assert parallel(n_jobs=1)(calls_of(pid, range(3))) == [os.getpid()] * 3


def test_all_jobs_is_the_core_budget(parallel):
    assert parallel(n_jobs=-1)._effective_n_jobs() == fastjob.effective_n_jobs(-1)
    with pytest.raises(ValueError, match="n_jobs == 0"):
        parallel(n_jobs=0)(calls_of(square, [1]))


def test_options_reach_the_pool_and_unknown_ones_are_refused():
    with joblib.parallel_config(
        backend="fastjob", n_jobs=2, initializer=os.putenv, initargs=("A", "b")
    ):
        assert joblib.Parallel()(calls_of(square, range(3))) == [0, 1, 4]
    with pytest.raises(TypeError, match="no option 'nonsense'"):
        joblib.parallel_config(backend="fastjob", nonsense=1)


def test_closures_travel(parallel):
    offset = 10
    assert parallel()(calls_of(lambda x: x + offset, range(3))) == [10, 11, 12]


def test_an_error_is_raised_with_its_remote_traceback(parallel):
    with pytest.raises(ValueError, match=r"no [01]") as info:
        parallel()(calls_of(fail, range(10)))
    assert isinstance(info.value.__cause__, RemoteTraceback)
    assert "raise ValueError" in str(info.value.__cause__)
    assert parallel()(calls_of(square, range(3))) == [0, 1, 4]


def test_a_late_error_ends_the_call(parallel):
    with pytest.raises(KeyError):
        parallel()(calls_of(fail_at, range(1000), 900))


def test_what_cannot_be_pickled_is_an_error_and_nothing_hangs(parallel):
    with pytest.raises(Exception, match="pickle"):
        parallel()(calls_of(square, [threading.Lock()] * 4))
    with pytest.raises(Exception, match="pickle"):
        parallel()(calls_of(lambda _: threading.Lock(), range(4)))
    assert parallel()(calls_of(square, range(3))) == [0, 1, 4]


def test_a_worker_that_dies_is_an_error(parallel):
    with pytest.raises(TerminatedWorkerError, match="SIGKILL"):
        parallel()(calls_of(die, range(2)))
    assert parallel()(calls_of(square, range(3))) == [0, 1, 4]


def test_an_error_of_the_input_is_raised(parallel):
    def tasks():
        yield from calls_of(square, range(50))
        raise LookupError("input")

    with pytest.raises(LookupError, match="input"):
        parallel()(tasks())


@pytest.mark.parametrize("kind", ["generator", "generator_unordered"])
def test_generators(parallel, kind):
    results = list(parallel(return_as=kind)(calls_of(square, range(300))))
    if kind == "generator_unordered":
        results.sort()
    assert results == [x * x for x in range(300)]


def test_a_generator_that_is_dropped_ends_its_call(parallel):
    stream = parallel(return_as="generator")(calls_of(square, range(100_000)))
    assert next(stream) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream.close()
    assert parallel()(calls_of(square, range(3))) == [0, 1, 4]


def test_two_generators_at_once(parallel):
    streams = [
        parallel(return_as="generator")(calls_of(square, [i] * 20)) for i in (2, 3)
    ]
    assert list(zip(*streams, strict=True)) == [(4, 9)] * 20


def test_a_managed_parallel_is_used_again_after_an_error(parallel):
    with parallel() as managed:
        assert managed(calls_of(square, range(5))) == [0, 1, 4, 9, 16]
        with pytest.raises(ValueError, match="no"):
            managed(calls_of(fail, range(5)))
        assert managed(calls_of(square, range(5))) == [0, 1, 4, 9, 16]


def stuck(x):
    threading.Event().wait()


def test_a_task_that_takes_too_long(parallel):
    with pytest.raises(multiprocessing.TimeoutError):
        parallel(timeout=0.2)(calls_of(stuck, range(2)))
    assert parallel()(calls_of(square, range(3))) == [0, 1, 4]


def nested(x):
    inner = joblib.Parallel(n_jobs=2)
    return type(inner._backend).__name__, inner(calls_of(square, range(x)))


def test_nested_calls_run_on_threads(parallel):
    expected = [("ThreadingBackend", [0, 1]), ("ThreadingBackend", [0, 1, 4])]
    assert parallel()(calls_of(nested, [2, 3])) == expected


def thread_setting(_):
    return os.environ["OMP_NUM_THREADS"]


def test_inner_threads_can_be_set():
    with joblib.parallel_config(backend="fastjob", n_jobs=2, inner_max_num_threads=3):
        assert joblib.Parallel()(calls_of(thread_setting, range(2))) == ["3", "3"]


def writeable(array, x):
    return array.flags.writeable, float(array[0])


def test_large_arrays_are_shared_read_only(parallel):
    array = np.ones(1 << 18)
    tasks = calls_of(writeable, [array] * 20, 0)
    assert parallel(max_nbytes=1000)(tasks) == [(False, 1.0)] * 20
    tasks = calls_of(writeable, [array] * 20, 0)
    assert parallel(max_nbytes=None)(tasks) == [(True, 1.0)] * 20


def test_calls_from_several_threads(parallel):
    results = {}

    def call(n):
        results[n] = parallel()(calls_of(square, [n] * 50))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [n * n] * 50 for n in range(4)}


def test_batches_grow(parallel):
    runner = parallel()
    runner(calls_of(square, range(20_000)))
    assert runner.n_dispatched_tasks == 20_000
    assert runner.n_dispatched_batches < 2_000


def test_without_joblib_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(ImportError, match="pip install joblib"):
        fastjob.register_joblib()


def test_fastjob_never_imports_joblib_by_itself():
    code = (
        "import sys, fastjob\n"
        "fastjob.Parallel(n_jobs=2)(fastjob.delayed(abs)(x) for x in range(3))\n"
        "print('joblib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


# In place of joblib


def test_joblib_is_replaced_and_comes_back():
    own = joblib.Parallel, joblib.parallel.Parallel, joblib.delayed
    installation = fastjob.install_as_joblib()
    try:
        from joblib import Parallel, delayed, parallel_config

        assert Parallel is joblib.parallel.Parallel is fastjob.Parallel
        with parallel_config(n_jobs=2):
            results = Parallel()(delayed(square)(i) for i in range(4))
    finally:
        installation.undo()
    installation.undo()
    assert results == [0, 1, 4, 9]
    assert (joblib.Parallel, joblib.parallel.Parallel, joblib.delayed) == own


def test_all_that_is_replaced_exists_in_joblib():
    from fastjob import interop

    for name in interop.JOBLIB_NAMES:
        assert hasattr(joblib, name), name
    for name in interop.JOBLIB_PARALLEL_NAMES:
        assert hasattr(joblib.parallel, name), name


@sklearn_only
def test_scikit_learn_on_a_replaced_joblib(run_python):
    done = run_python(
        "import fastjob\n"
        "installation = fastjob.install_as_joblib()\n"
        "from sklearn.utils.parallel import Parallel\n"
        "from sklearn.datasets import make_classification\n"
        "from sklearn.linear_model import LogisticRegression\n"
        "from sklearn.model_selection import cross_val_score\n"
        "assert issubclass(Parallel, fastjob.Parallel)\n"
        "x, y = make_classification(random_state=0)\n"
        "plain = cross_val_score(LogisticRegression(), x, y)\n"
        "both = cross_val_score(LogisticRegression(), x, y, n_jobs=2)\n"
        "print((plain == both).all())"
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


# scikit-learn


@pytest.fixture
def data():
    from sklearn.datasets import make_classification

    return make_classification(n_samples=120, n_features=5, random_state=0)


def forest(features, labels):
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(n_estimators=20, random_state=0)
    return model.fit(features, labels).predict_proba(features)


def bagging(features, labels):
    from sklearn.ensemble import BaggingClassifier

    model = BaggingClassifier(n_estimators=10, random_state=0)
    return model.fit(features, labels).predict_proba(features)


def cross_validation(features, labels):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    return cross_val_score(LogisticRegression(), features, labels, cv=20)


def grid_search(features, labels):
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV

    search = GridSearchCV(Ridge(), {"alpha": [0.1 * i + 0.1 for i in range(10)]}, cv=5)
    search.fit(features, labels)
    return np.append(
        search.cv_results_["mean_test_score"], search.best_params_["alpha"]
    )


def column_transformer(features, labels):
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    columns = [("one", StandardScaler(), [0, 1]), ("two", MinMaxScaler(), [2, 3, 4])]
    return ColumnTransformer(columns).fit_transform(features)


def multi_output(features, labels):
    from sklearn.multioutput import MultiOutputRegressor
    from sklearn.tree import DecisionTreeRegressor

    targets = np.column_stack([labels, features[:, 0], features[:, 1]])
    model = MultiOutputRegressor(DecisionTreeRegressor(random_state=0))
    return model.fit(features, targets).predict(features)


@sklearn_only
@pytest.mark.slow
@pytest.mark.parametrize(
    "work",
    [forest, bagging, cross_validation, grid_search, column_transformer, multi_output],
)
def test_scikit_learn_gets_the_results_of_a_plain_loop(work, data, parallel):
    with joblib.parallel_config(backend="fastjob", n_jobs=2):
        found = work(*data)
    np.testing.assert_array_equal(found, work(*data))


@sklearn_only
def test_an_error_in_scikit_learn_is_its_own(data):
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import cross_val_score

    with (
        joblib.parallel_config(backend="fastjob", n_jobs=2),
        pytest.raises(ValueError, match="solver"),
    ):
        model = Ridge(solver="nonsense")
        cross_val_score(model, *data, error_score="raise")
