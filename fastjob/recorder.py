"""What happened when: the recorder behind ``timeline=``.

Who calls what
--------------
The front end, for each call at nesting level 0::

    recording = record_call(option, backend="processes", n_jobs=4, total=None)
    call = Call(..., timeline=recording)     # None unless somebody wants a timeline
    try: ...
    finally:
        if recording is not None:
            recording.end()

An engine, if ``call.timeline`` is not None, from any thread:

- ``batch(worker, start_ns, end_ns, n_tasks, first_index, ...)`` once for each batch
  that has run.  ``worker`` is the process id of a worker process, or the native id of
  a thread.  Times are ``time.perf_counter_ns()``, which is one clock for all processes,
  taken where the tasks ran: when the first began and when the last ended.  What else it
  knows goes in the other parameters; 0 is unknown.  An engine that runs single tasks
  joins those that follow each other on one worker (``_core/spans.pyx``), so that a
  task of a microsecond does not cost one more.
- ``task(worker, start_ns, end_ns, index)`` for single tasks of a millisecond or more in
  a batch of several, if it knows them.  A batch of one is taken as a task by itself.
- ``event(kind, worker, time_ns, text)`` for what is not a batch: ``"error"`` (a task
  failed for good), ``"retry"``, ``"death"``, ``"timeout"``, ``"start"`` (a worker was
  started during the call).

What it guarantees
------------------
Totals are exact, however long the run.  Spans are kept one by one up to `MAX_SPANS`;
then neighbours on one lane are joined, the shortest first, to half that number, and
the resolution is coarser from then on.  Events, longest tasks and calls are bounded
likewise, and what was left out is counted.  Sums are made of the spans when somebody
asks.

One lock guards a recorder.  What is recorded waits in a queue; whoever has the lock
takes it from there, for about a microsecond a batch, and looks again after letting go.
Who finds the lock taken leaves: the garbage collector can end a recorded call, that of
a generator, at any allocation, also in the middle of a change of the same thread.

A recorder belongs to the process that made it: a forked child neither adds to it nor
writes its file.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from heapq import heappush, heappushpop
from itertools import count
from time import perf_counter_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["CallTimeline", "Recorder"]

MAX_SPANS = 20_000  # about 1 MB of page, and more than a screen has columns
MAX_EVENTS = 1_000
MAX_CALLS = 1_000
MAX_LONGEST = 50

# Reading the memory of a worker costs as much as recording ten batches.
PEAK_INTERVAL_NS = 1_000_000_000

# What is known of a batch besides its place and time; these add up when spans join.
SUMS = (
    "busy",  # ns in which tasks ran
    "tasks",
    "batches",
    "input",  # ns in the caller: taking the tasks from the input
    "pickle",  # ns: pickling arguments in the caller, results in the worker
    "wait",  # ns between the sending of a batch and its start
    "copy",  # ns in the worker: pickling results and copying their large buffers
    "unpickle",  # ns in the caller: decoding results
    "cpu",  # ns of processor time that the tasks used; worker processes only
    "bytes_out",
    "bytes_in",
)
# A span is a list: lane, call, start, end, first index, then the sums.
LANE, CALL, START, END, FIRST, BUSY = range(6)
TASKS = BUSY + 1
LANE_SUMS = SUMS[:3]  # what the page says of each worker


class Recorder:
    """Collects what happens in one or more calls, and writes it to a file.

    Parameters
    ----------
    path : str or path
        File to write: ``.html`` for a page, ``.json`` for Chrome's trace format.

    Raises
    ------
    ValueError
        If the name ends otherwise.
    FileNotFoundError
        If its folder does not exist: better now than after the run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fspath(path).replace("{pid}", str(os.getpid())))
        if not self.path.endswith((".html", ".json")):
            raise ValueError(
                f"A timeline is written to a .html or a .json file, not to {self.path}."
            )
        folder = os.path.dirname(self.path)
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"No folder {folder} to write the timeline to.")
        self.begin = perf_counter_ns()
        self.pid = os.getpid()
        self._lock = threading.RLock()
        # Changes that are not made yet, with their arguments.
        self._changes: deque[tuple[Callable[..., object], Any]] = deque()
        self._numbers = count()
        self._lanes: dict[int, int] = {}
        self._lane_facts: list[dict[str, Any]] = []
        self._last: list[list[int] | None] = []  # the newest span of each lane
        self._spans: list[list[int]] = []
        self._resolution = 0  # neighbours closer than this are one span
        # The sums of those that are not drawn: a span for each lane.
        self._dropped: list[list[int]] = []
        self._events: list[dict[str, Any]] = []
        self._event_counts: dict[str, int] = {}
        self._longest: list[tuple[int, int, int, int, int]] = []
        self._calls: list[dict[str, Any]] = []
        self._n_calls = 0
        self._peaks_read = self.begin
        self._open: dict[int, CallTimeline] = {}
        self._losses: dict[str, int] = {}

    def begin_call(
        self, backend: str, n_jobs: int, total: int | None, *, write: bool = False
    ) -> CallTimeline:
        """Begin to record a call; ``write`` writes the file when it ends."""
        number = next(self._numbers)
        call = CallTimeline(self, number, backend, n_jobs, total, write)
        self._change(self._begin_call, call)
        return call

    def data(self) -> dict[str, Any]:
        """Everything that was recorded, as plain data; times in ns from the begin."""
        from fastjob import __version__
        from fastjob.analysis import summarise

        within = self._owned()  # a change, or a file that the end of a call writes
        with self._lock:
            if not within:
                self._make_changes()
            self._read_peaks()
            calls = [*self._calls, *(call.facts() for call in self._open.values())]
            losses = dict(self._losses)
            for call in self._open.values():
                add_up(losses, call.losses())
            data: dict[str, Any] = {
                "version": 1,
                "fastjob": __version__,
                "cpus": _cpu_count(),
                "memory": _memory_total(),
                "resolution": self._resolution,
                "end": perf_counter_ns() - self.begin,
                "n_calls": self._n_calls,
                "calls": [{**c, **self._relative(c)} for c in calls[:MAX_CALLS]],
                "lanes": self._lanes_with_sums(),
                "columns": ["lane", "call", "start", "end", "first", *SUMS],
                "spans": [self._relative_span(span) for span in self._spans],
                "totals": self._totals(),
                "losses": losses,
                "events": [{**e, "time": e["time"] - self.begin} for e in self._events],
                "event_counts": dict(self._event_counts),
                "longest": [
                    dict(
                        zip(
                            ("duration", "start", "index", "lane", "call"),
                            (task[0], task[1] - self.begin, *task[2:]),
                            strict=True,
                        )
                    )
                    for task in sorted(self._longest, reverse=True)
                ],
            }
        data["summary"] = summarise(data)
        return data

    def write(self) -> None:
        """Write the file, whole or not at all."""
        if os.getpid() != self.pid:
            return
        from fastjob.report import write_timeline

        write_timeline(self.data(), self.path)

    def write_or_warn(self) -> None:
        """Write the file; a full disk does not cost the results of the run."""
        try:
            self.write()
        except OSError as error:
            import warnings

            warnings.warn(
                f"The timeline could not be written to {self.path}: {error}",
                RuntimeWarning,
                stacklevel=3,
            )

    def _change(self, change: Callable[..., object], *args: object) -> None:
        """Make a change, or leave it to whoever has the lock now."""
        self._changes.append((change, args))
        while self._changes and not self._owned() and self._lock.acquire(False):
            try:
                self._make_changes()
            finally:
                self._lock.release()

    def _owned(self) -> bool:
        """Whether this thread has the lock: then a destructor runs within a change."""
        return self._lock._is_owned()  # type: ignore[attr-defined, no-any-return]

    def _make_changes(self) -> None:
        """Make what changes there are, in order; the lock is held."""
        while self._changes:
            change, args = self._changes.popleft()
            change(*args)

    def _relative(self, facts: dict[str, Any]) -> dict[str, int]:
        return {name: facts[name] - self.begin for name in ("start", "end")}

    def _relative_span(self, span: list[int]) -> list[int]:
        begin = self.begin
        return [*span[:START], span[START] - begin, span[END] - begin, *span[FIRST:]]

    def _totals(self) -> dict[str, int]:
        spans = [*self._dropped, *self._spans]
        columns = zip(*(span[BUSY:] for span in spans), strict=True)
        sums = map(sum, columns) if spans else [0] * len(SUMS)
        return dict(zip(SUMS, sums, strict=True))

    def _lanes_with_sums(self) -> list[dict[str, Any]]:
        lanes = [{**facts, **dict.fromkeys(LANE_SUMS, 0)} for facts in self._lane_facts]
        for span in (*self._dropped, *self._spans):
            facts = lanes[span[LANE]]
            for name, value in zip(LANE_SUMS, span[BUSY:], strict=False):
                facts[name] += value
        return lanes

    def _lane(self, worker: int) -> int:
        """Number of a worker's lane; the lock is held."""
        lane = self._lanes.get(worker)
        if lane is None:
            lane = self._lanes[worker] = len(self._lane_facts)
            kind = "caller" if worker == self.pid else "process"
            if kind == "process" and os.path.exists(f"/proc/self/task/{worker}"):
                kind = "thread"
            self._lane_facts.append({"worker": worker, "kind": kind})
            self._last.append(None)
        return lane

    def _add(self, span: list[int]) -> None:
        """Add the span of one batch; the lock is held."""
        if span[TASKS] == 1:
            self._add_task(span[START], span[END], span[FIRST], span[LANE], span[CALL])
        if self._resolution:
            last = self._last[span[LANE]]
            if (
                last is not None
                and last[CALL] == span[CALL]
                and span[END] - last[START] < self._resolution
            ):
                _join(last, span)
                return
        self._spans.append(span)
        self._last[span[LANE]] = span
        if len(self._spans) >= MAX_SPANS:
            self._coarsen()

    def _add_task(
        self, start_ns: int, end_ns: int, index: int, lane: int, call: int
    ) -> None:
        task = (end_ns - start_ns, start_ns, index, lane, call)
        if len(self._longest) < MAX_LONGEST:
            heappush(self._longest, task)
        elif task > self._longest[0]:
            heappushpop(self._longest, task)

    def _coarsen(self) -> None:
        """Join neighbours on each lane until half of the spans are left."""
        elapsed = perf_counter_ns() - self.begin
        step = self._resolution or max(1, elapsed // MAX_SPANS)
        while len(self._spans) > MAX_SPANS // 2:
            kept: list[list[int]] = []
            last: list[list[int] | None] = [None] * len(self._lane_facts)
            for span in self._spans:
                before = last[span[LANE]]
                if (
                    before is not None
                    and before[CALL] == span[CALL]
                    and span[END] - before[START] < step
                ):
                    _join(before, span)
                else:
                    kept.append(span)
                    last[span[LANE]] = span
            self._spans, self._last, self._resolution = kept, last, step
            if step > 4 * elapsed:
                break  # nothing is left to join: one span a lane and call
            step *= 2
        if len(self._spans) > MAX_SPANS // 2:
            # Very many short calls: their totals stay, the oldest are not drawn.
            self._drop(MAX_SPANS // 2)

    def _drop(self, n: int) -> None:
        """Keep of the oldest spans only one for each lane, with their sums."""
        kept: dict[int, list[int]] = {}
        for span in (*self._dropped, *self._spans[:n]):
            before = kept.setdefault(span[LANE], span)
            if before is not span:
                _join(before, span)
        self._dropped = list(kept.values())
        del self._spans[:n]
        # What comes next must not be joined to a span that is counted no more.
        self._last = [None] * len(self._last)

    def _begin_call(self, call: CallTimeline) -> None:
        self._open[call.number] = call
        self._n_calls += 1

    def _end_call(self, call: CallTimeline) -> None:
        if self._open.pop(call.number, None) is None:
            return
        add_up(self._losses, call.losses())
        if len(self._calls) < MAX_CALLS:
            self._calls.append(call.facts())
        if perf_counter_ns() - self._peaks_read > PEAK_INTERVAL_NS:
            self._read_peaks()

    def _read_peaks(self) -> None:
        """Note the memory of the workers there are; the lock is held."""
        self._peaks_read = perf_counter_ns()
        for facts in self._lane_facts:
            if facts["kind"] == "process":
                peak = _peak_memory(facts["worker"])
                facts["peak_memory"] = max(peak, facts.get("peak_memory", 0))


class CallTimeline:
    """The recording of one call; what engines see as ``call.timeline``."""

    def __init__(
        self,
        recorder: Recorder,
        number: int,
        backend: str,
        n_jobs: int,
        total: int | None,
        write: bool,
    ) -> None:
        self.number = number
        self.start_ns = perf_counter_ns()
        self._recorder = recorder
        self._backend = backend
        self._n_jobs = n_jobs
        self._total = total
        self._write = write
        self._end_ns = 0
        # Of each lane: first start, last end, busy, tasks.
        self._lanes: dict[int, list[int]] = {}

    def batch(
        self,
        worker: int,
        start_ns: int,
        end_ns: int,
        n_tasks: int,
        first_index: int,
        input_ns: int = 0,
        pickle_ns: int = 0,
        wait_ns: int = 0,
        copy_ns: int = 0,
        unpickle_ns: int = 0,
        cpu_ns: int = 0,
        bytes_out: int = 0,
        bytes_in: int = 0,
    ) -> None:
        """Record a batch that has run; see the top of this module."""
        # fmt: off
        self._recorder._change(self._batch, worker, [
            0, self.number, start_ns, end_ns, first_index, end_ns - start_ns, n_tasks,
            1, input_ns, pickle_ns, wait_ns, copy_ns, unpickle_ns, cpu_ns,
            bytes_out, bytes_in,
        ])
        # fmt: on

    def _batch(self, worker: int, span: list[int]) -> None:
        recorder = self._recorder
        lane = recorder._lanes.get(worker)
        if lane is None:
            lane = recorder._lane(worker)
        span[LANE] = lane
        mine = self._lanes.get(lane)
        if mine is None:
            self._lanes[lane] = [span[START], span[END], span[BUSY], span[TASKS]]
        else:
            if span[END] > mine[1]:
                mine[1] = span[END]
            mine[2] += span[BUSY]
            mine[3] += span[TASKS]
        recorder._add(span)

    def task(self, worker: int, start_ns: int, end_ns: int, index: int) -> None:
        """Record one long task of a batch of several."""
        self._recorder._change(self._task, worker, start_ns, end_ns, index)

    def _task(self, worker: int, start_ns: int, end_ns: int, index: int) -> None:
        lane = self._recorder._lane(worker)
        self._recorder._add_task(start_ns, end_ns, index, lane, self.number)

    def event(self, kind: str, worker: int, time_ns: int, text: str) -> None:
        """Record something that is not a batch: error, retry, death, timeout, start."""
        self._recorder._change(self._event, kind, worker, time_ns, text)

    def _event(self, kind: str, worker: int, time_ns: int, text: str) -> None:
        recorder = self._recorder
        counts = recorder._event_counts
        counts[kind] = counts.get(kind, 0) + 1
        if len(recorder._events) < MAX_EVENTS:
            recorder._events.append(
                {
                    "kind": kind,
                    "lane": recorder._lane(worker),
                    "call": self.number,
                    "time": time_ns,
                    "text": text[:500],
                }
            )

    def end(self) -> None:
        """End the recording of this call; nothing happens the second time."""
        if self._end_ns:
            return
        self._end_ns = perf_counter_ns()
        recorder = self._recorder
        recorder._change(recorder._end_call, self)
        if self._write and recorder._owned():
            recorder._change(recorder.write_or_warn)
        elif self._write:
            recorder.write_or_warn()

    def facts(self) -> dict[str, Any]:
        """What the page says about this call."""
        lanes = self._lanes.values()
        return {
            "number": self.number,
            "backend": self._backend,
            "n_jobs": self._n_jobs,
            "total": self._total,
            "start": self.start_ns,
            "end": self._end_ns or perf_counter_ns(),
            "busy": sum(lane[2] for lane in lanes),
            "tasks": sum(lane[3] for lane in lanes),
            "lanes": len(lanes),
        }

    def losses(self) -> dict[str, int]:
        """Where the time of the workers went, in ns; the parts add up to capacity.

        ``starting`` is before a worker's first task, ``ending`` after its last one,
        ``unused`` belongs to workers that got no task, ``between`` is the rest.
        """
        end = self._end_ns or perf_counter_ns()
        wall = end - self.start_ns
        lanes = list(self._lanes.values())
        # A worker that died was replaced: more lanes than workers share the time.
        n_workers = max(self._n_jobs, 1)
        capacity = wall * n_workers
        busy = sum(lane[2] for lane in lanes)
        first = sorted(lane[0] for lane in lanes)[:n_workers]
        last = sorted((lane[1] for lane in lanes), reverse=True)[:n_workers]
        starting = sum(max(0, t - self.start_ns) for t in first)
        ending = sum(max(0, end - t) for t in last)
        unused = wall * max(0, n_workers - len(lanes))
        return {
            "wall": wall,
            "capacity": capacity,
            "busy": busy,
            "starting": starting,
            "ending": ending,
            "unused": unused,
            "between": max(0, capacity - busy - starting - ending - unused),
        }


def add_up(sums: dict[str, int], more: dict[str, int]) -> None:
    """Add the values of ``more`` to those of ``sums``."""
    for name, value in more.items():
        sums[name] = sums.get(name, 0) + value


def _join(first: list[int], second: list[int]) -> None:
    """Make one span of two neighbours."""
    first[END] = max(first[END], second[END])
    first[FIRST] = min(first[FIRST], second[FIRST])
    for i in range(BUSY, len(first)):
        first[i] += second[i]


def _cpu_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_total() -> int:
    """Physical memory in bytes."""
    from fastjob._core.regions import total_memory

    return total_memory()


def _peak_memory(pid: int) -> int:
    """Largest resident memory of a process so far in bytes; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0
