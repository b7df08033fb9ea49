"""Damaged messages between a caller and a worker: an error, never a crash or a hang.

A relay stands between the two and damages what one of them says. Both are real ones:
what arrives is decoded by the real decoder. A damaged pickle can do anything, so but
for pickles of small integers the damage is in headers, in tokens of shared memory, and
in where a frame ends. Most of that is refused by the check word of a header; `forge`
mends the word, for what is checked behind it.
"""

from __future__ import annotations

import functools
import logging
import operator
import os
import select
import socket
import struct
import threading
from unittest import mock

import numpy as np
import pytest
from gates import until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastjob import Parallel, delayed
from fastjob._core.call import Call
from fastjob._core.peer import Peer
from fastjob._core.wire import Channel, pair
from fastjob._pool.pool import pool
from fastjob.backends import process_engine

QUIET = 0.02  # a relay that has heard nothing for so long ends the stream
FIRST_QUIET = 0.5  # if the worker has said nothing yet
PATIENT = 30.0  # where nothing is damaged

# As in wire.pxd: check word, kind, flags, descriptors, number, count, size of the body,
# stamp, extra, ended.
HEADER = struct.Struct("=IBBHIIQqqq")
DEFINE, BATCH, REPLY, NOTE = 2, 4, 16, 17
MIXED, BLOCK, LOANS = 2, 16, 64
TOKEN_BYTES = 24


class Severed(Exception):
    """The stream of a relayed worker has ended."""


# -- damage to a frame, in place; the name of a function, and its arguments -----------


def flip(frame, at, bits):
    """Change a byte of the header."""
    frame[at % HEADER.size] ^= bits


def forge(frame, at, bits):
    """Change a byte of the header, and make its check word right again."""
    frame[4 + at % (HEADER.size - 4)] ^= bits
    mend(frame)


def token(frame, at, bits):
    """Change a byte of the tokens, if there are any."""
    start, size = tokens_of(frame)
    if 0 < size <= len(frame) - start:
        frame[start + at % size] ^= bits


def cut(frame, at, _):
    """Let the stream end within a frame."""
    del frame[at % len(frame) :]


def insert(frame, at, bits):
    """Put some bytes into the header, or before it."""
    frame[at % HEADER.size : at % HEADER.size] = bytes([bits]) * (1 + at % 5)


def repeat(frame, at, bits):
    """Send a frame, or the beginning of its header, twice."""
    size = len(frame) if bits % 2 else at % HEADER.size
    frame[:0] = frame[:size]


def mend(frame):
    """What `check_of` in wire.pyx computes."""
    frame[:4] = bytes(4)
    mixed = spread = 0x9E3779B97F4A7C15
    for word in struct.unpack_from("=6Q", frame):
        mixed = (mixed ^ word) * spread % (1 << 64)
        mixed ^= mixed >> 32
    frame[:4] = (mixed % (1 << 32)).to_bytes(4, "little")


def tokens_of(frame):
    """Where the tokens of a frame lie, and how many bytes they are."""
    _, kind, flags, _, _, count, size, _, extra, _ = HEADER.unpack_from(frame)
    if kind == REPLY and flags & LOANS:
        return HEADER.size, extra
    if kind == DEFINE and flags & LOANS:
        return HEADER.size, count
    if kind == BATCH and flags & BLOCK:
        return HEADER.size, size
    # Those of arguments are the last in the pickle of such a batch.
    with_tokens = kind == BATCH and flags & MIXED
    at = frame.rfind(b"C" + bytes([TOKEN_BYTES])) if with_tokens else -1
    return at + 2, TOKEN_BYTES if at >= 0 else 0


class Stream:
    """One direction of a relay.

    Parameters
    ----------
    damage : list of tuple
        ``(frame, function, at, bits)``.
    flips : list of tuple
        ``(position, bits)``: bytes to change, counted from the first one.
    """

    def __init__(self, damage=(), flips=()):
        self.damage = damage
        self.flips = flips
        self.data = bytearray()
        self.fds = []
        self.position = 0
        self.seen = []  # kinds and flags

    def pass_on(self, source, sink):
        """Pass on whole frames; false at the end."""
        data, fds, _, _ = socket.recv_fds(source, 1 << 16, 64)
        self.data += data
        self.fds += fds
        while len(self.data) >= HEADER.size:
            head = HEADER.unpack_from(self.data)
            end = HEADER.size + head[6]
            if len(self.data) < end:
                break
            frame = self.data[:end]
            del self.data[:end]
            for at, bits in self.flips:
                if self.position <= at < self.position + end:
                    frame[at - self.position] ^= bits
            self.position += end
            ends = False
            for number, function, at, bits in self.damage:
                if number == len(self.seen) and len(frame) >= HEADER.size:
                    function(frame, at, bits)
                    ends = ends or function is cut
            self.seen.append(head[1:3])
            if frame:
                sent = socket.send_fds(sink, [frame], self.fds)
                sink.sendall(frame[sent:])
                self.close()
            if ends:
                return False
        return bool(data)

    def close(self):
        while self.fds:
            os.close(self.fds.pop())


