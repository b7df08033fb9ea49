"""The configuration around a call: who sets it, who sees it, what tasks inherit."""

import asyncio
import contextvars
import multiprocessing
import pickle
import threading

import pytest

from fastjob import Parallel, config, delayed, parallel_backend, parallel_config
from fastjob.backends.sequential import SequentialBackend
from fastjob.backends.threading import ThreadingBackend
from fastjob.config import active, get_active_backend, nested


@pytest.fixture(autouse=True)
def no_configuration_stays():
    yield
    assert active() == {}


def test_a_with_block_sets_the_backend_and_n_jobs_of_calls_inside_it():
    with parallel_config(backend="threading", n_jobs=3):
        parallel = Parallel()
        assert isinstance(parallel._backend, ThreadingBackend)
        assert parallel.n_jobs == 3
    assert Parallel(backend="threading").n_jobs == 1


def test_the_block_gives_the_configuration_as_a_dict():
    with parallel_config(backend="threading", n_jobs=3) as settings:
        assert settings["n_jobs"] == 3
        assert isinstance(settings["backend"], ThreadingBackend)


def test_an_explicit_argument_wins_even_if_it_is_the_usual_one():
    with parallel_config(verbose=5, max_nbytes=10, n_jobs=3, backend="threading"):
        assert Parallel().verbose == 5
        assert Parallel(verbose=0).verbose == 0
        assert Parallel()._options["max_nbytes"] == 10
        assert Parallel(max_nbytes="1M")._options["max_nbytes"] == 1 << 20
        assert Parallel(n_jobs=2).n_jobs == 2
        assert Parallel(n_jobs=None).n_jobs == 3


def test_blocks_nest_and_what_one_does_not_set_it_inherits():
    with parallel_config(backend="threading", n_jobs=3):
        with parallel_config(n_jobs=5):
            assert Parallel().n_jobs == 5
            assert isinstance(Parallel()._backend, ThreadingBackend)
        with parallel_config(verbose=2):
            assert Parallel().n_jobs == 3
        assert Parallel().n_jobs == 3


def test_a_plain_call_stays_until_it_is_unregistered():
    settings = parallel_config(backend="threading", n_jobs=4)
    try:
        assert Parallel().n_jobs == 4
    finally:
        settings.unregister()
    assert Parallel(backend="threading").n_jobs == 1


def test_an_error_in_the_block_ends_the_configuration():
    with pytest.raises(KeyError), parallel_config(backend="threading"):
        raise KeyError
    assert active() == {}


def test_it_sets_the_options_that_joblib_does_not_have():
    with parallel_config(
        backend="sequential", on_error="return", retries=2, show_values=False
    ):
        parallel = Parallel()
        assert parallel.on_error == "return"
        assert parallel._options["retries"] == 2
        assert parallel._options["show_values"] is False
        results = parallel(delayed(divmod)(1, i) for i in range(2))
    assert isinstance(results[0].exception, ZeroDivisionError)
    assert results[0].attempts == 3
    assert results[1] == (1, 0)


def test_another_thread_starts_without_it():
    seen = []
    with parallel_config(n_jobs=3):
        thread = threading.Thread(target=lambda: seen.append(dict(active())))
        thread.start()
        thread.join()
    assert seen == [{}]


def test_a_copied_context_carries_it_into_a_thread():
    seen = []
    with parallel_config(n_jobs=3):
        context = contextvars.copy_context()
        thread = threading.Thread(
            target=context.run, args=(lambda: seen.append(active()["n_jobs"]),)
        )
        thread.start()
        thread.join()
    assert seen == [3]


def test_asyncio_tasks_inherit_it_and_keep_their_own():
    async def own(n_jobs):
        with parallel_config(n_jobs=n_jobs):
            await asyncio.sleep(0)
            return active()["n_jobs"]

    async def inherited():
        return active()["n_jobs"]

    async def main():
        return await asyncio.gather(inherited(), own(5), own(6), inherited())

    with parallel_config(n_jobs=3):
        assert asyncio.run(main()) == [3, 5, 6, 3]


def test_parallel_backend_asks_for_all_cores():
    with parallel_backend("threading") as (backend, n_jobs):
        assert isinstance(backend, ThreadingBackend)
        assert n_jobs == -1
        assert Parallel().n_jobs == -1


def test_parallel_backend_as_a_plain_call():
    settings = parallel_backend("threading", n_jobs=2)
    assert Parallel().n_jobs == 2
    settings.unregister()


def test_an_instance_can_be_given():
    backend = ThreadingBackend()
    with parallel_config(backend=backend, n_jobs=2):
        assert Parallel()._backend is backend
    assert backend.nesting_level == 0


def test_a_multiprocessing_context_can_be_given():
    context = multiprocessing.get_context("spawn")
    with parallel_config(backend=context):
        backend, _ = get_active_backend()
    assert backend.backend_kwargs == {"context": context}


def test_options_of_the_backend_are_kept_by_it():
    with parallel_config(backend="threading", idle_worker_timeout=7):
        assert Parallel()._options["options"] == {"idle_worker_timeout": 7}


def test_none_as_backend_is_no_backend():
    with parallel_config(backend=None, n_jobs=2):
        assert "backend" not in active()


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, "Invalid backend: nonsense, expected", {"backend": "nonsense"}),
        (ValueError, "initializer=", {"initializer": print}),
        (TypeError, "no option 'nonsense'", {"backend": "threading", "nonsense": 1}),
        (ValueError, "backend= is a name", {"backend": ThreadingBackend(), "x": 1}),
        (
            ValueError,
            "does not accept setting the inner_max_num_threads",
            {"backend": "multiprocessing", "inner_max_num_threads": 1},
        ),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(error, match, arguments):
    with pytest.raises(error, match=match):
        parallel_config(**arguments)
    assert active() == {}


