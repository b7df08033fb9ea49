"""What keeps the memory that workers share in few pages."""

from __future__ import annotations

import importlib
import os
import sys

import pytest

from fastjob._pool import holes, modules
from fastjob._pool.holes import fill_holes
from fastjob._pool.modules import ModuleWatch, note_modules

SIZE = 400


def some(n):
    return [bytes(SIZE - b"".__sizeof__()) for _ in range(n)]


@pytest.mark.skipif(
    sys.implementation.name != "cpython" or bool(os.environ.get("PYTHONMALLOC")),
    reason="another allocator",
)
def test_new_objects_lie_side_by_side_once_holes_are_filled(monkeypatch):
    monkeypatch.setattr(holes, "_filling", [])
    kept = some(300)
    del kept[::2]  # leaves holes
    assert fill_holes() >= 100
    places = [id(block) for block in some(10)]
    assert places == list(range(places[0], places[0] + 10 * SIZE, SIZE))


def test_nothing_is_kept_where_objects_lie_elsewhere(monkeypatch):
    monkeypatch.setattr(holes, "_filling", [])
    monkeypatch.setattr(holes, "HEADER_SIZE", 1)
    monkeypatch.setattr(holes, "MOST", 10)
    assert fill_holes() == 0
    assert holes._filling == []


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Import new modules, whose files were written long ago; the files by name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def importing(*new):
        for name in new:
            path = tmp_path / f"{name}.py"
            path.write_text("")
            os.utime(path, (1, 1))
            importlib.invalidate_caches()
            importlib.import_module(name)
            names.append(name)
        return [tmp_path / f"{name}.py" for name in new]

    yield importing
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(params=["own", "inherited"])
def watch(request, monkeypatch):
    monkeypatch.setattr(modules, "_inherited", set())
    if request.param == "inherited":
        note_modules()
    return ModuleWatch()


def test_a_change_of_any_module_imported_since_is_seen(watch, imported):
    for path in imported("watched_a", "watched_b", "watched_c"):
        assert not watch.changed()
        os.utime(path, (2, 2))
        assert watch.changed()
        os.utime(path, (1, 1))
    (last,) = imported("watched_d")
    assert not watch.changed()
    os.utime(last, (2, 2))
    assert watch.changed()


@pytest.mark.parametrize(("earlier", "grain"), [(0.005, 1), (0.9, 1_000_000_000)])
def test_a_file_whose_time_is_rounded_down_counts_as_changed(
    watch, imported, earlier, grain
):
    """It was written after the call had begun, and its time says otherwise."""
    (path,) = imported("watched_a")
    written = (watch._since - round(earlier * 1e9)) // grain * grain
    os.utime(path, ns=(written, written))
    assert watch.changed()


def test_a_change_is_seen_though_modules_were_taken_out(watch, imported):
    imported("watched_a")
    assert not watch.changed()
    del sys.modules["watched_a"]
    path, _ = imported("watched_b", "watched_c")
    assert not watch.changed()
    os.utime(path, (2, 2))
    assert watch.changed()


def test_only_the_new_end_of_the_table_is_looked_at(watch, imported):
    imported("watched_a", "watched_b")

    class Table(dict):
        def __iter__(self):
            raise AssertionError("the whole table was looked at")

    table = Table(sys.modules)
    looked = pytest.MonkeyPatch()
    looked.setattr(modules.sys, "modules", table)
    try:
        assert watch._new_names() == ["watched_b", "watched_a"]
    finally:
        looked.undo()
