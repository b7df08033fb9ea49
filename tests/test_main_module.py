"""What is defined in ``__main__``, on standard input or with -c runs in workers."""

from __future__ import annotations

import pytest

SOURCE = """
import os
from fastjob import Parallel, delayed

runs = open("runs", "a")
runs.write("x")
runs.close()

FACTOR = 3

class Point:
    def __init__(self, x):
        self.x = x
    def moved(self, by):
        return Point(self.x + by)
    def __eq__(self, other):
        return type(self) is type(other) and self.x == other.x

class Trouble(Exception):
    pass

def scaled(x):
    return FACTOR * x

def recursive(n):
    return 1 if n == 0 else n * recursive(n - 1)

def make(x):
    return Point(x)

def check(point):
    return isinstance(point, Point), type(point) is Point

def trouble(i):
    raise Trouble(i)

def outer(k):
    def inner(x):
        return scaled(x) + k
    return inner

parallel = Parallel(n_jobs=2)
assert parallel(delayed(scaled)(i) for i in range(20)) == [3 * i for i in range(20)]
assert parallel(delayed(recursive)(i) for i in range(5)) == [1, 1, 2, 6, 24]
assert parallel(delayed(outer(k))(1) for k in range(5)) == [3, 4, 5, 6, 7]
assert parallel(delayed(lambda x: Point(x).x)(i) for i in range(5)) == [0, 1, 2, 3, 4]

made = parallel(delayed(make)(i) for i in range(10))
assert all(type(p) is Point for p in made)
assert [p.x for p in made] == list(range(10))
assert parallel(delayed(check)(p) for p in made) == [(True, True)] * 10
assert parallel(delayed(p.moved)(1) for p in made) == [Point(i + 1) for i in range(10)]
try:
    parallel(delayed(trouble)(i) for i in range(4))
except Trouble as error:
    assert len(error.args) == 1
else:
    raise AssertionError("no Trouble")

# Out-of-band buffers before and after what is pickled by value, and within it.
import numpy as np
large = np.arange(100_000.)
behind = large[::-1].copy()
def both(first, point, function, second, keyword=None):
    assert type(point) is Point
    return first[1] + function(second[0]) + keyword[0].x
for _ in range(2):
    found = parallel(
        delayed(both)(large, Point(i), scaled, behind, keyword=[Point(i)])
        for i in range(4)
    )
    assert found == [1 + 3 * 99_999. + i for i in range(4)], found
class Holder:
    held = large
    def __init__(self):
        self.own = behind
def look(first, holder):
    return first[2] + holder.held[3] + holder.own[0]
assert parallel(delayed(look)(large, Holder()) for i in range(3)) == [100_004.] * 3

# What the caller redefines is what runs.
FACTOR = 5
assert parallel(delayed(scaled)(i) for i in range(20)) == [5 * i for i in range(20)]
def scaled(x):
    return -x
assert parallel(delayed(scaled)(i) for i in range(20)) == [-i for i in range(20)]
class Point(Point):
    def moved(self, by):
        return "new"
assert parallel([delayed(Point(1).moved)(1)] * 3) == ["new"] * 3
print("right")
"""


@pytest.mark.parametrize("how", ["script", "stdin", "-c", "-m"])
def test_main_needs_no_guard_and_runs_once(how, run_python, tmp_path):
    if how == "script":
        done = run_python(SOURCE)
    elif how == "stdin":
        done = run_python("-", stdin=None, input=SOURCE)
    elif how == "-c":
        done = run_python("-c", SOURCE)
    else:
        (tmp_path / "as_module.py").write_text(SOURCE)
        done = run_python("-m", "as_module")
    assert (done.stdout, done.stderr, done.returncode) == ("right\n", "", 0)
    assert (tmp_path / "runs").read_text() == "x"


def test_a_guard_does_no_harm(run_python):
    done = run_python(
        "from fastjob import Parallel, delayed\n"
        "def f(x):\n"
        "    return x + 1\n"
        "if __name__ == '__main__':\n"
        "    print(Parallel(2)(delayed(f)(i) for i in range(3)))\n"
    )
    assert (done.stdout, done.stderr) == ("[1, 2, 3]\n", "")