def test_inner_threads_are_given_to_the_backend_or_to_any_backend():
    with parallel_config(backend="threading", inner_max_num_threads=2):
        assert Parallel()._options["inner_max_num_threads"] == 2
    with parallel_config(inner_max_num_threads=3):
        assert Parallel(backend="threading")._options["inner_max_num_threads"] == 3


# prefer and require


def test_a_preference_for_threads_counts_where_no_backend_is_named():
    backend, _ = get_active_backend(prefer="threads")
    assert isinstance(backend, ThreadingBackend)
    with parallel_config(n_jobs=4):
        assert Parallel(prefer="threads").n_jobs == 4
    with parallel_config(backend="sequential"):
        assert isinstance(Parallel(prefer="threads")._backend, SequentialBackend)


def test_shared_memory_overrides_a_configured_process_backend(capsys):
    with parallel_config(backend="multiprocessing", n_jobs=4):
        parallel = Parallel(require="sharedmem")
        assert isinstance(parallel._backend, ThreadingBackend)
        assert parallel.n_jobs == 1
        assert Parallel(require="sharedmem", n_jobs=3).n_jobs == 3
        assert capsys.readouterr().out == ""
        Parallel(require="sharedmem", verbose=10)
    assert capsys.readouterr().out == (
        "Using ThreadingBackend as fastjob backend instead of MultiprocessingBackend "
        "as the latter does not provide shared memory semantics.\n"
    )


def test_shared_memory_keeps_a_backend_that_has_it():
    with parallel_config(backend="threading", n_jobs=4):
        assert Parallel(require="sharedmem").n_jobs == 4


def test_prefer_and_require_can_be_configured():
    with parallel_config(require="sharedmem"):
        assert isinstance(Parallel()._backend, ThreadingBackend)
    with parallel_config(prefer="threads"):
        assert isinstance(Parallel()._backend, ThreadingBackend)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"prefer": "sheep"}, "prefer=sheep is not a valid backend hint"),
        ({"require": "sheep"}, "require=sheep is not a valid backend constraint"),
        ({"prefer": "processes", "require": "sharedmem"}, "inconsistent settings"),
        (
            {"backend": "multiprocessing", "require": "sharedmem"},
            "does not support shared memory",
        ),
    ],
)
def test_inconsistent_wishes_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        Parallel(**arguments)


@pytest.mark.parametrize("key", ["prefer", "require"])
def test_get_active_backend_checks_its_hints(key):
    with pytest.raises(ValueError, match=key):
        get_active_backend(**{key: "sheep"})


# What tasks inherit


def see():
    backend, n_jobs = get_active_backend()
    return type(backend).__name__, backend.nesting_level, n_jobs


def see_below():
    return Parallel(n_jobs=2)(delayed(see)() for _ in range(2))


def test_a_task_in_a_thread_of_the_first_level_sees_a_plain_loop_below():
    # The thread backend of level 0 has threads below it, and those a plain loop.
    outer = Parallel(n_jobs=2, backend="threading")
    assert (
        outer(delayed(see)() for _ in range(2)) == [("ThreadingBackend", 1, None)] * 2
    )
    inner = outer(delayed(see_below)() for _ in range(2))
    assert inner == [[("SequentialBackend", 2, None)] * 2] * 2


@pytest.mark.parametrize("parallel_backend", ["threading", "processes"])
def test_tasks_of_every_backend_have_threads_below_them(parallel_backend):
    with parallel_config(max_nbytes=10, n_jobs=2, verbose=0):
        [seen] = Parallel(backend=parallel_backend)([delayed(see)()])
        [inherited] = Parallel(backend=parallel_backend)([delayed(see_options)()])
    assert seen == ("ThreadingBackend", 1, None)
    assert inherited == {"max_nbytes": 10}


def see_options():
    return {
        key: value
        for key, value in active().items()
        if key in config.DEFAULTS and key not in ("backend", "n_jobs")
    }


def test_one_worker_leaves_the_configuration_as_it_is():
    with parallel_config(backend="threading", n_jobs=3):
        [seen] = Parallel(n_jobs=1)([delayed(see)()])
    assert seen == ("ThreadingBackend", 0, 3)


def test_a_nested_configuration_is_small_plain_data():
    backend = ThreadingBackend(nesting_level=0)
    settings = nested(backend, {})
    assert settings == {"backend": ("threading", 1)}
    assert nested(backend, {}) is settings  # made once
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert nested(ThreadingBackend(nesting_level=1), {}) == {
        "backend": ("sequential", 2)
    }


def test_tasks_inherit_how_data_travels_and_nothing_that_would_count_twice():
    given = {
        "n_jobs": 4,
        "verbose": 5,
        "retries": 3,
        "on_error": "return",
        "temp_folder": "/somewhere",
        "max_nbytes": 10,
        "require": "sharedmem",
    }
    assert nested(ThreadingBackend(nesting_level=0), given) == {
        "backend": ("threading", 1),
        "temp_folder": "/somewhere",
        "max_nbytes": 10,
        "require": "sharedmem",
    }


class Own(SequentialBackend):
    def get_nested_backend(self):
        return self.below


@pytest.mark.parametrize("with_n_jobs", [True, False])
def test_a_backend_may_say_what_is_below_it(with_n_jobs):
    backend = Own()
    below = ThreadingBackend(nesting_level=1)
    backend.below = (below, 3) if with_n_jobs else below
    token = config.restore(nested(backend, {}))
    try:
        assert get_active_backend() == (below, 3 if with_n_jobs else None)
    finally:
        config.reset(token)
