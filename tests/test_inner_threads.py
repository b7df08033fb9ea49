"""Native threads inside tasks: caps of worker processes, limits of worker threads."""

from __future__ import annotations

import native_pools as native
import pytest
from native_pools import BLAS, BLIS, MKL, OMP, OVER_OPENMP, TBB

from fastjob import inner_threads

needs_compiler = pytest.mark.skipif(
    native.compiler() is None, reason="stand-ins need a C compiler"
)

# Stand-ins for modules with threads of their own, and what was done to them.
TORCH = """
import sys, types
torch = types.ModuleType("torch")
torch.calls = []
torch.set_num_threads = lambda n: torch.calls.append(n)
torch.get_num_threads = lambda: torch.calls.append("ask") or 1
sys.modules["torch"] = torch
"""
NUMBA = """
import sys, types
numba = types.ModuleType("numba")
numba.calls = []
numba.config = types.SimpleNamespace(NUMBA_NUM_THREADS=4)
numba.now = 4
def set_num_threads(n):
    assert 1 <= n <= 4
    numba.calls.append(n)
    numba.now = n
numba.set_num_threads = set_num_threads
numba.get_num_threads = lambda: numba.now
sys.modules["numba"] = numba
"""


# A thread of a call that has no other.
BEGIN = """
from contextlib import contextmanager
from fastjob.inner_threads import *

@contextmanager
def limited(limit):
    common = None if limit is None else common_limit(limit)
    if common:
        common.begin()
    try:
        with limit_inner_threads(limit, common) as limits:
            yield limits
    finally:
        if common:
            common.end()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("native")


@pytest.fixture
def run(run_python, folder, monkeypatch):
    """Run a script with stand-ins loaded, none of the variables being set."""
    for name in (*inner_threads.VARIABLES, inner_threads.TBB_VARIABLE):
        monkeypatch.delenv(name, raising=False)

    def run_script(body, **sources):
        done = run_python(native.script(folder, BEGIN + body, **sources))
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    return run_script


# ------------------------------------------------------------- worker processes


def test_every_variable_is_set_for_libraries_to_come(run):
    run(
        """
apply_worker_caps(3, False)
assert set(VARIABLES) >= {
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS",
    "NUMBA_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS", "POLARS_MAX_THREADS",
}
assert {os.environ[name] for name in VARIABLES} == {"3"}
assert os.environ["ENABLE_IPC"] == "1"
"""
    )


@needs_compiler
def test_a_warm_worker_changes_its_caps_and_goes_back_to_the_default(run):
    run(
        """
os.environ.update(dict.fromkeys(VARIABLES, "1"))   # as the nursery sets them
user_environment({})
for limit, explicit in ((1, True), (4, True), (2, False), (1, True), (2, False)):
    apply_worker_caps(limit, explicit)
    assert numbers() == [limit] * 5
    assert {os.environ[name] for name in VARIABLES} == {str(limit)}
    assert user_settings() == {}
""",
        blas=BLAS,
        omp=OMP,
        mkl=MKL,
        blis=BLIS,
        tbb=TBB,
    )


@needs_compiler
def test_what_the_user_set_wins_over_the_share_and_not_over_a_number(run):
    run(
        """
user = {"OMP_NUM_THREADS": "5,2", "MKL_NUM_THREADS": "7", "ENABLE_IPC": "0"}
user_environment({**user, "HOME": "/", "OPENBLAS_NUM_THREADS": "all"})
apply_worker_caps(2, False)
assert numbers() == [2, 5, 5, 7]
assert {name: os.environ[name] for name in user} == user
assert os.environ["OPENBLAS_NUM_THREADS"] == "all"
assert os.environ["BLIS_NUM_THREADS"] == "2"
apply_worker_caps(3, True)
assert numbers() == [3, 3, 3, 3]
assert {os.environ[name] for name in VARIABLES} == {"3"}
assert os.environ["ENABLE_IPC"] == "0"
apply_worker_caps(2, False)
assert numbers() == [2, 5, 5, 7]
user_environment({})
apply_worker_caps(2, False)
assert numbers() == [2, 2, 2, 2]
assert os.environ["ENABLE_IPC"] == "1"
""",
        blas=BLAS,
        over=OVER_OPENMP,
        omp=OMP,
        mkl=MKL,
    )


def test_what_fastjob_wrote_is_never_taken_for_the_users(run):
    run(
        """
