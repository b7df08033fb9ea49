"""The engine: what a task, a batch and a call cost, and how well work is spread."""

from __future__ import annotations

from benchmarks import floors, tasks
from benchmarks.row import Row


def _run(function):
    def work(session, items):
        return session.run(function, items)

    return work


def _stream(function):
    def work(session, items):
        return list(session.stream(function, items))

    return work


def _loop(function):
    def limit(items, n_jobs):
        return floors.loop(function, items)

    return limit


def _share(items, n_jobs):
    return sum(items) / n_jobs


def _large_dict(size):
    # 20 MB as pickled: keys of 9 bytes, values of some 190.
    table = {f"k{i:08d}": f"{i:08d}" + "v" * 180 for i in range(size)}
    key = f"k{size - 1:08d}"
    return [(table, key)] * 200


_closure = tasks.make_closure(7)

ROWS = (
    Row(
        "tiny-processes",
        "100,000 tiny calls, processes",
        "processes",
        range,
        _run(tasks.tiny),
        100_000,
        20_000,
        target=8,
        limit=_loop(tasks.tiny),
        limit_title="plain loop",
    ),
    Row(
        "closure-processes",
        "20,000 tiny calls of a closure, processes",
        "processes",
        range,
        _run(_closure),
        20_000,
        5_000,
        needs=frozenset({"closure"}),
        target=8,
        limit=_loop(_closure),
        limit_title="plain loop",
    ),
    Row(
        "stream-processes",
        "20,000 tiny calls through a generator, processes",
        "processes",
        range,
        _stream(tasks.tiny),
        20_000,
        5_000,
        needs=frozenset({"stream"}),
        target=6,
        limit=_loop(tasks.tiny),
        limit_title="plain loop",
    ),
    Row(
        "tiny-threads",
        "20,000 tiny calls, threads",
        "threads",
        range,
        _run(tasks.tiny),
        20_000,
        2_000,
        target=60,
        limit=_loop(tasks.tiny),
        limit_title="plain loop",
    ),
    Row(
        "tiny-sequential",
        "200,000 tiny calls, n_jobs=1",
        "sequential",
        range,
        _run(tasks.tiny),
        200_000,
        50_000,
        n_jobs=1,
        target=10,
        limit=_loop(tasks.tiny),
        limit_title="plain loop",
    ),
    Row(
        "call-processes",
        "one warm call of 2 tasks, processes",
        "processes",
        range,
        _run(tasks.tiny),
        2,
        2,
        calls=20,
        target=100,
        limit=floors.round_trip,
        limit_title="socket round trip",
    ),
    Row(
        "call-threads",
        "one warm call of 2 tasks, threads",
        "threads",
        range,
        _run(tasks.tiny),
        2,
        2,
        calls=20,
        target=150,
        limit=_loop(tasks.tiny),
        limit_title="plain loop",
    ),
    Row(
        "dict-processes",
        "one 20 MB dict to 200 tasks",
        "processes",
        _large_dict,
        _run(tasks.lookup),
        95_000,
        20_000,
        target=60,
        limit=lambda items, n_jobs: floors.pickle_round(items[0][0]),
        limit_title="pickle and unpickle once",
    ),
    Row(
        "spin-1ms",
        "1000 tasks of 1 ms",
        "processes",
        lambda size: [0.001] * size,
        _run(tasks.spin),
        1_000,
        300,
        share=0.99,
        ideal=_share,
    ),
    Row(
        "spin-0.1ms",
        "10,000 tasks of 0.1 ms",
        "processes",
        lambda size: [0.0001] * size,
        _run(tasks.spin),
        10_000,
        3_000,
        share=0.97,
        ideal=_share,
    ),
    Row(
        "instant-then-slow",
        "20,000 instant tasks, then 40 of 25 ms",
        "processes",
        lambda size: [0.0] * size + [0.025] * 40,
        _run(tasks.spin_or_return),
        20_000,
        5_000,
        target=1.9,
        ideal=_share,
    ),
    Row(
        "sleep-64",
        "64 workers, started in the call, 12,800 sleeps of 5 ms",
        "processes",
        lambda size: [0.005] * size,
        _run(tasks.nap),
        12_800,
        1_600,
        n_jobs=64,
        quick_jobs=16,
        fresh=True,
        target=5,
        ideal=_share,
    ),
    Row(
        "sleep-64-warm",
        "64 warm workers, 12,800 sleeps of 5 ms",
        "processes",
        lambda size: [0.005] * size,
        _run(tasks.nap),
        12_800,
        1_600,
        n_jobs=64,
        quick_jobs=16,
        share=0.95,
        ideal=_share,
    ),
)
