"""Backends by name."""

import subprocess
import sys
import types

import pytest

import fastjob
from fastjob import Parallel, delayed, parallel, register_parallel_backend
from fastjob.backends import registry
from fastjob.backends.base import ParallelBackendBase, count_workers
from fastjob.backends.threading import ThreadingBackend


@pytest.fixture(autouse=True)
def registered_names_are_restored(monkeypatch):
    monkeypatch.setattr(registry, "BACKENDS", registry.BACKENDS.copy())
    monkeypatch.setattr(registry, "EXTERNAL_BACKENDS", registry.Backends({}))
    monkeypatch.setattr(registry, "DEFAULT_BACKEND", registry.DEFAULT_BACKEND)
    monkeypatch.setattr(registry, "_process_default", None)


def test_a_registered_factory_is_found_by_its_name():
    made = []

    def factory(**kwargs):
        made.append(kwargs)
        return ThreadingBackend(**kwargs)

    register_parallel_backend("mine", factory)
    results = Parallel(n_jobs=2, backend="mine")(delayed(abs)(-i) for i in range(3))
    assert results == [0, 1, 2]
    assert made == [{"nesting_level": 0}]


def test_the_default_can_be_replaced():
    register_parallel_backend("mine", ThreadingBackend, make_default=True)
    assert isinstance(Parallel()._backend, ThreadingBackend)
    assert parallel.DEFAULT_BACKEND == "mine"


def test_the_default_can_be_set_in_the_module_that_shows_it(monkeypatch):
    monkeypatch.setattr(parallel, "DEFAULT_BACKEND", "threading")
    assert isinstance(Parallel()._backend, ThreadingBackend)
    monkeypatch.undo()
    assert parallel.DEFAULT_BACKEND == "processes"
    assert isinstance(Parallel()._backend, parallel.LokyBackend)


@pytest.mark.parametrize("name", ["nonsense", 3, [], ThreadingBackend])
def test_an_unknown_name_is_refused_with_the_list_of_known_ones(name):
    with pytest.raises(ValueError, match=r"Invalid backend: .*expected one of") as info:
        Parallel(backend=name)
    assert "'processes'" in str(info.value)
    assert "'threading'" in str(info.value)


def test_a_name_or_factory_of_the_wrong_type_is_refused():
    with pytest.raises(TypeError, match="name of a backend is a string"):
        register_parallel_backend(3, ThreadingBackend)
    with pytest.raises(TypeError, match="factory of backend 'mine' is not callable"):
        register_parallel_backend("mine", ThreadingBackend())


