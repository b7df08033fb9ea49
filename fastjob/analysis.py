"""What held a run back, in words and figures, from the data of a timeline.

The time that the workers of all calls had is split, without rest, into the time they
were busy, and that lost before the first task, after the last one, between tasks, and
by workers that had none (`recorder.CallTimeline.losses`).  Each rule below explains a
part of a loss, or says why busy time was not spent well; what explains most is said
first.  A rule speaks only from `WORTH_SAYING` of the workers' time on.
"""

from __future__ import annotations

from fastjob.errors import format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

WORTH_SAYING = 0.05
ALMOST_ALL = 0.8  # of memory
TINY_NS = 10_000


def format_time(ns: float) -> str:
    """Write a duration for a person.

    Examples
    --------
    >>> [format_time(t) for t in (350, 4_200, 8_000_000, 2.5e9, 150e9, 9000e9)]
    ['350 ns', '4.2 µs', '8 ms', '2.5 s', '2 min 30 s', '2 h 30 min']
    """
    if ns < 59.95e9:
        for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
            if ns >= size:
                return f"{ns / size:.3g} {unit}"
        return f"{ns:.0f} ns"
    minutes, seconds = divmod(round(ns / 1e9), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(round(ns / 60e9), 60)
    return f"{hours} h {minutes} min"


def plural(n: int, word: str) -> str:
    """Write a number of things: ``plural(2, 'task') == '2 tasks'``."""
    if n != 1:
        word = {"batch": "batches", "retry": "retries"}.get(word, f"{word}s")
    return f"{n:,} {word}"


def summarise(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Say what happened and what held the run back.

    Parameters
    ----------
    data : dict
        From `recorder.Recorder.data`.

    Returns
    -------
    list of dict
        ``kind``, ``text`` and ``share`` (of the workers' time, from 0 to 1), the
        overview first, then what cost most.
    """
    losses = data["losses"]
    totals = data["totals"]
    if not totals["tasks"]:
        return [{"kind": "overview", "text": "No task was recorded.", "share": 0.0}]
    capacity = max(1, losses["capacity"])
    busy = min(1.0, totals["busy"] / capacity)
    n_workers = max(call["n_jobs"] for call in data["calls"])
    overview = (
        f"{plural(totals['tasks'], 'task')} in {plural(totals['batches'], 'batch')} "
        f"and {plural(data['n_calls'], 'call')} took {format_time(losses['wall'])} on "
        f"{plural(n_workers, 'worker')}, which ran tasks for {busy:.0%} of that time."
    )
    found = [
        reason
        for rule in (_losses, _processors, _memory, _events)
        for reason in rule(data, capacity)
    ]
    found.sort(key=lambda reason: -reason["share"])
    if not any(reason["share"] >= WORTH_SAYING for reason in found):
        found.insert(
            0,
            {"kind": "nothing", "text": "Nothing held the run back.", "share": 0.0},
        )
    return [{"kind": "overview", "text": overview, "share": busy}, *found]


def _losses(data: dict[str, Any], capacity: int) -> Iterator[dict[str, Any]]:
    losses = data["losses"]
    for name, explain in (
        ("starting", _explain_starting),
        ("unused", _explain_unused),
        ("ending", _explain_ending),
        ("between", _explain_between),
    ):
        share = losses[name] / capacity
        if share >= WORTH_SAYING:
            kind, text = explain(data, share)
            yield {"kind": kind, "text": text, "share": share}


def _explain_starting(data: dict[str, Any], share: float) -> tuple[str, str]:
    # A call whose input is slow to give its first tasks looks the same from outside.
    if data["totals"]["input"] > data["losses"]["wall"] / 2:
        return "input", _input_text(data, share)
    return (
        "starting",
        f"Starting took {share:.0%} of the workers' time: they had to be started, or "
        "to import modules, before their first task. Workers stay warm for the next "
        "call; the option preload imports modules once for all of them.",
    )


def _explain_unused(data: dict[str, Any], share: float) -> tuple[str, str]:
    calls = [c for c in data["calls"] if c["lanes"] < c["n_jobs"]]
    few = min(calls, key=lambda c: c["tasks"] / c["n_jobs"], default=None)
    example = (
        ""
        if few is None
        else (
            f": call {few['number'] + 1} had {plural(few['tasks'], 'task')} for "
            f"{plural(few['n_jobs'], 'worker')}, of which {few['lanes']} got any"
        )
    )
    return (
        "too few tasks",
        f"Too few tasks: {share:.0%} of the workers' time belonged to workers that got "
        f"none{example}. Split the work into more tasks, use a smaller batch_size, or "
        "use a smaller n_jobs.",
    )


def _explain_ending(data: dict[str, Any], share: float) -> tuple[str, str]:
    totals = data["totals"]
    longest = data["longest"][0] if data["longest"] else None
    mean = totals["busy"] / totals["tasks"]
    lost = data["losses"]["ending"]
    if longest and longest["duration"] > 2 * mean and longest["duration"] > lost / 10:
        lane = data["lanes"][longest["lane"]]
        return (
            "straggler",
            f"A straggler: workers waited {share:.0%} of their time for the last task "
            f"to end. Task {longest['index']} took {format_time(longest['duration'])} "
            f"on {lane_name(lane)}, {longest['duration'] / mean:.0f} times the mean "
            f"of {format_time(mean)}. Put long tasks first, or split them.",
        )
    return (
        "too few tasks",
        f"Too few tasks to share out evenly: workers waited {share:.0%} of their time "
        f"for the last one to end. A task took {format_time(mean)} on average. Split "
        "the work into more tasks, or use a smaller batch_size.",
    )


def _input_text(data: dict[str, Any], share: float) -> str:
    spent = data["totals"]["input"]
    return (
        f"Serial input: workers waited {share:.0%} of their time while the caller took "
        f"{format_time(spent)} ({spent / data['losses']['wall']:.0%} of the run) to "
        "produce the tasks. Move that work into the tasks."
    )


def _explain_between(data: dict[str, Any], share: float) -> tuple[str, str]:
    totals, wall = data["totals"], data["losses"]["wall"]
    pickling = totals["pickle"] + totals["unpickle"]
    # Each worker copies what it returns: by the clock, all of them at a time.
    copying = totals["copy"] // max(call["n_jobs"] for call in data["calls"])
    spent, kind = max(
        (totals["input"], "input"), (pickling, "pickling"), (copying, "copying")
    )
    mean = totals["busy"] / totals["tasks"]
    if spent > wall / 5:
        if kind == "input":
            return kind, _input_text(data, share)
        moved = totals["bytes_out"] + totals["bytes_in"]
        if kind == "pickling":
            return (
                kind,
                f"Pickling: workers waited {share:.0%} of their time while arguments "
                "and results were pickled and unpickled, which took "
                f"{format_time(spent)} ({spent / wall:.0%} of the run), for "
                f"{format_bytes(moved)} in all. Pass "
                "arrays rather than lists, share what is common to many tasks, or use "
                "backend='threading'.",
            )
        return (
            kind,
            f"Copying: {format_bytes(moved)} of large arrays were copied, which took "
            f"{format_time(spent)} ({spent / wall:.0%} of the run), while workers "
            f"waited {share:.0%} of their time. Return less, or use "
            "backend='threading'.",
        )
    if mean < TINY_NS:
        return (
            "tiny tasks",
            f"Tiny tasks: one took {format_time(mean)} on average, so that handing "
            f"them over cost {share:.0%} of the workers' time. Do more in each task.",
        )
    return (
        "waiting",
        f"Workers waited {share:.0%} of their time between batches, and neither input "
        "nor pickling explains it: the consumer of a generator may have been slow, or "
        "the machine busy with something else.",
    )


def _processors(data: dict[str, Any], capacity: int) -> Iterator[dict[str, Any]]:
    """Too many workers or threads for the processors there are."""
    totals, cpus = data["totals"], data["cpus"]
    if not totals["cpu"] or not totals["busy"]:
        return
    n_jobs = max(call["n_jobs"] for call in data["calls"])
    per_worker = totals["cpu"] / totals["busy"]
    busy = totals["busy"] / capacity
    if n_jobs > cpus and per_worker < 0.75:
        lost = (1 - per_worker) * busy
        yield {
            "kind": "oversubscription",
            "text": (
                f"Oversubscription: {n_jobs} workers on {plural(cpus, 'processor')}. "
                f"While they ran tasks, each had a processor for {per_worker:.0%} of "
                "the time. If the tasks compute, use n_jobs=-1; if they wait for disk "
                "or network, this is as it should be."
            ),
            "share": lost,
        }
    elif per_worker > 1.2 and per_worker * n_jobs >= 0.95 * cpus and n_jobs > 1:
        yield {
            "kind": "oversubscription",
            "text": (
                f"Inner threads: each task used {per_worker:.1f} processors on "
                f"average, with {plural(n_jobs, 'worker')} on "
                f"{plural(cpus, 'processor')}. Set "
                "inner_max_num_threads lower, or use fewer workers."
            ),
            "share": min(1.0, busy * (1 - 1 / per_worker)),
        }


def _memory(data: dict[str, Any], capacity: int) -> Iterator[dict[str, Any]]:
    """Workers that together come near to the memory there is."""
    peaks = [lane.get("peak_memory", 0) for lane in data["lanes"]]
    if data["memory"] and sum(peaks) > ALMOST_ALL * data["memory"]:
        yield {
            "kind": "memory",
            "text": (
                f"Memory: the workers' peaks add up to {format_bytes(sum(peaks))} of "
                f"{format_bytes(data['memory'])}; the largest was "
                f"{format_bytes(max(peaks))}. Use fewer workers, or smaller tasks."
            ),
            "share": 1.0,
        }


def _events(data: dict[str, Any], capacity: int) -> Iterator[dict[str, Any]]:
    """Failures; they come last unless they are all there is."""
    counts = data["event_counts"]
    sentences = (
        ("death", "worker", "died"),
        ("timeout", "task", "timed out"),
        ("error", "task", "failed"),
        ("retry", "retry", "made"),
    )
    parts = [
        f"{plural(counts[kind], subject)} {verb}"
        for kind, subject, verb in sentences
        if counts.get(kind)
    ]
    if parts:
        yield {"kind": "trouble", "text": f"{', '.join(parts)}.", "share": 0.0}


def lane_name(lane: dict[str, Any]) -> str:
    """Name of a lane: ``process 4711``."""
    return (
        "the caller" if lane["kind"] == "caller" else f"{lane['kind']} {lane['worker']}"
    )