def test_an_embedded_interpreter_is_told_what_to_do(run_python):
    done = run_python(
        "import sys\n"
        "sys.executable = ''\n"
        "from fastjob import Parallel, delayed, errors\n"
        "try:\n"
        "    Parallel(2, 'processes')(delayed(abs)(i) for i in range(3))\n"
        "except errors.NurseryError as error:\n"
        "    print('sys.executable' in str(error))\n"
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_an_executable_that_cannot_be_started_is_a_clear_error(run_python):
    done = run_python(
        "import sys\n"
        "good, sys.executable = sys.executable, '/nowhere/python'\n"
        "from fastjob import Parallel, delayed, errors\n"
        "try:\n"
        "    Parallel(2)(delayed(abs)(i) for i in range(3))\n"
        "except errors.NurseryError as error:\n"
        "    print('/nowhere/python' in str(error))\n"
        "sys.executable = good\n"
        "print(Parallel(2)(delayed(abs)(i) for i in range(3)))\n"
    )
    assert (done.stdout, done.stderr) == ("True\n[0, 1, 2]\n", "")


@pytest.mark.parametrize(
    "options", [["-O"], ["-B"], ["-X", "dev"], ["-X", "utf8"], ["-I"]]
)
def test_interpreter_options_reach_the_workers(options, run_python, tmp_path):
    script = tmp_path / "flags.py"
    paths = [str(p) for p in __import__("sys").path if p]
    script.write_text(
        f"import sys\nsys.path[:] = {paths!r}\n"
        "from fastjob import Parallel, delayed\n"
        "def flags():\n"
        "    return [sys.flags.optimize, sys.flags.dont_write_bytecode,\n"
        "            sys.flags.dev_mode, sys.flags.utf8_mode]\n"
        "assert Parallel(2)([delayed(flags)()] * 3) == [flags()] * 3\n"
        "print('right')\n"
    )
    done = run_python(*options, str(script))
    assert (done.stdout, done.stderr) == ("right\n", "")


def test_a_script_that_reads_standard_input_keeps_it(run_python):
    """The nursery's own standard input is not the caller's."""
    done = run_python(
        "import sys\n"
        "from fastjob import Parallel, delayed\n"
        "first = sys.stdin.readline()\n"
        "def read():\n"
        "    return sys.stdin.read()\n"
        "print(Parallel(2)([delayed(read)()] * 2), [first], [sys.stdin.read()])\n",
        stdin=None,
        input="one\ntwo\n",
    )
    assert (done.stdout, done.stderr) == ("['', ''] ['one\\n'] ['two\\n']\n", "")


ONE_WORLD = """
import os
import numpy as np
from fastjob import Parallel, delayed
from fastjob._core.capture import Capture
from fastjob.backends import process_engine
from fastjob.errors import TerminatedWorkerError

def rbf(x):
    return x

def linear(x):
    return -x

HANDLERS = {rbf: "rbf", linear: "linear"}
THRESHOLD = 0

class Base:
    def above(self, x):
        return x > THRESHOLD

class Model(Base):
    def __init__(self, rows=0):
        self.rows = [str(i) for i in range(rows)]

def is_rbf(kernel):
    return kernel is rbf

def handler(kernel):
    return HANDLERS[kernel]

def handler_within(options, *, kernel):
    return HANDLERS[options[0][0]], HANDLERS[kernel]

def itself(f):
    return f is itself

def fit(model, x, threshold):
    global THRESHOLD
    THRESHOLD = threshold
    assert isinstance(model, Model)
    return model.above(x)

def size(model):
    return type(model) is Model, len(model.rows)

def fail(kernel):
    raise ValueError(HANDLERS[kernel])

def die(kernels):
    os._exit(kernels.index(rbf))

class Counted(Model):
    pass

def first(counted):
    return isinstance(counted, Counted), counted.rows[0]

def second(counted):
    return isinstance(counted, Counted), counted.rows[1]

for batch_size in "auto", 1, 10:
    parallel = Parallel(2, "processes", batch_size=batch_size)
    kernels = rbf, linear, rbf
    assert parallel(delayed(is_rbf)(k) for k in kernels) == [True, False, True]
    names = ["rbf", "linear", "rbf"]
    assert parallel(delayed(handler)(k) for k in kernels) == names
    assert parallel(delayed(handler_within)([[k]], kernel=k) for k in kernels) == [
        (name, name) for name in names]
    assert parallel(delayed(itself)(itself) for _ in range(3)) == [True] * 3
    for rows in 0, 50_000:
        model = Model(rows)
        assert parallel(delayed(fit)(model, 5, t) for t in (1, 10, 3, 20)) == [
            True, False, True, False]
        mixed = parallel(task for k in (rbf, linear) for task in (
            delayed(is_rbf)(k), delayed(size)(model), delayed(handler)(k)))
        assert mixed == [True, (True, rows), "rbf", False, (True, rows), "linear"]
    try:
        parallel(delayed(fail)(k) for k in (rbf, rbf))
    except ValueError as error:
        assert str(error) == "rbf"
        assert "kernel=<function rbf" in str(error.__cause__), error.__cause__
    else:
        raise AssertionError("no error")
    try:
        parallel(delayed(die)([k]) for k in (rbf, rbf))
    except TerminatedWorkerError as error:
        assert "die([<function rbf>])" in str(error), error
    else:
        raise AssertionError("no error")

# A large object that two functions take in turn is pickled for the first of them. An
# array in it that is not small: only pickling it again tells whether it has changed.
captures = []
def make(*args):
    captures.append(Capture(*args))
    return captures[0]
process_engine.Capture = make
counted = Counted(50_000)
counted.array = np.zeros(2000)
tasks = [delayed(f)(counted) for _ in range(10) for f in (first, second)]
assert Parallel(2, "processes")(tasks) == [(True, "0"), (True, "1")] * 10
assert captures[0].bytes_pickled < 30 * 400_000, captures[0].bytes_pickled
assert captures[0].n_constants == 3, captures[0].n_constants
print("right")
"""


def test_what_a_function_names_is_also_what_it_is_given(run_python):
    done = run_python(ONE_WORLD)
    assert (done.stdout, done.stderr, done.returncode) == ("right\n", "", 0)


# What refers to ``__main__`` must be pickled by value; what only names it need not be.
BY_VALUE = """
import pickle
from fastjob._core.pickling import dumps

class A:
    pass

def f():
    pass

MIX = ["x", 1, 1.5, -3, b"__main__", 2**80, 10**6, 70000, {1}, frozenset([2]),
       bytearray(b"__main__"), {"__main__": None}, (), (1, 2, 3, 4), True, "x" * 300]
FILTERS = [("ignore", None, Warning, "__main__", 0), ("default", "__main__", int)]
MANY = [str(i) for i in range(3000)]
by_value = {
    "class": A,
    "instance": A(),
    "function": f,
    "after the text": ["__main__", A()],
    "after filters": [FILTERS, A()],
    "after many": [MANY, "__main__", MANY[:10], A()],
    "in a mix": [MIX, f],
    "twice": [A(), A, A()],
}
by_name = {
    "text": "__main__",
    "texts": ["__main__", "_" + "_main__"],
    "filters": FILTERS,
    "mix": [MIX, len, int],
    "text before globals": ["__main__", len, dict, "__main__", A.__module__, print],
    "many": [MANY, "__main__", MANY[:300], len],
    "bytes that hold a pickle": pickle.dumps(A()),
}
for name, value in by_value.items():
    assert dumps(value)[:1] == b"C", name
for name, value in by_name.items():
    assert dumps(value)[:1] != b"C", name
print(len(by_value) + len(by_name))
"""


def test_only_globals_of_main_are_pickled_by_value(run_python):
    done = run_python(BY_VALUE)
    assert (done.stdout, done.stderr) == ("15\n", "")


REGISTERED = """
import sys
import types
import cloudpickle
from fastjob import Parallel, delayed
from fastjob._core.pickling import dumps
from fastjob._core.snapshot import Opaque, Snapshot

local = types.ModuleType("only_here")
sys.modules["only_here"] = local
exec('''
class Sum:
    def __init__(self, x):
        self.x = x
    def plus(self, y):
        return Sum(self.x + y)
def ten(x):
    return 10 * x
''', vars(local))

if __name__ == "__main__":
    cloudpickle.register_pickle_by_value(local)
    p = Parallel(2, "processes")
    print(p(delayed(local.ten)(i) for i in range(3)))
    sums = p(delayed(local.Sum(i).plus)(1) for i in range(3))
    print([type(s) is local.Sum and s.x for s in sums])
    print(p(delayed(lambda f, i: f(i))(local.ten, i) for i in range(3)))
    try:
        Snapshot([local.ten])
    except Opaque:
        print("its globals are looked at")
    cloudpickle.unregister_pickle_by_value(local)
    print(dumps(local.ten)[:1] == b"C")
"""


def test_a_module_that_cloudpickle_was_told_to_pickle_by_value_is(run_python):
    done = run_python(REGISTERED)
    assert (done.stdout, done.stderr) == (
        "[0, 10, 20]\n[1, 2, 3]\n[0, 10, 20]\nits globals are looked at\nFalse\n",
        "",
    )


FRAME = """
import pandas as pd
from fastjob import Parallel, delayed

class P:
    def __init__(self, x):
        self.x = x

def total(frame, i):
    return sum(p.x for p in frame["p"]) + i

if __name__ == "__main__":
    frame = pd.DataFrame({"p": [P(1), P(2)], "q": [1.0, 2.0]})
    p = Parallel(2, "processes")
    print(p(delayed(total)(frame, i) for i in range(3)))
    print(p(delayed(total)({"p": frame["p"]}, i) for i in range(3)))
"""


def test_a_frame_may_hold_what_is_defined_in_main(run_python):
    pytest.importorskip("pandas")
    done = run_python(FRAME)
    assert (done.stdout, done.stderr) == ("[3, 4, 5]\n[3, 4, 5]\n", "")
