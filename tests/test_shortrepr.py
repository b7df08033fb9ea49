"""Short texts of values, also of those that resist."""

import dataclasses
import decimal
import functools
import threading
from collections import defaultdict, deque, namedtuple

import numpy as np
import pytest

from fastjob import shortrepr
from fastjob.shortrepr import cut, function_name, short_arguments, short_reprs


class Raises:
    def __repr__(self):
        raise ValueError("no")


class Exits:
    def __repr__(self):
        raise SystemExit


class Recurses:
    def __repr__(self):
        return repr(self)


class NoString:
    def __repr__(self):
        return 3


class Wild(list):
    def __iter__(self):
        raise ValueError

    def __len__(self):
        raise ValueError

    def __repr__(self):
        raise ValueError


class Liar:
    @property
    def __class__(self):
        raise KeyError


@dataclasses.dataclass
class Data:
    numbers: list
    hidden: int = dataclasses.field(default=1, repr=False)


Point = namedtuple("Point", "x y")
ITSELF: list = []
ITSELF.append(ITSELF)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (1.5, "1.5"),
        (True, "True"),
        (range(3), "range(0, 3)"),
        ("a'b", '"a\'b"'),
        (list(range(9)), "[0, 1, 2, 3, 4, 5, ... 9 in all]"),
        ((1,), "(1,)"),
        (set(), "set()"),
        (frozenset({1}), "frozenset({1})"),
        (deque([1]), "deque([1])"),
        ({1: {2: {3: {4: 5}}}}, "{1: {2: {3: {...}}}}"),
        (defaultdict(list, {1: []}), "defaultdict({1: []})"),
        (Point(1, 2), "Point(1, 2)"),
        (ITSELF, "[[[[...]]]]"),
        (10**1000, "<int of 3322 bits>"),
        (np.float64(2), "2.0"),
        (np.arange(3), "array([0, 1, 2])"),
        (np.zeros((9, 2)), "<array of shape (9, 2), float64>"),
        (len, "<function len>"),
        (int, "<class int>"),
        (object(), "<object object>"),
        (decimal.Decimal(3), "Decimal('3')"),
        ([decimal.Decimal(3)], "[Decimal('3')]"),
    ],
)
def test_a_value_is_written_short(value, text):
    assert short_reprs([value]) == [text]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Raises(), "Raises, its repr raised ValueError"),
        ([Raises()], "[<"),
        (Exits(), "its repr raised SystemExit"),
        (Recurses(), "its repr raised RecursionError"),
        (NoString(), "its repr raised TypeError"),
        (Wild([1]), "Wild([1])"),
        (Data([0] * 10**6), "numbers=[0, 0, 0, 0, 0, 0, ... 1000000 in all])"),
    ],
)
def test_a_value_that_resists_breaks_nothing(value, words):
    (text,) = short_reprs([value])
    assert words in text
    assert len(text) <= shortrepr.MAX_CHARS


def test_a_value_that_lies_about_its_class_is_named_by_its_type():
    assert short_reprs([Liar()]) == [f"<{__name__}.Liar object>"]


def test_a_huge_text_keeps_both_ends_and_is_never_written_out():
    text = short_reprs(["a" + "x" * 10**7 + "z"])[0]
    assert text.startswith("'ax")
    assert text.endswith("xz'")
    assert len(text) == shortrepr.MAX_CHARS


class Loops:
    def __repr__(self):
        while True:
            pass


class Waits:
    def __init__(self):
        self.go = threading.Event()

    def __repr__(self):
        self.go.wait()
        return "late"


def test_a_repr_that_never_ends_is_ended(monkeypatch):
    monkeypatch.setattr(shortrepr, "SECONDS", 0.05)
    before = set(threading.enumerate())
    texts = short_reprs([decimal.Decimal(1), Loops(), decimal.Decimal(2)])
    assert texts[0] == "Decimal('1')"
    assert "Loops" in texts[1]
    for thread in set(threading.enumerate()) - before:
        thread.join()  # the trace function ends it; the test hangs if it does not


def test_a_repr_that_waits_outside_python_is_abandoned(monkeypatch):
    monkeypatch.setattr(shortrepr, "SECONDS", 0.05)
    before = set(threading.enumerate())
    value = Waits()
    (text,) = short_reprs([value])
    assert "Waits object" in text
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon
    value.go.set()
    thread.join()


def test_without_threads_only_types_are_shown(monkeypatch):
    def fail(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    assert short_reprs([decimal.Decimal(3), 4]) == ["<decimal.Decimal object>", "4"]


def test_a_container_that_changes_meanwhile_is_reported(monkeypatch):
    def fail(*args):
        raise RuntimeError("dictionary changed size during iteration")

    monkeypatch.setattr(shortrepr, "_walk", fail)
    assert short_reprs([{}]) == ["<dict, unreadable: RuntimeError>"]


def test_arguments_are_one_line_of_bounded_length():
    assert short_arguments((3, "a"), {"k": None}) == "3, 'a', k=None"
    assert short_arguments((..., 1), {}) == "..., 1"
    text = short_arguments(range(1000), {f"k{i}": "x" * 1000 for i in range(1000)})
    assert len(text) == shortrepr.MAX_CALL_CHARS
    assert "1000 arguments in all" in short_arguments(range(1000), {})
    assert "50 keywords in all" in short_arguments(
        (), dict.fromkeys(map(str, range(50)))
    )


class Callable:
    def __call__(self):
        pass

    def method(self):
        pass


class Evasive:
    def __getattr__(self, name):
        raise RuntimeError(name)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (len, "len"),
        (cut, "fastjob.shortrepr.cut"),
        (functools.partial(cut, "a"), "partial(fastjob.shortrepr.cut)"),
        (Callable(), f"{__name__}.Callable"),
        (Callable().method, f"{__name__}.Callable.method"),
        ("f", "f"),
    ],
)
def test_a_function_has_a_name(function, name):
    assert function_name(function) == name


def test_a_callable_whose_attributes_raise_has_the_name_of_its_type():
    assert function_name(Evasive()) == f"{__name__}.Evasive"


def test_cut_leaves_a_short_text_alone():
    assert cut("abc", 3) == "abc"
    assert cut("abcdefghij", 7) == "ab...ij"
