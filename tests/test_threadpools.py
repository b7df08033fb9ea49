"""Native thread pools: found as threadpoolctl finds them, and limits that end well.

Each test loads its libraries in an interpreter of its own.
"""

from __future__ import annotations

import native_pools as native
import pytest
from native_pools import (
    ACCELERATE,
    BLAS,
    BLIS,
    FLEXIBLAS,
    MKL,
    OMP,
    OVER_OPENMP,
    SCIPY,
    TBB,
)

pytestmark = pytest.mark.skipif(
    native.compiler() is None, reason="stand-ins need a C compiler"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("native")


@pytest.fixture
def run(run_python, folder):
    """Run a script with stand-ins loaded in the order they are given."""

    def run_script(body, **sources):
        done = run_python(native.script(folder, body, **sources))
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    return run_script


KNOWN_TO_THREADPOOLCTL = {
    "openblas": BLAS,
    "openblas of scipy": SCIPY,
    "openblas without threads": ("libopenblas.so.0", native.openblas(parallel=0)),
    "openblas over openmp": OVER_OPENMP,
    "openblas of conda": ("openblas.so", native.openblas("", "_64")),
    "libgomp": OMP,
    "libomp": ("libomp.so.5", native.OPENMP_SOURCE),
    "libiomp": ("libiomp5.so", native.OPENMP_SOURCE),
    "mkl": MKL,
    "mkl over tbb": ("libmkl_rt.so", native.mkl(4)),
    "mkl of unknown layer": ("libmkl_rt.so.1", native.mkl(-1)),
    "blis": BLIS,
    "blis with pthreads": ("libblis-mt.so", native.blis(0, 1)),
    "blis without threads": ("libblis.so", native.blis(0, 0)),
    "flexiblas": FLEXIBLAS,
}


# ---------------------------------------------------------------------- finding


@pytest.mark.parametrize("name", KNOWN_TO_THREADPOOLCTL)
def test_a_library_is_described_as_threadpoolctl_describes_it(name, run):
    pytest.importorskip("threadpoolctl")
    run(
        """
import threadpoolctl
theirs = threadpoolctl.threadpool_info()
assert threadpool_info() == theirs, (threadpool_info(), theirs)
before = numbers()
with threadpool_limits(3):
    assert threadpool_info() == threadpoolctl.threadpool_info()
    assert numbers() == [3] * len(theirs)
with threadpoolctl.threadpool_limits(2):
    assert threadpool_info() == threadpoolctl.threadpool_info()
assert numbers() == before
""",
        library=KNOWN_TO_THREADPOOLCTL[name],
    )


@pytest.mark.parametrize("modules", ["numpy", "numpy, scipy.linalg", "sklearn.cluster"])
def test_the_libraries_of_the_field_are_those_threadpoolctl_finds(modules, run_python):
    pytest.importorskip("threadpoolctl")
    for module in modules.split(", "):
        pytest.importorskip(module)
    done = run_python(
        f"import {modules}, threadpoolctl\n"
        "from fastjob._core.threadpools import threadpool_info, threadpool_limits\n"
        "def both():\n"
        "    path = lambda pool: pool['filepath']\n"
        "    ours = sorted(threadpool_info(), key=path)\n"
        "    theirs = sorted(threadpoolctl.threadpool_info(), key=path)\n"
        "    assert ours == theirs, (ours, theirs)\n"
        "    return {pool['num_threads'] for pool in ours}\n"
        "before = both()\n"
        "with threadpool_limits(1):\n"
        "    assert both() == {1}\n"
        "with threadpool_limits(2, user_api='blas'):\n"
        "    both()\n"
        "assert both() == before\n"
        "print(len(threadpool_info()))\n"
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1


FLAVOURS = [
    (prefix, suffix)
    for prefix in ("", "scipy_")
    for suffix in ("", "64_", "_64", "64", "_64_", "_")
]


@pytest.mark.parametrize("prefix, suffix", FLAVOURS)
def test_openblas_is_controlled_whatever_its_symbols_are_called(prefix, suffix, run):
    run(
        """
[pool] = threadpool_info()
assert (pool["version"], pool["architecture"]) == ("0.3.99", "Haswell")
assert pool["num_threads"] == 4
with threadpool_limits({"blas": 2}):
    assert numbers() == [2]
assert numbers() == [4]
""",
        library=("libopenblas.so", native.openblas(prefix, suffix)),
    )


def test_a_library_is_found_by_the_name_behind_a_symbolic_link(run, folder):
    target = native.compiled(folder, blas=BLAS)["blas"]
    link = target.parent / "libcblas.so.3"
    if not link.exists():
        link.symlink_to(target)
    output = run(f"ctypes.CDLL({str(link)!r}); print(threadpool_info()[0]['filepath'])")
    assert output.strip() == str(target)


def test_old_openblas_tells_no_version(run):
    run(
        "assert threadpool_info()[0]['version'] is None",
        library=(
            "libopenblas.so",
            native.openblas().replace("OpenBLAS 0.3.99 ", "", 1),
        ),
    )


def test_tbb_is_found_and_limited(run):
    run(
        """
[pool] = threadpool_info()
assert (pool["user_api"], pool["internal_api"]) == ("tbb", "tbb")
assert (pool["version"], pool["num_threads"]) == ("2099.1.0", 9)
with threadpool_limits(2, user_api="tbb"):
    assert numbers() == [2] == in_thread(numbers)
    with threadpool_limits(5):
        assert numbers() == [5]
    assert numbers() == [2]
assert numbers() == [9]
""",
        library=TBB,
        decoy=("libtbbmalloc.so.2", native.DECOY_SOURCE),
    )


def test_accelerate_has_one_thread_or_all(run):
    run(
        """
os.environ["FASTJOB_MAX_CPU_COUNT"] = "1000"
from fastjob._core.cpu import cpu_count
assert threadpool_info()[0]["internal_api"] == "accelerate"
assert numbers() == [cpu_count()]
with threadpool_limits(1):
    assert numbers() == [1]
    assert in_thread(numbers) == [cpu_count()]
assert numbers() == [cpu_count()]
""",
        library=ACCELERATE,
    )


@pytest.mark.parametrize("name", ["libopenblas", "libmkl_rt", "libgomp", "libtbb"])
def test_a_library_that_is_only_called_like_one_is_passed_over(name, run):
    run(
        "assert threadpool_info() == []",
        library=(f"{name}_notes.so", native.DECOY_SOURCE),
    )


def test_nothing_is_read_again_while_nothing_is_loaded(run):
    run(
        """
import sys
first = loaded_pools()
assert len(first) == 1
events = []
sys.addaudithook(lambda event, args: events.append(event))
looked = []
os.path.realpath = lambda path: looked.append(path)
for _ in range(100):
    assert loaded_pools() is first
assert not events and not looked, (events, looked)
""",
        library=BLAS,
    )


def test_a_library_loaded_later_is_found(run, folder):
    path = native.compiled(folder, omp=OMP)["omp"]
    run(
        f"""
assert numbers() == [4]
before = loaded_pools()
ctypes.CDLL({str(path)!r})
assert numbers() == [4, 6]
assert loaded_pools()[0] is before[0]
""",
        blas=BLAS,
    )


def test_an_unrelated_library_leaves_the_tuple_as_it_was(run, folder):
    decoy = ("libunrelated.so", native.DECOY_SOURCE)
    path = native.compiled(folder, decoy=decoy)["decoy"]
    run(
        f"before = loaded_pools(); ctypes.CDLL({str(path)!r})\n"
        "assert loaded_pools() is before",
        blas=BLAS,
    )


# ---------------------------------------------------------------------- limits


def test_limits_are_restored_when_the_block_raises(run):
    run(
        """
try:
    with threadpool_limits(limits=1) as limiter:
        assert numbers() == [1, 1, 1]
        raise KeyError("in the block")
except KeyError:
    pass
assert numbers() == [4, 6, 8]
assert limiter.get_original_num_threads() == {"blas": 4, "openmp": 6, "tbb": None}
limiter.restore_original_limits()
assert numbers() == [4, 6, 8]
""",
        blas=BLAS,
        omp=OMP,
        mkl=MKL,
    )


def test_limits_by_file_then_prefix_then_api(run):
    run(
        """
limits = {"blas": 2, "libscipy_openblas": 3, mkl: 5, "openmp": None, "other": 1}
with threadpool_limits(limits):
    assert numbers() == [2, 3, 5, 6]
with threadpool_limits(1, user_api="blas"):
    assert numbers() == [1, 1, 1, 6]
with threadpool_limits(1, user_api="openmp"):
    assert numbers() == [4, 4, 8, 1]
assert numbers() == [4, 4, 8, 6]
""",
        blas=BLAS,
        scipy=SCIPY,
        mkl=MKL,
        omp=OMP,
    )


def test_limits_that_were_read_before_are_taken_back(run):
    run(
        """
before = threadpool_info()
threadpool_limits(2)
assert numbers() == [2, 2]
with threadpool_limits(before):
    assert threadpool_info() == before
old = [{"prefix": pool["prefix"], "num_threads": 3} for pool in before]
with threadpool_limits(old):
    assert numbers() == [3, 3]
assert numbers() == [2, 2]
with threadpool_limits(None), threadpool_limits():
    assert numbers() == [2, 2]
""",
        blas=BLAS,
        omp=OMP,
    )


def test_a_plain_call_holds_until_it_is_undone(run):
    run(
        """
limiter = threadpool_limits(2)
assert numbers() == [2]
limiter.unregister()
assert numbers() == [4]
threadpool_limits(3)                      # dropped at once: holds for good
assert numbers() == [3]
with threadpool_limits(1):
    pass
assert numbers() == [3]
""",
        blas=BLAS,
    )


def test_a_plain_call_inside_of_a_block_ends_with_the_block(run):
    run(
        "with threadpool_limits(2):\n"
        "    threadpool_limits(1)\n"
        "    assert numbers() == [1]\n"
        "assert numbers() == [4]\n",
        blas=BLAS,
    )


def test_a_decorated_function_is_limited_at_each_call(run):
    run(
        """
@threadpool_limits.wrap(limits=2, user_api="blas")
def limited(depth):
    '''Its docstring.'''
    assert numbers() == [2]
    if depth:
        limited(depth - 1)
    return numbers()

assert (limited.__name__, limited.__doc__) == ("limited", "Its docstring.")
assert numbers() == [4]
for _ in range(2):
    assert limited(depth=2) == [2]
    assert numbers() == [4]
""",
        blas=BLAS,
    )


@pytest.mark.parametrize("library, expected", [(BLAS, [1, 6]), (OVER_OPENMP, [6, 6])])
def test_sequential_blas_under_openmp(library, expected, run):
    run(
        "with threadpool_limits('sequential_blas_under_openmp'):\n"
        f"    assert numbers() == {expected}\n",
        library=library,
        omp=OMP,
    )


def test_openblas_over_openmp_that_is_not_linked_to_it_is_set_itself(run):
    run(
        "assert threadpool_info()[0]['threading_layer'] == 'openmp'\n"
        "with threadpool_limits(1):\n"
        "    assert numbers() == [1] == in_thread(numbers)\n",
        library=(
            "libopenblas.so",
            native.openblas(parallel=1).replace("PARALLEL 1", "PARALLEL 2"),
        ),
    )


def test_a_setting_reaches_the_thread_or_the_process_as_the_library_keeps_it(run):
    run(
        """
with threadpool_limits(1):
    assert numbers() == [1, 1, 1, 1]
    assert in_thread(numbers) == [1, 6, 8, 1]
scopes = {p.internal_api: (p.per_thread, p.process_wide) for p in loaded_pools()}
assert scopes == {
    "openblas": (False, True), "openmp": (True, False), "mkl": (True, False),
    "blis": (True, True),
}
""",
        blas=BLAS,
        omp=OMP,
        mkl=MKL,
        blis=BLIS,
    )


def test_mkl_is_set_in_all_threads_at_once(run):
    run(
        """
[pool] = loaded_pools()
pool.set_num_threads(3)
assert (numbers(), in_thread(numbers)) == ([3], [8])
pool.set_everywhere(2)
assert (numbers(), in_thread(numbers)) == ([2], [2])
""",
        mkl=MKL,
    )


@pytest.mark.parametrize("first_out", ["first", "second"])
def test_overlapping_threads_leave_no_limit_behind(first_out, run):
    run(
        f"""
first_out = {first_out!r}
inside = {{name: threading.Event() for name in ("first", "second")}}
leave = {{name: threading.Event() for name in inside}}

def hold(name, limit):
    with threadpool_limits(limit):
        inside[name].set()
        assert leave[name].wait(60)

threads = {{}}
for name, limit in (("first", 1), ("second", 2)):
    threads[name] = threading.Thread(target=hold, args=(name, limit))
    threads[name].start()
    assert inside[name].wait(60)
    assert numbers() == [limit]
names = [first_out, *(set(threads) - {{first_out}})]
for name, expected in zip(names, ([1], [4]) if first_out == "second" else ([2], [4])):
    leave[name].set()
    threads[name].join()
    assert numbers() == expected, (name, numbers())
""",
        blas=BLAS,
    )


def test_a_child_forked_while_limits_change_can_change_them_too(run):
    run(
        """
from fastjob._core import pools, threadpools
held, done = threading.Event(), threading.Event()

def hold():
    with threadpools._lock, pools._lock:
        held.set()
        assert done.wait(60)

thread = threading.Thread(target=hold)
thread.start()
assert held.wait(60)
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
child = os.fork()
if child == 0:
    with threadpool_limits(1):
        os._exit(0 if numbers() == [1, 1] else 1)
status = os.waitpid(child, 0)[1]
done.set()
thread.join()
assert status == 0
""",
        blas=BLAS,
        tbb=TBB,
    )


# ------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "limits",
    [
        0,
        -1,
        1 << 31,
        "1",
        "sequential",
        {"blas": 0},
        {"blas": -3},
        [{"filepath": "/x", "num_threads": 0}],
        [{"num_threads": 1}],
        [{"prefix": "libomp"}],
        [1],
    ],
)
def test_a_wrong_value_is_named(limits):
    from fastjob._core.threadpools import threadpool_limits

    with pytest.raises(ValueError, match="limits"):
        threadpool_limits(limits)
    with pytest.raises(ValueError, match="limits"):
        threadpool_limits.wrap(limits)


@pytest.mark.parametrize("limits", [1.0, object(), {"blas": "1"}, {1, 2}])
def test_a_wrong_type_is_named(limits):
    from fastjob._core.threadpools import threadpool_limits

    with pytest.raises(TypeError, match="limits"):
        threadpool_limits(limits)


@pytest.mark.parametrize("user_api", ["mkl", "", 1, ["blas"]])
def test_an_unknown_api_is_named(user_api):
    from fastjob._core.threadpools import threadpool_limits

    with pytest.raises(ValueError, match="user_api must be one of blas, openmp, tbb"):
        threadpool_limits(1, user_api=user_api)


def test_a_wrong_value_changes_nothing(run):
    run(
        "try:\n"
        "    threadpool_limits({'blas': 1, 'openmp': 0})\n"
        "except ValueError:\n"
        "    pass\n"
        "assert numbers() == [4, 6]\n",
        blas=BLAS,
        omp=OMP,
    )