class RelayedPool:
    """Stands in for the pool: what its worker hears and says passes two streams."""

    def __init__(self, heard, said, patient):
        self.heard = heard
        self.said = said
        self.patient = patient
        self.threads = []

    def lease(self, n, peers, call):
        nursery = pool._nursery
        slot = nursery.free_slot()
        to_worker, workers_end = socket.socketpair()
        to_caller, callers_end = socket.socketpair()
        peer = Peer(Channel(callers_end.detach()), nursery.page, slot, None)
        nursery.page.clear(slot)
        nursery.fork(slot, workers_end.fileno())
        workers_end.close()
        thread = threading.Thread(target=self.relay, args=(to_worker, to_caller))
        thread.start()
        self.threads.append(thread)
        peers.append(peer)
        self.peer = peer  # as an owner would: the slot is not free

    def relay(self, to_worker, to_caller):
        with to_worker, to_caller:
            while True:
                quiet = QUIET if self.said.seen else FIRST_QUIET
                ready, _, _ = select.select(
                    [to_worker, to_caller], [], [], PATIENT if self.patient else quiet
                )
                try:
                    if not ready:
                        return
                    alive = True
                    if to_caller in ready:
                        alive = self.heard.pass_on(to_caller, to_worker)
                    if alive and to_worker in ready:
                        alive = self.said.pass_on(to_worker, to_caller)
                except OSError:
                    return
                if not alive:
                    return

    def hear(self, note):
        pool.hear(note)

    def release(self, peers):
        while peers:
            peers.pop().close()

    def kill(self, peer):
        peer.close()

    def explain(self, peer):
        raise Severed

    def join(self):
        """See that the worker ends, and not by a signal."""
        for thread in self.threads:
            thread.join()
        self.heard.close()
        self.said.close()
        until(self.peer.part)
        _, _, status, _ = self.peer.fate()
        assert os.waitstatus_to_exitcode(status) in (0, 1)


def small(i):
    return abs, (-i,), {}


def long(i):
    """Arguments whose pickle lies in a block."""
    return max, tuple(range(i, i + 25_000)), {}


def answer(i):
    """A result whose pickle lies in a block."""
    return bytes, (300_000 + i,), {}


def array(i):
    """An argument that is lent for its task, and a result that is lent."""
    return operator.neg, (np.full(20_000, float(i)),), {}


shift = functools.partial(operator.add, np.ones(20_000))


def define(i):
    """A function with an array, which is sent once."""
    return shift, (i,), {}


def note(i):
    """A task that says something."""
    return logging.log, (60, "task"), {}


TASKS = [small, long, answer, array, define, note]


def run_damaged(flips=(), *, task=small, heard=(), said=(), patient=False):
    relayed = RelayedPool(Stream(heard), Stream(said, flips), patient)
    call = Call(1, batch_size=5, ahead=2, max_nbytes=1 << 16, options={})
    n = 20 if task is small else 12
    with mock.patch.object(process_engine, "pool", relayed):
        engine = process_engine.ProcessEngine(call)
        try:
            found = engine.run(iter([task(i) for i in range(n)]))
        finally:
            relayed.join()
    assert len(found) == n
    return found, relayed


@pytest.fixture(scope="module", autouse=True)
def nursery():
    run = Parallel(2, "processes", preload=["numpy"])
    assert run(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
    yield
    until(lambda: not [t for t in threading.enumerate() if "relay" in t.name])


@pytest.mark.parametrize("task", TASKS)
def test_an_undamaged_relay_changes_nothing(task):
    found, relayed = run_damaged(task=task, patient=True)
    expected = [f(*args, **kwargs) for f, args, kwargs in map(task, range(len(found)))]
    assert all(map(np.array_equal, found, expected))
    # The damage below finds what it is for.
    heard, said = relayed.heard.seen, relayed.said.seen
    assert (NOTE, 0) in said or task is not note
    if task is long:
        assert any(kind == BATCH and flags & BLOCK for kind, flags in heard)
    if task is answer:
        assert any(kind == REPLY and flags & BLOCK for kind, flags in said)
    if task is array:
        assert any(kind == BATCH and flags & MIXED for kind, flags in heard)
    if task is define:
        assert any(kind == DEFINE and flags & LOANS for kind, flags in heard)
    if task in (array, define):
        assert any(kind == REPLY and flags & LOANS for kind, flags in said)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(1, 255)), min_size=1, max_size=4
    )
)
def test_a_damaged_reply_is_an_error_or_a_wrong_value_and_nothing_worse(damage):
    try:
        run_damaged(damage)
    except AssertionError:
        raise
    except Exception:
        return


damages = st.lists(
    st.tuples(
        st.integers(0, 7),
        st.sampled_from([flip, forge, token, cut, insert, repeat]),
        st.integers(0, 1000),
        st.integers(1, 255),
    ),
    min_size=1,
    max_size=3,
)
damages_or_none = st.one_of(st.just([]), damages)


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=40, deadline=None)
@given(heard=damages_or_none, said=damages_or_none)
def test_damage_of_any_kind_either_way_is_an_error_or_a_wrong_value(task, heard, said):
    try:
        run_damaged(task=task, heard=heard, said=said)
    except AssertionError:
        raise
    except Exception:
        return


@pytest.mark.parametrize("way", ["heard", "said"])
@pytest.mark.parametrize("at", range(HEADER.size))
def test_each_byte_of_a_header_can_be_wrong(at, way):
    with pytest.raises(Severed):
        run_damaged(**{way: [(0, flip, at, 0xFF)]})


@pytest.mark.parametrize(
    ("task", "way"),
    [
        *((long, "heard"), (array, "heard"), (define, "heard")),
        *((answer, "said"), (array, "said"), (define, "said")),
    ],
)
def test_a_token_that_cannot_be_right_ends_the_worker(task, way):
    # The highest bytes of offset, size, number of the region, slot.
    for at in (7, 15, 19, 23):
        with pytest.raises(Severed):
            every = [(frame, token, at, 0x80) for frame in range(20)]
            run_damaged(task=task, **{way: every})


def test_a_message_of_another_kind_is_refused_and_not_unpickled():
    with pytest.raises(Severed):
        run_damaged(said=[(0, forge, 0, REPLY ^ BATCH)])


def test_a_channel_closes_its_descriptor():
    left, right = pair()
    assert left.fd >= 0 and right.fd >= 0
    left.close()
    assert left.fd == -1
    left.close()
    right.close()