os.environ["OMP_NUM_THREADS"] = "6"
assert user_settings() == {"OMP_NUM_THREADS": "6"}
user_environment(user_settings())
apply_worker_caps(2, True)
assert os.environ["OMP_NUM_THREADS"] == "2"
assert user_settings() == {"OMP_NUM_THREADS": "6"}     # for workers of this worker
os.environ["MKL_NUM_THREADS"] = "9"                     # a task does so
assert user_settings() == {"OMP_NUM_THREADS": "6", "MKL_NUM_THREADS": "9"}
del os.environ["OMP_NUM_THREADS"]
assert user_settings() == {"MKL_NUM_THREADS": "9"}
"""
    )


def test_the_environment_of_a_worker_is_the_callers_with_the_caps(run):
    run(
        """
user_environment({"OMP_NUM_THREADS": "6"})
environ = worker_environment({"A": "b", "OMP_NUM_THREADS": "6"}, 2, False)
assert environ["A"] == "b" and environ["OMP_NUM_THREADS"] == "6"
assert environ["MKL_NUM_THREADS"] == "2" and environ["ENABLE_IPC"] == "1"
assert "A" not in os.environ
"""
    )


@needs_compiler
def test_unchanged_caps_touch_nothing(run):
    run(
        """
import sys
apply_worker_caps(2, False)
ctypes.CDLL(blas).openblas_set_num_threads(3)           # a task does so
events = []
sys.addaudithook(lambda event, args: events.append(event))
for _ in range(100):
    user_environment({})
    apply_worker_caps(2, False)
assert numbers() == [3]
assert not [event for event in events if event.startswith(("open", "os."))], events
apply_worker_caps(1, False)
assert numbers() == [1]
""",
        blas=BLAS,
    )


@needs_compiler
def test_a_library_that_a_task_loads_is_capped_and_others_are_left_alone(run, folder):
    path = native.compiled(folder, tbb=TBB)["tbb"]
    run(
        f"""
apply_worker_caps(2, False)
ctypes.CDLL(blas).openblas_set_num_threads(3)
ctypes.CDLL({str(path)!r})
assert numbers() == [3, 9]
apply_worker_caps(2, False)
assert numbers() == [3, 2]
""",
        blas=BLAS,
    )


def test_torch_is_set_when_it_is_imported(run):
    run(
        TORCH
        + """
apply_worker_caps(2, False)
apply_worker_caps(2, False)
user_environment({"OMP_NUM_THREADS": "5"})
apply_worker_caps(2, False)
apply_worker_caps(3, True)
assert torch.calls == [2, 5, 3], torch.calls
"""
    )


def test_numba_is_lowered_and_raised_within_what_it_started_with(run):
    run(
        NUMBA
        + """
apply_worker_caps(8, False)
assert numba.calls == []          # no limit: asking would start its threads
apply_worker_caps(2, False)
apply_worker_caps(8, False)
user_environment({"NUMBA_NUM_THREADS": "3"})
apply_worker_caps(1, False)
assert numba.calls == [2, 4, 3], numba.calls
# A changed variable would make it raise when it compiles next.
assert os.environ["NUMBA_NUM_THREADS"] == "4"
assert os.environ["OMP_NUM_THREADS"] == "1"
"""
    )


def test_modules_that_are_being_imported_are_left_alone(run):
    run(
        """
import sys, types
sys.modules["torch"] = types.ModuleType("torch")
sys.modules["numba"] = types.ModuleType("numba")
apply_worker_caps(2, False)
with limited(1):
    pass
