"""User code that type checkers must understand: run by mypy --strict and pyright.

`assert_type` fails when a type is not exactly the one named; lines that must be
refused carry an ignore, which both checkers report when nothing is wrong there.
"""

from __future__ import annotations

from collections.abc import Iterator

from typing_extensions import assert_type

from fastjob import (
    Parallel,
    TaskError,
    cpu_count,
    delayed,
    effective_n_jobs,
    parallel_config,
)


def area(width: float, height: float = 1.0) -> float:
    return width * height


def name(number: int) -> str:
    return str(number)


def a_list() -> None:
    areas = Parallel(n_jobs=2)(delayed(area)(x, height=2.0) for x in range(3))
    assert_type(areas, list[float])
    names = Parallel(n_jobs=-1, backend="threading")(delayed(name)(i) for i in [1])
    assert_type(names, list[str])


def a_generator() -> None:
    names = Parallel(n_jobs=2, return_as="generator")(delayed(name)(i) for i in [1])
    assert_type(names, Iterator[str])
    for item in Parallel(return_as="generator_unordered")([delayed(area)(1.0)]):
        assert_type(item, float)


def without_delayed() -> None:
    parallel = Parallel(n_jobs=2)
    assert_type(parallel.map(area, [1.0], [2.0]), list[float])
    assert_type(parallel.starmap(name, [(1,)]), list[str])
    lazy = Parallel(return_as="generator")
    assert_type(lazy.map(name, range(3)), Iterator[str])
    assert_type(lazy.starmap(area, [(1.0, 2.0)]), Iterator[float])


def the_arguments_are_checked() -> None:
    delayed(area)("wide")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    delayed(name)()  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


def a_block() -> None:
    with Parallel(n_jobs=2) as parallel:
        assert_type(parallel(delayed(name)(i) for i in range(3)), list[str])
    with parallel_config(backend="threading", n_jobs=2):
        assert_type(Parallel()(delayed(name)(i) for i in range(3)), list[str])


def numbers() -> None:
    assert_type(cpu_count(), int)
    assert_type(cpu_count(only_physical_cores=True), int)
    assert_type(effective_n_jobs(-1), int)


def a_failure(failure: TaskError) -> None:
    assert_type(failure.index, int)
    assert_type(failure.exception, BaseException)
