"""What refers to ``__main__``, and must be pickled by value, and what only names it."""

SCRIPT = """
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
    done = run_python(SCRIPT)
    assert (done.stdout, done.stderr) == ("15\n", "")