assert os.environ["NUMBA_NUM_THREADS"] == "2"
"""
    )


def test_the_module_imports_neither_numpy_nor_psutil(run):
    run(
        "import sys; assert not {'numpy', 'psutil', 'cloudpickle', "
        "'multiprocessing'} & set(sys.modules)"
    )


# --------------------------------------------------------------- thread backend

CALLS = """
class Call:
    '''One worker thread of a call, inside until it is told to leave.'''

    def __init__(self, limit):
        self.leave, inside = threading.Event(), threading.Event()

        def serve():
            with limited(limit):
                self.seen = numbers()
                inside.set()
                assert self.leave.wait(60)
            self.after = numbers()

        self.thread = threading.Thread(target=serve)
        self.thread.start()
        assert inside.wait(60)

    def end(self):
        self.leave.set()
        self.thread.join()
"""


@needs_compiler
def test_a_worker_thread_sets_its_own_number_and_holds_the_common_one(run):
    run(
        CALLS
        + """
call = Call(1)
assert call.seen == [1, 1, 1, 1]
assert numbers() == [1, 6, 8, 1]
call.end()
assert call.after == numbers() == [4, 6, 8, 1]
""",
        blas=BLAS,
        omp=OMP,
        mkl=MKL,
        blis=BLIS,
    )


@needs_compiler
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_overlapping_calls_hold_the_least_until_the_last_has_ended(order, run):
    run(
        CALLS
        + f"""
limits = [2, 1, 3]
calls = {{}}
for limit in limits:
    calls[limit] = Call(limit)
    assert numbers()[0] == min(calls)
    assert calls[limit].seen[1] == limit
for i in {order}:
    calls.pop(limits[i]).end()
    assert numbers()[0] == min(calls, default=4), (i, numbers())
assert numbers() == [4, 6, 1]
""",
        blas=BLAS,
        omp=OMP,
        blis=BLIS,
    )


@needs_compiler
def test_threads_of_one_call_hold_the_number_until_the_last_has_left(run):
    run(
        CALLS
        + """
first, second = Call(2), Call(2)
first.end()
assert numbers() == [2]
second.end()
assert numbers() == [4]
""",
        blas=BLAS,
    )


@needs_compiler
def test_a_limit_that_a_task_sets_itself_holds_within_the_block(run):
    run(
        """
with limited(1):
    with threadpool_limits(3):
        assert numbers() == [3, 3]
    assert numbers() == [1, 1]
assert numbers() == [4, 6]
""",
        blas=BLAS,
        omp=OMP,
    )


@needs_compiler
def test_without_a_limit_nothing_is_changed(run):
    run(
        "with limited(None):\n    assert numbers() == [4, 6]\n"
        "assert numbers() == [4, 6]\n",
        blas=BLAS,
        omp=OMP,
    )


@needs_compiler
def test_in_a_worker_process_its_threads_have_its_caps(run):
    run(
        """
user_environment({"MKL_NUM_THREADS": "3"})
apply_worker_caps(2, False)

def seen():
    with limited(None):
        return numbers()

assert in_thread(numbers) == [2, 6, 3]
assert in_thread(seen) == [2, 2, 3]
assert numbers() == [2, 2, 3]
""",
        blas=BLAS,
        omp=OMP,
        mkl=MKL,
    )


@needs_compiler
def test_a_library_loaded_inside_of_the_block_is_limited_after_a_refresh(run, folder):
    path = native.compiled(folder, omp=OMP)["omp"]
    run(
        f"""
with limited(1) as limits:
    ctypes.CDLL({str(path)!r})
    assert numbers() == [1, 6]
    limits.refresh()
    assert numbers() == [1, 1]
assert numbers() == [4, 6]
""",
        blas=BLAS,
    )


@needs_compiler
def test_the_number_is_restored_when_the_block_raises(run):
    run(
        "try:\n    with limited(1):\n        raise KeyError\n"
        "except KeyError:\n    pass\n"
        "assert numbers() == [4, 6]\n",
        blas=BLAS,
        omp=OMP,
    )


@needs_compiler
def test_torch_is_asked_before_a_thread_is_limited(run):
    run(
        TORCH
        + """
torch.get_num_threads = lambda: ctypes.CDLL(omp).omp_set_num_threads(16)
with limited(1):
    assert numbers() == [1]
""",
        omp=OMP,
    )


def test_numba_is_limited_in_the_thread_and_restored(run):
    run(
        NUMBA
        + """
