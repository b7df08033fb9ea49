"""Large arguments for the workers of a ``multiprocessing.Pool``: by descriptor's path.

A batch goes to whichever worker of the pool takes it from a queue, so there is no
channel to a worker on which blocks could be lent.  Instead a block is named by the path
of the caller's descriptor, ``/proc/<pid>/fd/<n>``, which the worker opens and maps.
Nothing has a name that outlives the caller.

Guarantee: a block is used for something else only if no worker can read it any more.
A batch's blocks stay with the `Lender` until the batch has come back, without a failed
task, and its worker has said that all mappings made for it are gone.  In every other
case (a task keeps its argument, or forks; a batch that is lost; failed tasks that will
be run again from the same blocks) they stay until the pool has ended.  If all workers
are replaced in the midst of a call, the batches that wait go to the others as they are.
"""

from __future__ import annotations

import mmap
import os
import pickle
import sys
import weakref

from fastjob._core.arrays import Sharer, encode
from fastjob._core.forks import register_at_fork
from fastjob._core.segments import Store
from fastjob._pool.memory import folder_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastjob._core.call import Call
    from fastjob._core.segments import Block

    Token = tuple[str, int, int]  # path, offset and length in bytes

_ACCESS = {
    "r": mmap.ACCESS_READ,
    "r+": mmap.ACCESS_WRITE,
    "w+": mmap.ACCESS_WRITE,
    "c": mmap.ACCESS_COPY,
}


def reachable() -> bool:
    """Whether other processes of this user can open this one's descriptors."""
    if sys.platform != "linux":
        return False
    try:
        return os.stat("/proc/self/fd").st_uid == os.geteuid()
    except OSError:
        return False


class Mapping(mmap.mmap):
    """A block in a worker.

    Attributes
    ----------
    mode : {'r', 'r+', 'c'}
        As of `numpy.memmap`.
    """

    mode: str


_forks = 0


def forks() -> int:
    """Count the forks of this process so far: a child has all mappings, too."""
    return _forks


def _count_fork() -> None:
    global _forks
    _forks += 1


register_at_fork(after_in_parent=_count_fork)


class Arguments:
    """A pickle of which the large buffers lie in shared memory.

    Parameters
    ----------
    data : bytes
    tokens : list of tuple
        Where the buffers are.
    mode : str
        The call's ``mmap_mode``.
    """

    __slots__ = ("data", "mode", "tokens")

    def __init__(self, data: bytes, tokens: list[Token], mode: str) -> None:
        self.data = data
        self.tokens = tokens
        self.mode = mode

    def open(self) -> tuple[Any, list[weakref.ref[Mapping]]]:
        """Return the object, and what was mapped for it; in a worker."""
        buffers = [self._map(*token) for token in self.tokens]
        made = [weakref.ref(buffer) for buffer in buffers]
        return pickle.loads(self.data, buffers=buffers), made

    def _map(self, path: str, offset: int, nbytes: int) -> Mapping:
        access = _ACCESS[self.mode]
        flags = os.O_RDWR if access == mmap.ACCESS_WRITE else os.O_RDONLY
        fd = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
        try:
            mapping = Mapping(fd, nbytes, access=access, offset=offset)
        finally:
            os.close(fd)
        mapping.mode = "r+" if self.mode == "w+" else self.mode
        return mapping


class Lender:
    """The shared memory that one pool's caller lends to its workers.

    Parameters
    ----------
    call : Call
        The first call of the pool; its `temp_folder` is used.
    """

    def __init__(self, call: Call) -> None:
        self.store = Store(folder_of(call.temp_folder))
        self.pid = os.getpid()
        self.lent: dict[int, list[Block]] = {}
        self.batches = 0
        self.call: Call | None = None
        self.sharer: Any = None

    def begin(self) -> int:
        """Return the number of a new batch."""
        self.batches += 1
        return self.batches

    def dump(self, obj: Any, call: Call, batch: int) -> Any:
        """Pickle a task of a batch, its large buffers apart."""
        if self.call is not call:
            self.forget()
            self.call, self.sharer = call, Sharer(self.store, call.max_nbytes)
        sharer = self.sharer
        sharer.epoch += 1
        try:
            data, blocks = encode(obj, sharer)
        except Exception:
            import cloudpickle

            data, blocks = encode(obj, sharer, cloudpickle.Pickler)
        if not blocks:
            return data
        blocks = [self._mappable(block) for block in blocks]
        self.lent.setdefault(batch, []).extend(blocks)
        tokens = [
            (f"/proc/{self.pid}/fd/{b.region.fd}", b.offset, b.nbytes) for b in blocks
        ]
        return Arguments(data, tokens, call.mmap_mode or "r")

    def _mappable(self, block: Block) -> Block:
        """Return a block that can be mapped.

        A part of what this process was itself lent begins anywhere.
        """
        if block.offset % mmap.ALLOCATIONGRANULARITY:
            return self.store.put(block)
        return block

    def returned(self, batch: int) -> None:
        """No worker can read the blocks of a batch any more."""
        if self.lent.pop(batch, None) is not None:
            self.store.collect()

    def forget(self) -> None:
        """A call has ended: its arrays may change."""
        if self.sharer is not None:
            self.sharer.clear()
        self.call = self.sharer = None

    def close(self) -> None:
        """All workers have ended."""
        self.forget()
        self.lent.clear()
        self.store.close()


def lends(call: Call) -> bool:
    """Whether the arguments of a call travel through shared memory at all."""
    return (
        call.max_nbytes >= 0
        and call.mmap_mode is not None
        and sys.platform == "linux"
        and reachable()
    )
