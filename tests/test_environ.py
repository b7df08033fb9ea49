"""What a call finds out about the environment, and what that costs."""

from __future__ import annotations

import os

import pytest

from fastjob._core.environment import variable
from fastjob._pool.environ import current

NAME = "FASTJOB_TEST_VARIABLE"


def test_a_variable_is_what_os_environ_says(monkeypatch):
    monkeypatch.delenv(NAME, raising=False)
    assert variable(NAME.encode()) is None
    for value in ("", "text", "\udc80 not utf-8"):
        monkeypatch.setenv(NAME, value)
        assert variable(NAME.encode()) == os.environ[NAME] == value


def test_another_mapping_may_stand_in_its_place(monkeypatch):
    monkeypatch.setattr(os, "environ", {NAME: "value"})
    assert variable(NAME.encode()) == "value"
    assert variable(b"FASTJOB_NO_SUCH_VARIABLE") is None
    assert current() == {NAME: "value"}
    os.environ[NAME] = "other"
    assert current() == {NAME: "other"}


def values():
    return dict(os.environ._data)


def test_it_is_copied_only_when_it_has_changed(monkeypatch):
    first = current()
    assert current() is first
    assert first == values()


@pytest.mark.parametrize(
    "change",
    [
        lambda: os.environ.__setitem__(NAME, "other"),
        lambda: os.environ.__delitem__(NAME),
        lambda: os.environ.update({NAME: "updated"}),
        lambda: os.environ.setdefault(NAME + "_2", "more"),
        lambda: os.environ.pop(NAME),
    ],
)
def test_every_change_is_seen(monkeypatch, change):
    monkeypatch.setenv(NAME, "value")
    monkeypatch.delenv(NAME + "_2", raising=False)
    before = current()
    change()
    try:
        assert current() == values() != before
    finally:
        os.environ.pop(NAME + "_2", None)


def test_a_mapping_that_comes_in_its_place_is_seen(monkeypatch):
    first = current()
    monkeypatch.setattr(os.environ, "_data", {b"only": b"this"})
    assert current() == {b"only": b"this"}
    monkeypatch.undo()
    assert current() == first
