"""However the caller ends, in whatever state: nothing is left, nothing is said."""

from __future__ import annotations

import re
import signal

import pytest
from scripts import Script

HEAD = """
import os, signal, sys, threading
from fastjob import Parallel, delayed
from gates import Bell
bell = Bell()

def quick(i):
    return i

def hang(i):
    bell.ring()
    while True:
        signal.pause()

def leave():
    {leave}
"""

STATES = {
    "unused": "leave()",
    "idle": """
Parallel(2)(delayed(quick)(i) for i in range(10))
leave()
""",
    "in mid-call": """
def tasks():
    for i in range(4):
        if i == 3:
            bell.wait(2)
            leave()
        yield delayed(hang)(i)
Parallel(2, batch_size=1)(tasks())
""",
    "with a live generator": """
stream = Parallel(2, return_as="generator")(
    delayed(hang if i in (5, 6) else quick)(i) for i in range(100))
next(stream)
bell.wait(1)
leave()
""",
    "with large arguments and results": """
def large(data):
    return data + data
data = bytes(1_000_000)
stream = Parallel(2, return_as="generator", batch_size=1, temp_folder=os.getcwd())(
    delayed(hang if i in (5, 6) else large)(data) for i in range(100))
kept = next(stream)
bell.wait(1)
assert not [name for name in os.listdir() if "fastjob" in name]
leave()
""",
    "with a generator that has ended": """
stream = Parallel(2, return_as="generator")(delayed(quick)(i) for i in range(100))
list(stream)
leave()
""",
    "while a daemon thread waits for a call": """
threading.Thread(
    target=lambda: Parallel(2)(delayed(hang)(i) for i in range(4)), daemon=True
).start()
bell.wait(2)
leave()
""",
    "in a forked child": """
Parallel(2)(delayed(quick)(i) for i in range(10))
pid = os.fork()
if pid == 0:
    Parallel(2)(delayed(quick)(i) for i in range(10))
    leave()
os.waitpid(pid, 0)
Parallel(2)(delayed(quick)(i) for i in range(10))
leave()
""",
    "in a child forked in mid-call": """
def tasks():
    for i in range(4):
        if i == 3:
            bell.wait(2)
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
            leave()
        yield delayed(hang)(i)
Parallel(2, batch_size=1)(tasks())
""",
}

TRACEBACK = r"Traceback \(most recent call last\):\n( .*\n)+LookupError: the end\n"

WAYS = {
    "normally": ("return", 0, ""),
    "by sys.exit": ("sys.exit(3)", 3, ""),
    "by an exception": ("raise LookupError('the end')", 1, TRACEBACK),
    "by os._exit": ("os._exit(4)", 4, ""),
    "by exec": ("os.execv('/bin/sh', ['sh', '-c', 'exit 5'])", 5, ""),
    "by SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
    "by SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("state", STATES)
def test_nothing_is_left_and_nothing_is_said(state, way):
    leave, code, said = WAYS[way]
    if way == "normally" and ("mid-call" in state or "fork" in state):
        leave, code = "raise SystemExit", 0  # there is more behind it
    with Script(HEAD.format(leave=leave) + STATES[state]) as script:
        _, err, returncode = script.finish()
    assert returncode == code
    # A forked child and its parent both say it.
    assert re.fullmatch(said * 2 if said and "fork" in state else said, err), err


@pytest.mark.parametrize(
    "signal_number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP]
)
def test_a_signal_at_any_moment_of_the_first_call(signal_number):
    """From the start of the nursery on: the program is ended after so many lines."""
    source = (
        "import os, sys\n"
        "from fastjob import Parallel, delayed\n"
        "import fastjob._pool.pool\n"
        "lines = 0\n"
        "def trace(frame, event, argument):\n"
        "    global lines\n"
        "    lines += 1\n"
        "    if lines == int(sys.argv[1]):\n"
        f"        os.kill(os.getpid(), {int(signal_number)})\n"
        "    return trace\n"
        "sys.settrace(trace)\n"
        "Parallel(2)(delayed(abs)(i) for i in range(10))\n"
        "sys.settrace(None)\n"
    )
    at, code = 1, -signal_number
    while code == -signal_number:
        with Script(source, [str(at)]) as script:
            _, err, code = script.finish()
        assert err == ""
        at = at * 2 + 7
    assert code == 0


def test_a_task_that_ignores_every_signal_does_not_survive_its_caller():
    source = HEAD.format(leave="sys.exit()") + (
        "def stubborn(i):\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
        "    hang(i)\n"
        "stream = Parallel(2, return_as='generator')(\n"
        "    delayed(stubborn)(i) for i in range(2))\n"
        "bell.wait(2)\n"
        "leave()\n"
    )
    with Script(source) as script:
        assert script.finish()[1:] == ("", 0)


def test_programs_that_tasks_have_started_end_with_the_caller():
    source = HEAD.format(leave="os.kill(os.getpid(), signal.SIGKILL)") + (
        "def start(i):\n"
        "    import subprocess\n"
        "    subprocess.Popen(['sleep', '1000'])\n"
        "    hang(i)\n"
        "stream = Parallel(2, return_as='generator')(\n"
        "    delayed(start)(i) for i in range(2))\n"
        "bell.wait(2)\n"
        "leave()\n"
    )
    with Script(source) as script:
        assert script.finish()[1:] == ("", -signal.SIGKILL)


def test_tasks_are_not_cut_short_by_a_normal_exit_of_their_call():
    """What tasks have printed and registered for the exit happens."""
    source = (
        "from fastjob import Parallel, delayed\n"
        "def task(i):\n"
        "    import atexit\n"
        "    print('ran', i)\n"
        "    atexit.register(print, 'left', i)\n"
        "Parallel(2, batch_size=1)(delayed(task)(i) for i in range(2))\n"
    )
    with Script(source) as script:
        out, err, code = script.finish()
    assert (err, code) == ("", 0)
    assert sorted(out.splitlines()) == ["left 0", "left 1", "ran 0", "ran 1"]


def test_a_call_in_an_exit_function_works():
    source = (
        "import atexit\n"
        "from fastjob import Parallel, delayed\n"
        "def last():\n"
        "    print(Parallel(2)(delayed(abs)(-i) for i in range(3)))\n"
        "atexit.register(last)\n"
        "Parallel(2)(delayed(abs)(i) for i in range(3))\n"
        "atexit.register(last)\n"
    )
    with Script(source) as script:
        assert script.finish() == ("[0, 1, 2]\n" * 2, "", 0)
