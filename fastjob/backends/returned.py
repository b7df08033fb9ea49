"""Large results of the workers of a ``multiprocessing.Pool``: lent to the caller.

A worker puts the large buffers of its results into shared memory of its own and lends
them to the caller, as a worker of the process backend does (``_core/lending.pyx``): the
caller maps them, and the worker uses a block again once the caller's arrays on it are
gone, which it learns from a byte in shared memory.  What the pool does not have is a
way for the descriptors, so all workers inherit one end of a socket pair.  A message on
it is the key of a worker and some descriptors, and arrives whole.

    worker: lend, send key and descriptors ── return batch with key and tokens
    caller: ................................. get batch ── receive messages, open

Guarantee: a batch that has come back can be opened, whatever has become of its worker.
1. The worker sends before it returns the batch, so what the caller has to receive is
   there.  Descriptors that were sent are kept by the kernel, and the memory by the
   descriptors, also when the worker has ended since.
2. The caller keeps its end of a worker's `Link` until all batches of that worker have
   been read.  A worker that ends by itself does so after a number of batches that the
   pool was told (``maxtasksperchild``); when one ends in any other way, all batches in
   flight fail, and with them the pool.
3. A worker that finds the socket full waits, but not for ever: those whose messages
   fill it return their batches, with each of which the caller receives all there is.
   It is rare: only regions have descriptors, and their size doubles.

Memory goes with the worker and the caller's arrays: a killed caller's workers find
the end of the pool's pipes, or of this socket, and end; so no worker keeps a copy of
the caller's end that it was forked with.  Where there is no room, or no way to the
caller, the result is pickled as a whole.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import sys
from weakref import WeakSet

from fastjob._core.arrays import RESULT_MIN_NBYTES, Sharer, decode, encode
from fastjob._core.lending import Link
from fastjob._pool.memory import store_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from fastjob._core.segments import Block

KEY_BYTES = 16
# Descriptors in one message; the kernel takes 253.
MOST_FDS = 200
_FD = struct.Struct("i")
# What has no buffer in it; pickling these needs no preparations.
_SMALL = frozenset({int, float, complex, bool, type(None)})


class Prepared:
    """A result whose large buffers lie in blocks; in the worker, until it is sent."""

    __slots__ = ("blocks", "data")

    def __init__(self, data: bytes, blocks: list[Block]) -> None:
        self.data = data
        self.blocks = blocks


class Lent:
    """A result whose large buffers are lent to the caller."""

    __slots__ = ("data", "tokens")

    def __init__(self, data: bytes, tokens: bytes) -> None:
        self.data = data
        self.tokens = tokens


class Lending:
    """A worker's end.

    Parameters
    ----------
    way : socket
        To the caller's `Receiver`.
    folder : str or None
        Where shared memory lies, of the call's `temp_folder`.
    sharers : int
        Processes that share the machine's bound on warm memory.
    """

    def __init__(self, way: socket.socket, folder: str | None, sharers: int) -> None:
        self.way = way
        self.pid = os.getpid()
        self.key = os.urandom(KEY_BYTES)
        self.store = store_for(folder, sharers)
        self.sharer = Sharer(self.store, RESULT_MIN_NBYTES, reuse=False)
        self.link = Link(keep_fds=False)
        self.unsent: list[int] = []

    def dump(self, result: Any) -> bytes | Prepared:
        """Pickle a result, its large buffers apart."""
        if type(result) in _SMALL:
            return pickle.dumps(result, protocol=5)
        data, blocks = self._encode(result)
        return Prepared(data, blocks) if blocks else data

    def _encode(self, result: Any) -> tuple[bytes, list[Block]]:
        try:
            return encode(result, self.sharer)
        except OSError:
            raise
        except Exception:
            import cloudpickle

            return encode(result, self.sharer, cloudpickle.Pickler)

    def lend(self, results: list[Any]) -> list[Any]:
        """Return a batch's results as they are sent, now that it is complete."""
        self.store.collect()
        sent = [
            Lent(r.data, self.link.lend(r.blocks)) if type(r) is Prepared else r
            for r in results
        ]
        self.unsent += self.link.take_fds()
        while self.unsent:
            # If this fails so does the batch, and the next one sends them.
            socket.send_fds(self.way, [self.key], self.unsent[:MOST_FDS])
            del self.unsent[:MOST_FDS]
        return sent


# In the caller, and in what it forks.
_receivers: WeakSet[Receiver] = WeakSet()
# In a worker: the way to the caller, and what goes it.
_way: socket.socket | None = None
_lending: Lending | None = None


def begin(
    way: socket.socket | None,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
) -> None:
    """Begin a worker; the initializer of the pool."""
    global _way
    _way = way
    for receiver in _receivers:
        receiver.end.close()
    if initializer is not None:
        initializer(*initargs)


def lending(folder: str | None, sharers: int) -> Lending | None:
    """Return this worker's `Lending`; None if there is no way to the caller."""
    global _lending
    if _way is None:
        return None
    if _lending is None or _lending.pid != os.getpid():  # a task has forked
        _lending = Lending(_way, folder, sharers)
    return _lending


class Receiver:
    """The caller's end, for all workers of one pool.

    Parameters
    ----------
    batches : int or None
        After how many batches a worker ends; None is never.

    Attributes
    ----------
    way : socket
        The workers' end, for `begin`.
    """

    def __init__(self, batches: int | None) -> None:
        self.batches = batches
        self.links: dict[bytes, Link] = {}
        self.read: dict[bytes, int] = {}
        self.end, self.way = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        _receivers.add(self)

    def load(self, key: bytes, results: list[Any]) -> list[Any]:
        """Return the results of a batch that has come back from a worker."""
        loaded = []
        for result in results:
            if type(result) is Lent:
                loaded.append(self._open(key, result))
            else:
                loaded.append(None if result is None else pickle.loads(result))
        if self.batches is not None:
            self.read[key] = self.read.get(key, 0) + 1
            if self.read[key] == self.batches:
                del self.read[key]
                if key in self.links:
                    self.links.pop(key).close()
        return loaded

    def _open(self, key: bytes, result: Lent) -> Any:
        self._receive()
        return decode(result.data, result.tokens, self.links[key], "r+")

    def _receive(self) -> None:
        """Take the descriptors that have come from all workers."""
        room = socket.CMSG_LEN(MOST_FDS * _FD.size)
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        while True:
            try:
                # Not `socket.recv_fds`, which does not pass the flags on.
                key, parts, _, _ = self.end.recvmsg(KEY_BYTES, room, flags)
            except BlockingIOError:
                return
            link = self.links.get(key)
            if link is None:
                link = self.links[key] = Link(keep_fds=False)
            for _, _, data in parts:
                whole = len(data) - len(data) % _FD.size
                link.give_fds([fd for (fd,) in _FD.iter_unpack(data[:whole])])

    def close(self) -> None:
        """All workers have ended."""
        for link in self.links.values():
            link.close()
        self.links.clear()
        self.end.close()
        self.way.close()


def receives() -> bool:
    """Whether results travel through shared memory at all."""
    return sys.platform == "linux"
