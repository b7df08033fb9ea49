"""System calls of a program and its descendants, from the log of ``strace``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.count_work import MARKS

#: How strace is called: follow children, print what descriptors are.
COMMAND = ("strace", "-f", "-y", "-qq", "-s", "64", "-o")

_LINE = re.compile(r"^(\d+) +(.*)$")
_CALL = re.compile(r"^(\w+)\((.*)$", re.DOTALL)
_RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$", re.DOTALL)
_RESULT = re.compile(r"\) += (-?\d+|\?|0x[0-9a-f]+)")
_CHANNEL = re.compile(r"^\d+<(socket|pipe|UNIX|UNIX-STREAM|UNIX-SEQPACKET)[:\-]")

_SENDERS = frozenset({"write", "writev", "send", "sendto", "sendmsg", "sendmmsg"})
_FORKS = frozenset({"fork", "vfork", "clone", "clone3"})


@dataclass(frozen=True)
class SystemCall:
    """One finished system call."""

    pid: int
    name: str
    arguments: str
    result: int


def parse(lines: Iterable[str]) -> list[SystemCall]:
    """Return the system calls of a log in the order in which they ended.

    A call that another process interrupts is split over two lines, which are joined;
    one that never returns (``exit``) is left out.
    """
    calls, begun = [], {}
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        pid, text = int(match[1]), match[2]
        if resumed := _RESUMED.match(text):
            text = begun.pop(pid, f"{resumed[1]}(") + resumed[2]
        elif text.endswith("<unfinished ...>"):
            begun[pid] = text.removesuffix("<unfinished ...>")
            continue
        call, results = _CALL.match(text), _RESULT.findall(text)
        if call is None or not results:
            continue  # a signal, or the end of a process
        value = results[-1]
        number = -1 if value == "?" else int(value, 0)
        calls.append(SystemCall(pid, call[1], call[2], number))
    return calls


def between_marks(calls: list[SystemCall]) -> list[SystemCall]:
    """Return the calls after the mark of the begin and before that of the end.

    Raises
    ------
    ValueError
        A mark is missing: the program has failed, or was not traced.
    """
    found = []
    for mark in MARKS:
        at = [i for i, call in enumerate(calls) if f'"{mark}"' in call.arguments]
        if not at:
            raise ValueError(f"the trace holds no mark {mark}")
        found.append(at[0])
    return calls[found[0] + 1 : found[1]]


def counts(calls: list[SystemCall]) -> dict[str, float]:
    """Count what a trace holds between its marks.

    Returns
    -------
    dict
        ``caller syscalls`` and ``worker syscalls``; ``bytes sent`` through sockets
        and pipes; ``processes`` and ``threads`` started; ``segments``: memory files
        made and other files created.
    """
    caller = calls[0].pid
    inside = between_marks(calls)
    # The threads of the caller have ids of their own.
    callers = {caller} | {
        call.result
        for call in calls
        if call.name in _FORKS and "CLONE_THREAD" in call.arguments
    }
    forks = [call for call in inside if call.name in _FORKS and call.result > 0]
    threads = sum("CLONE_THREAD" in call.arguments for call in forks)
    return {
        "caller syscalls": sum(call.pid in callers for call in inside),
        "worker syscalls": sum(call.pid not in callers for call in inside),
        "bytes sent": sum(map(_sent, inside)),
        "processes": len(forks) - threads,
        "threads": threads,
        "segments": sum(map(_makes_segment, inside)),
    }


def _sent(call: SystemCall) -> int:
    if call.name not in _SENDERS or not _CHANNEL.match(call.arguments):
        return 0
    return max(call.result, 0)


def _makes_segment(call: SystemCall) -> bool:
    if call.result < 0:
        return False
    creates = call.name == "openat" and "O_CREAT" in call.arguments
    return call.name == "memfd_create" or creates
