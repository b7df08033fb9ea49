"""Classes that are derived from fastjob's own backends."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastjob import Parallel, delayed
from fastjob.parallel import LokyBackend, ThreadingBackend


def square(x):
    return x * x


def surrounded(native):
    class Surrounded(native):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.log = []

        def start_call(self):
            self.log.append("start")

        def stop_call(self):
            self.log.append("stop")

        @contextlib.contextmanager
        def retrieval_context(self):
            self.log.append("in")
            try:
                yield
            finally:
                self.log.append("out")

    return Surrounded()


@pytest.fixture(params=[ThreadingBackend, LokyBackend])
def native(request):
    return request.param


AROUND = ["start", "in", "out", "stop"]


def test_what_surrounds_a_call_is_called(native):
    own = surrounded(native)
    results = Parallel(2, backend=own)(delayed(square)(i) for i in range(9))
    assert results == [i * i for i in range(9)]
    assert own.log == AROUND


def test_what_surrounds_a_call_ends_with_a_failure(native):
    own = surrounded(native)
    with pytest.raises(ZeroDivisionError):
        Parallel(2, backend=own)(delayed(divmod)(1, i) for i in range(3))
    assert own.log == AROUND


@pytest.mark.parametrize("kind", ["generator", "generator_unordered"])
def test_what_surrounds_a_stream_ends_with_it(native, kind):
    own = surrounded(native)
    parallel = Parallel(2, backend=own, return_as=kind)
    stream = parallel(delayed(square)(i) for i in range(9))
    assert sorted(stream) == [i * i for i in range(9)]
    assert own.log == AROUND
    stream = parallel(delayed(square)(i) for i in range(99))
    next(stream)
    assert own.log == [*AROUND, "start", "in"]
    stream.close()
    assert own.log == AROUND * 2


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_a_call_that_cannot_begin_is_ended(native, kind):
    own = surrounded(native)

    def refuse():
        raise OSError("no key")

    own.retrieval_context = refuse
    with pytest.raises(OSError, match="no key"):
        Parallel(2, backend=own, return_as=kind)([delayed(square)(1)] * 2)
    assert own.log == ["start", "stop"]


class OwnPool:
    """What a mixin gives to a class: a pool of its own."""

    def configure(self, n_jobs=1, parallel=None, **options):
        self.pool = ThreadPoolExecutor(n_jobs)
        self.n_batches = 0
        return super().configure(n_jobs, parallel, **options)

    def submit(self, func, callback=None):
        self.n_batches += 1
        future = self.pool.submit(func)
        future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out):
        return out.result()

    def terminate(self):
        self.pool.shutdown()


def test_batches_run_through_a_submit_of_its_own(native):
    class Mine(OwnPool, native):
        pass

    own = Mine()
    parallel = Parallel(2, backend=own)
    assert parallel(delayed(square)(i) for i in range(5)) == [0, 1, 4, 9, 16]
    assert own.n_batches == 5
    assert own.parallel is parallel


def test_there_is_no_submit_to_inherit(native):
    class Mine(native):
        def submit(self, func, callback=None):
            return super().submit(func, callback)

    with pytest.raises(NotImplementedError, match=r"Mine .* which run whole calls"):
        Parallel(2, backend=Mine())([delayed(square)(1)] * 2)


def test_a_plain_subclass_runs_as_the_class_it_is_derived_from(native):
    class Mine(native):
        default_n_jobs = 2

    assert not Mine.by_submit
    assert not Mine.surrounds
    assert Parallel(backend=Mine())(delayed(square)(i) for i in range(3)) == [0, 1, 4]
