"""Large results of the workers of a ``multiprocessing.Pool``: lent to the caller.

A worker puts the large buffers of its results into shared memory of its own and lends
them to the caller, as a worker of the process backend does (``_core/lending.pyx``): the
caller maps them, and the worker uses a block again once the caller's arrays on it are
gone, which it learns from a byte in shared memory.  What the pool does not have is a
way for the descriptors, so each worker that has something to lend makes a connection of
its own to the caller, a socket with no name in the file system.

    worker: connect, send its key ── lend, send descriptors ── return batch with tokens
    caller: ................................ gets the batch ── accept, receive, open

Guarantee: a batch that has come back can be opened, whatever has become of its worker.
1. The worker sends before it returns the batch, so what the caller has to accept and to
   receive is there.  Descriptors that were sent are kept by the
   kernel, and the memory by the descriptors, also when the worker has ended since.
2. The caller keeps its end of a worker's `Link` until all batches of that worker have
   been read.  A worker that ends by itself does so after a number of batches that the
   pool was told (``maxtasksperchild``); when one ends in any other way, all batches in
   flight fail, and with them the pool.
3. Only regions have descriptors, of which there are few (their size doubles), so a
   worker never waits for the caller to receive them.

Memory goes with the worker and the caller's arrays: a killed caller's workers find
the end of the pool's pipes and end.  Where the worker cannot connect, or there is no
room, the result is pickled as a whole.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import sys

from fastjob._core.arrays import RESULT_MIN_NBYTES, Sharer, decode, encode
from fastjob._core.lending import Link
from fastjob._pool.memory import store_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastjob._core.segments import Block

KEY_BYTES = 16
# Descriptors in one message; the kernel takes 253.
MOST_FDS = 200
_FD = struct.Struct("i")
_PEER = struct.Struct("3i")  # process, user, group
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
    address : bytes
        Of the caller's `Receiver`.
    folder : str or None
        Where shared memory lies, of the call's `temp_folder`.
    sharers : int
        Processes that share the machine's bound on warm memory.
    """

    def __init__(self, address: bytes, folder: str | None, sharers: int) -> None:
        self.address = address
        self.pid = os.getpid()
        self.key = os.urandom(KEY_BYTES)
        self.store = store_for(folder, sharers)
        self.sharer = Sharer(self.store, RESULT_MIN_NBYTES, reuse=False)
        self.link = Link(keep_fds=False)
        self.socket: socket.socket | None = None

    def dump(self, result: Any) -> bytes | Prepared:
        """Pickle a result, its large buffers apart."""
        if type(result) in _SMALL:
            return pickle.dumps(result, protocol=5)
        data, blocks = self._encode(result)
        if not blocks:
            return data
        self._connect()
        return Prepared(data, blocks)

    def _encode(self, result: Any) -> tuple[bytes, list[Block]]:
        try:
            return encode(result, self.sharer)
        except OSError:
            raise
        except Exception:
            import cloudpickle

            return encode(result, self.sharer, cloudpickle.Pickler)

    def _connect(self) -> None:
        if self.socket is not None:
            return
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            end.connect(self.address)
            end.sendall(self.key)
        except OSError:
            end.close()
            raise
        self.socket = end

    def lend(self, results: list[Any]) -> list[Any]:
        """Return a batch's results as they are sent, now that it is complete."""
        self.store.collect()
        sent = [
            Lent(r.data, self.link.lend(r.blocks)) if type(r) is Prepared else r
            for r in results
        ]
        fds = self.link.take_fds()
        while fds:
            assert self.socket is not None  # or no result would have been prepared
            socket.send_fds(self.socket, [b"."], fds[:MOST_FDS])
            del fds[:MOST_FDS]
        return sent


_lending: Lending | None = None


def lending(address: bytes, folder: str | None, sharers: int) -> Lending:
    """Return this worker's `Lending` to the caller of that address."""
    global _lending
    if (
        _lending is None
        or _lending.address != address
        or _lending.pid != os.getpid()  # a task has forked
    ):
        _lending = Lending(address, folder, sharers)
    return _lending


class _Worker:
    """What the caller has of one worker."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.link = Link(keep_fds=False)

    def receive(self) -> None:
        """Take the descriptors that have come."""
        room = socket.CMSG_LEN(MOST_FDS * _FD.size)
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        while True:
            try:
                # Not `socket.recv_fds`, which does not pass the flags on.
                body, parts, _, _ = self.end.recvmsg(64, room, flags)
            except (BlockingIOError, ConnectionError):
                return
            for _, _, data in parts:
                whole = len(data) - len(data) % _FD.size
                self.link.give_fds([fd for (fd,) in _FD.iter_unpack(data[:whole])])
            if not body:
                return  # it has ended

    def close(self) -> None:
        self.link.close()
        self.end.close()


class Receiver:
    """The caller's end, for all workers of one pool.

    Parameters
    ----------
    batches : int or None
        After how many batches a worker ends; None is never.

    Attributes
    ----------
    address : bytes
    """

    def __init__(self, batches: int | None) -> None:
        self.batches = batches
        self.workers: dict[bytes, _Worker] = {}
        self.read: dict[bytes, int] = {}
        self.socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        )
        self.address = b"\0fastjob-" + os.urandom(KEY_BYTES).hex().encode()
        self.socket.bind(self.address)
        # As many as the kernel allows: a worker waits if there are more at once.
        self.socket.listen(4096)

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
                if key in self.workers:
                    self.workers.pop(key).close()
        return loaded

    def _open(self, key: bytes, result: Lent) -> Any:
        while key not in self.workers:
            self._accept()
        worker = self.workers[key]
        worker.receive()
        return decode(result.data, result.tokens, worker.link, "r+")

    def _accept(self) -> None:
        """Take a connection; there is one, since its worker has said so."""
        end, _ = self.socket.accept()
        credentials = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        _, user, _ = _PEER.unpack(credentials)
        # It may be another user's. A worker sends its key as soon as it has connected.
        key = end.recv(KEY_BYTES) if user == os.geteuid() else b""
        if len(key) == KEY_BYTES:
            self.workers[key] = _Worker(end)
        else:
            end.close()

    def close(self) -> None:
        """All workers have ended."""
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()
        self.socket.close()


def receives() -> bool:
    """Whether results travel through shared memory at all."""
    return sys.platform == "linux"
