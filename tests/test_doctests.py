"""The examples in the docstrings of the package run and give what they say."""

from __future__ import annotations

import doctest
import pkgutil
import sys
import tempfile
from importlib import import_module

import pytest

import fastjob

ELSEWHERE = "fastjob._pool.hosting_" + (
    "posix" if sys.platform == "win32" else "windows"
)
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fastjob.__path__, "fastjob.")
    if module.name not in ("fastjob.__main__", ELSEWHERE)
)
NEEDS = {"fastjob.backends.dask": "distributed", "fastjob.backends.ray": "ray"}


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name, tmp_path, monkeypatch):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    # An example may write a file, and need not clutter itself with removing it.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    failed, _ = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_there_are_docstrings_with_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = finder.find(import_module("fastjob.parallel"))
    assert sum(bool(test.examples) for test in found) > 0
