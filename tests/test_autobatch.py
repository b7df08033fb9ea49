"""The autotuner against a simulated call: no clock, no process, only its decisions."""

from __future__ import annotations

import heapq
import random

import pytest

from fastjob._core.autobatch import AutoBatch

# What the tuner's own comment says of a batch and of the work of the caller.
BATCH_COST = 40e-6
PRODUCE = 0.3e-6
FLUSH = 0.05
PATIENCE = 150e-6


def simulate(durations, n_jobs=2, fixed=0, recalled=0.0):
    """Seconds that a call takes over workers that hold two batches each.

    As in the dispatch loop: idle workers take half of the longest queue, if not at once
    then when it has lain for some time; a worker reports after every `FLUSH` seconds;
    and the caller collects one batch at a time.
    """
    tuner = AutoBatch(n_jobs, fixed)
    tuner.recall(recalled * 1e9)
    patience = PATIENCE
    began, busy, count = [0.0] * n_jobs, [0.0] * n_jobs, [0] * n_jobs
    n, taken = len(durations), 0
    free_at = [0.0] * n_jobs
    queues = [[] for _ in range(n_jobs)]
    caller = 0.0
    events = [(0.0, w) for w in range(n_jobs)]
    heapq.heapify(events)
    while events:
        now, worker = heapq.heappop(events)
        if not queues[worker]:
            if taken < n:
                size = min(tuner.size, n - taken)
                caller = max(caller, now) + size * PRODUCE + BATCH_COST / 2
                tuner.record_input(size, int(size * PRODUCE * 1e9))
                queues[worker] = list(durations[taken : taken + size])[::-1]
                taken += size
                now = caller
            else:
                victim = max(range(n_jobs), key=lambda w: len(queues[w]))
                left = queues[victim]
                each = max(tuner.task_ns * 1e-9, now - began[victim])
                if not left:
                    free_at[worker] = max(free_at[worker], now)
                    continue
                if len(left) * each < 100e-6:
                    heapq.heappush(events, (now + patience, worker))
                    patience *= 2
                    continue
                half = (len(left) + 1) // 2
                queues[worker] = left[:half]
                del left[:half]
                now += BATCH_COST / 2
            now += BATCH_COST / 2
        # Up to the next moment at which anybody else does anything.
        until = events[0][0] if events else float("inf")
        end, n_run = now, 0
        while queues[worker] and (end <= until or n_run == 0) and busy[worker] < FLUSH:
            began[worker] = end
            end += queues[worker][-1]
            busy[worker] += queues[worker].pop()
            n_run += 1
        count[worker] += n_run
        if not queues[worker] or busy[worker] >= FLUSH:
            tuner.record(count[worker], int(busy[worker] * 1e9))
            count[worker], busy[worker] = 0, 0.0
        free_at[worker] = end
        heapq.heappush(events, (end, worker))
    return max(free_at)


def constant(seconds, n):
    return [seconds] * n


def heavy_tailed(seconds, n):
    choose = random.Random(7)
    return [seconds * 0.3 * choose.paretovariate(1.5) for _ in range(n)]


def fast_then_slow(seconds, n):
    return [seconds / 100] * (n // 2) + [seconds] * (n - n // 2)


def slow_then_fast(seconds, n):
    return fast_then_slow(seconds, n)[::-1]


@pytest.mark.parametrize(
    "shape", [constant, heavy_tailed, fast_then_slow, slow_then_fast]
)
@pytest.mark.parametrize("seconds", [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0])
def test_auto_is_near_the_best_fixed_size(seconds, shape):
    n = max(40, min(50_000, int(20 / seconds)))
    durations = shape(seconds, n)
    best = min(
        simulate(durations, fixed=size)
        for size in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
        if size <= n
    )
    # 5 %, and some batches at the start of a call until it has learnt.
    assert simulate(durations) <= 1.05 * best + 40 * BATCH_COST


@pytest.mark.parametrize("off_by", [0.001, 0.1, 1, 10, 1000])
@pytest.mark.parametrize("n", [2, 10, 1000])
@pytest.mark.parametrize("seconds", [1e-6, 1e-4, 1e-2, 1.0])
def test_what_an_earlier_call_took_does_no_harm_if_it_is_wrong(seconds, n, off_by):
    durations = constant(seconds, n)
    unknown = simulate(durations)
    guessed = simulate(durations, recalled=seconds * off_by)
    # Until the idle worker takes over, which happens once.
    assert guessed <= 1.05 * unknown + 2 * PATIENCE + 4 * BATCH_COST


def test_a_call_of_few_tasks_known_to_be_tiny_is_one_batch():
    tuner = AutoBatch(2)
    tuner.recall(1000.0)
    assert tuner.size == 50
    tuner.record(2, 2000)
    tuner.recall(10.0)
    assert tuner.size == 50  # what was seen counts


def test_tasks_known_to_be_long_are_sent_one_by_one():
    tuner = AutoBatch(2)
    tuner.recall(1e6)
    assert tuner.size == 1


def test_batches_grow_with_the_time_that_the_call_has_taken():
    tuner = AutoBatch(2)
    lengths = []
    for _ in range(200):
        tuner.record(tuner.size, tuner.size * 1_000_000)
        lengths.append(tuner.size)
    assert 8 <= lengths[8] <= 10
    assert lengths[8:] == sorted(lengths[8:])
    assert lengths[-1] == 40


def test_a_fixed_size_stays():
    tuner = AutoBatch(2, 17)
    tuner.recall(1.0)
    assert tuner.size == 17
    for busy in (10, 10**9):
        tuner.record(17, busy)
        assert tuner.size == 17


def test_the_size_follows_a_change_of_pace_at_once():
    tuner = AutoBatch(2)
    for _ in range(20):
        tuner.record(tuner.size, tuner.size * 1000)
    assert tuner.size > 1000
    for _ in range(3):
        tuner.record(1, 50_000_000)
    assert tuner.size == 1


def test_large_results_make_small_batches():
    tuner = AutoBatch(2)
    for _ in range(20):
        tuner.record(tuner.size, tuner.size * 1000, tuner.size * 100_000)
    assert tuner.size <= 11


def test_an_input_that_is_slow_to_take_makes_small_batches():
    tuner = AutoBatch(2)
    for _ in range(20):
        tuner.record_input(tuner.size, tuner.size * 1_000_000)
        tuner.record(tuner.size, tuner.size * 1000)
    assert tuner.size <= 4


def test_no_tasks_teach_nothing():
    tuner = AutoBatch(2)
    tuner.record(0, 10**9)
    tuner.record_input(0, 10**9)
    assert (tuner.size, tuner.task_ns, tuner.produce_ns) == (1, 0, 0)