with limited(4):
    assert numba.calls == []
with limited(2):
    assert numba.now == 2
assert numba.now == 4
"""
    )


@needs_compiler
def test_a_child_forked_while_a_limit_changes_can_limit_too(run):
    run(
        """
from fastjob._core import threadpools
held, done = threading.Event(), threading.Event()

def hold():
    with threadpools._common_lock:
        held.set()
        assert done.wait(60)

thread = threading.Thread(target=hold)
thread.start()
assert held.wait(60)
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
child = os.fork()
if child == 0:
    with limited(1):
        os._exit(0 if numbers() == [1] else 1)
status = os.waitpid(child, 0)[1]
done.set()
thread.join()
assert status == 0
""",
        blas=BLAS,
    )


ENGINE = """
import gc
from fastjob._core.call import Call
from fastjob._core.delayed import delayed
from fastjob._core.threads import ThreadEngine
from fastjob import inner_threads

class Late(inner_threads.limit_inner_threads):
    # A thread that has not left before it is told to.
    leave = threading.Event()
    left = threading.Semaphore(0)

    def __exit__(self, *exc_info):
        assert self.leave.wait(60)
        super().__exit__(*exc_info)
        self.left.release()

inner_threads.limit_inner_threads = Late

def engine(**options):
    return ThreadEngine(Call(2, ahead=4, inner_max_num_threads=1, **options))

def fail():
    raise KeyError

begun = threading.Semaphore(0)

def wait():
    begun.release()
    assert Late.leave.wait(60)

def both_wait():
    # So that none is changing limits: whoever closes or drops the results while one
    # is leaves their change to that thread.
    assert begun.acquire(timeout=60)
    assert begun.acquire(timeout=60)
"""
ENDINGS = {
    "done": "assert engine().run([delayed(numbers)()] * 3) == [[1, 1, 1]] * 3",
    "error": """
try:
    engine().run([delayed(fail)(), delayed(wait)()])
except KeyError:
    pass
""",
    "timeout": """
import warnings
warnings.simplefilter("ignore")
(result,) = engine(timeout=0.01, return_errors=True).run([delayed(wait)()])
assert "TaskTimeoutError" in repr(result), result
""",
    "read": """
results = engine().stream([delayed(numbers)()] * 3)
assert list(results) == [[1, 1, 1]] * 3
""",
    "closed": """
results = engine().stream([delayed(wait)()] * 3)
both_wait()
assert numbers() == [1, 6, 1]
results.close()
""",
    "dropped": """
results = engine().stream([delayed(wait)()] * 3)
both_wait()
del results
""",
    "collected while limits change": """
from fastjob._core import threadpools
cycle = [engine().stream([delayed(wait)()] * 3)]
cycle.append(cycle)
both_wait()
del cycle
with threadpools._common_lock:
    gc.collect()
other = common_limit(2)
other.begin()
other.end()
""",
    "nested": """
def outer():
    before = numbers()
    engine().run([delayed(abs)(1)])
    return before, numbers()
(result,) = ThreadEngine(Call(2, inner_max_num_threads=3)).run([delayed(outer)()])
assert result == ([3, 3, 3], [3, 3, 3]), result
""",
}


@needs_compiler
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_call_is_over_with_no_limit_left_though_its_threads_are_late(ending, run):
    end = """
assert numbers() == [4, 6, 1], numbers()
Late.leave.set()
assert Late.left.acquire(timeout=60)
assert numbers() == [4, 6, 1], numbers()
"""
    run(ENGINE + ENDINGS[ending] + end, blas=BLAS, omp=OMP, blis=BLIS)


@pytest.mark.parametrize("limit", [0, -1, 1 << 31])
def test_a_wrong_limit_is_named(limit):
    with pytest.raises(ValueError, match="inner_max_num_threads must be at least 1"):
        inner_threads.limit_inner_threads(limit)
    with pytest.raises(ValueError, match="inner_max_num_threads must be at least 1"):
        inner_threads.common_limit(limit)
    with pytest.raises(ValueError, match="inner_max_num_threads must be at least 1"):
        inner_threads.apply_worker_caps(limit, True)
