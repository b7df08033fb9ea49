"""Physical limits: the least that any library would have to do for a row.

Each one is called as ``limit(data, n_jobs)`` in a process of its own, in turn with
the sides that it is compared with.
"""

import os
import pickle
import signal
import socket
import time

from benchmarks import processes


def loop(function, items):
    """Call `function` in a plain loop."""
    return [function(item) for item in items]


class RoundTrip:
    """A socket round trip to each of some waiting processes.

    The processes are forked at the first use and end with the socket.
    """

    def __init__(self):
        self._sockets = []

    def __call__(self, data, n_jobs):
        while len(self._sockets) < n_jobs:
            self._sockets.append(self._start())
        for end in self._sockets:
            end.send(b"?")
        for end in self._sockets:
            end.recv(64)

    def _start(self):
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            while message := theirs.recv(64):
                theirs.send(message)
            os._exit(0)
        theirs.close()
        return ours


round_trip = RoundTrip()


def pickle_round(value):
    """Pickle and unpickle once."""
    return pickle.loads(pickle.dumps(value, protocol=5))


class WarmCopy:
    """``numpy.copyto`` of the same bytes into memory that has been touched."""

    def __init__(self):
        self._target = None

    def __call__(self, arrays):
        import numpy as np

        if self._target is None:
            self._target = np.zeros(max(array.nbytes for array in arrays), np.uint8)
        for array in arrays:
            source = array.reshape(-1).view(np.uint8)
            np.copyto(self._target[: source.size], source)


def forked_memory(function, n_jobs):
    """Return the PSS in MB of `n_jobs` forks of this process that ran `function`."""
    function(1.0)
    pids = []
    reader, writer = os.pipe()
    for _ in range(n_jobs):
        pid = os.fork()
        if pid == 0:
            function(1.0)
            os.write(writer, b".")
            while True:
                signal.pause()
        pids.append(pid)
    ready = 0
    while ready < n_jobs:
        ready += len(os.read(reader, n_jobs))
    megabytes = sum(processes.pss(pid) for pid in pids) / 1e6
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)
    return megabytes


def clock_overhead(count=10_000):
    """Return the seconds that one look at the clock costs."""
    begin = time.perf_counter()
    for _ in range(count):
        time.perf_counter()
    return (time.perf_counter() - begin) / count