@pytest.mark.parametrize("name", ["dask", "ray"])
def test_a_missing_package_is_named_with_the_way_to_get_it(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    home = registry.Home(f"fastjob.backends.{name}", "X", (name,), name)
    registry.EXTERNAL_BACKENDS = registry.Backends({name: home})
    with pytest.raises(ImportError, match=rf"pip install 'fastjob\[{name}\]'"):
        Parallel(backend=name)
    assert f"pip install 'fastjob[{name}]'" in registry.available()[name]


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("loky", "LokyBackend"),
        ("processes", "LokyBackend"),
        ("threading", "ThreadingBackend"),
        ("sequential", "SequentialBackend"),
        ("multiprocessing", "MultiprocessingBackend"),
    ],
)
def test_a_name_stands_for_a_class_that_can_be_derived_from(name, cls):
    assert parallel.BACKENDS[name] is getattr(parallel, cls)

    class Mine(parallel.BACKENDS[name]):
        def effective_n_jobs(self, n_jobs):
            return super().effective_n_jobs(n_jobs)

    register_parallel_backend("mine", Mine)
    assert Parallel(2, backend="mine")(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


def test_the_names_are_known_before_the_classes_are_imported(run_python):
    done = run_python(
        "import sys\n"
        "from fastjob.parallel import BACKENDS, register_parallel_backend\n"
        "register_parallel_backend('mine', dict)\n"
        "print(sorted(BACKENDS), 'mine' in BACKENDS, len(BACKENDS.copy()), BACKENDS)\n"
        "print([m for m in sys.modules if 'backends.' in m])\n"
        "print(BACKENDS['sequential'].__name__, 'fastjob.backends.sequential' in "
        "sys.modules)\n"
    )
    names = ["loky", "mine", "multiprocessing", "processes", "sequential", "threading"]
    assert done.stdout.splitlines() == [
        f"{names} True 6 <backends: processes, loky, threading, sequential, "
        "multiprocessing, mine>",
        "['fastjob.backends.registry', 'fastjob.backends.base']",
        "SequentialBackend True",
    ], done.stderr


def test_the_names_are_those_of_a_mapping():
    known = registry.BACKENDS
    known["mine"] = ThreadingBackend
    assert known.pop("mine") is ThreadingBackend
    assert "mine" not in known
    assert known.get("mine") is None
    with pytest.raises(KeyError):
        known["mine"]


def test_a_registered_name_comes_before_one_of_another_package():
    registry.EXTERNAL_BACKENDS = registry.Backends({"dask": registry.Home("no", "no")})
    with pytest.raises(ImportError, match="'no'"):
        Parallel(backend="dask")
    register_parallel_backend("dask", ThreadingBackend)
    assert type(Parallel(backend="dask")._backend) is ThreadingBackend


def test_available_tells_for_each_name_what_hinders_it():
    class Hindered(ThreadingBackend):
        @classmethod
        def unavailable(cls):
            return "no batteries"

    registry.BACKENDS.clear()
    register_parallel_backend("fine", ThreadingBackend)
    register_parallel_backend("function", lambda **kwargs: ThreadingBackend(**kwargs))
    register_parallel_backend("hindered", Hindered)
    assert fastjob.available() == {
        "fine": None,
        "function": None,
        "hindered": "no batteries",
    }


def test_threads_are_the_default_where_there_can_be_no_processes():
    class NoProcesses(ThreadingBackend):
        @classmethod
        def unavailable(cls):
            return "no fork here"

    registry.BACKENDS["processes"] = NoProcesses
    with pytest.warns(RuntimeWarning, match=r"\(no fork here\): Parallel uses threads"):
        first = Parallel(n_jobs=2)
    assert type(first._backend) is ThreadingBackend
    second = Parallel(n_jobs=2)  # a second warning would be an error
    assert type(second._backend) is ThreadingBackend


def test_a_name_known_to_joblib_is_found_once_joblib_is_imported(monkeypatch):
    class Site(ThreadingBackend):
        pass

    theirs = types.SimpleNamespace(BACKENDS={"site": Site})
    monkeypatch.setitem(sys.modules, "joblib.parallel", theirs)
    assert isinstance(Parallel(backend="site")._backend, Site)
    monkeypatch.setitem(sys.modules, "joblib.parallel", None)
    with pytest.raises(ValueError, match="Invalid backend: site"):
        Parallel(backend="site")


def test_a_backend_class_needs_effective_n_jobs():
    with pytest.raises(TypeError, match="effective_n_jobs"):
        ParallelBackendBase()


@pytest.mark.parametrize(("n_jobs", "count"), [(None, 1), (1, 1), (7, 7)])
def test_a_number_of_workers_is_taken_at_its_word(n_jobs, count):
    assert count_workers(n_jobs) == count


def test_negative_numbers_count_back_from_all_cores(monkeypatch):
    inner = types.SimpleNamespace(core_budget=lambda: 4)
    monkeypatch.setitem(sys.modules, "fastjob.budget", inner)
    assert [count_workers(n) for n in (-1, -2, -4, -9)] == [4, 3, 1, 1]


def test_no_worker_is_refused():
    with pytest.raises(ValueError, match="n_jobs == 0"):
        count_workers(0)


@pytest.mark.parametrize(
    "name",
    [
        "AutoBatchingMixin",
        "BACKENDS",
        "BatchCompletionCallBack",
        "BatchedCalls",
        "DEFAULT_BACKEND",
        "FallbackToBackend",
        "LokyBackend",
        "MultiprocessingBackend",
        "Parallel",
        "ParallelBackendBase",
        "SequentialBackend",
        "ThreadingBackend",
        "cpu_count",
        "delayed",
        "effective_n_jobs",
        "get_active_backend",
        "parallel_backend",
        "parallel_config",
        "register_parallel_backend",
    ],
)
def test_extension_code_finds_the_names_of_joblib_parallel(name):
    assert getattr(parallel, name) is not None
    assert name in parallel.__all__


@pytest.mark.parametrize("module", [fastjob, parallel])
def test_an_unknown_name_is_an_attribute_error(module):
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = module.nonsense


def test_every_public_name_is_there_and_listed():
    for name in fastjob.__all__:
        assert getattr(fastjob, name) is not None
        assert name in dir(fastjob)


HEAVY = ["numpy", "cloudpickle", "psutil", "multiprocessing", "typing", "dataclasses"]


@pytest.mark.parametrize(
    "statement",
    [
        "import fastjob",
        "from fastjob import Parallel, delayed, parallel_config, effective_n_jobs",
    ],
)
def test_importing_brings_in_nothing_heavy(statement):
    code = f"import sys; {statement}; print(*[m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout == "\n"
