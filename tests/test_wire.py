"""Damaged messages between a caller and a worker: an error, never a crash or a hang.

A relay stands between the two and changes bytes of what the worker sends. The worker
is a real one; what arrives damaged at the caller is decoded by the real decoder.
"""

from __future__ import annotations

import select
import socket
import threading
from unittest import mock

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


class Severed(Exception):
    """The stream of a relayed worker has ended."""


class RelayedPool:
    """Stands in for the pool: its worker's words pass through `damage`."""

    def __init__(self, damage):
        self.damage = damage
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
        position, heard = 0, False
        with to_worker, to_caller:
            while True:
                ready, _, _ = select.select(
                    [to_worker, to_caller], [], [], QUIET if heard else None
                )
                if not ready:
                    return
                try:
                    if to_caller in ready:
                        data = to_caller.recv(1 << 16)
                        if not data:
                            return
                        to_worker.sendall(data)
                    if to_worker in ready:
                        data = bytearray(to_worker.recv(1 << 16))
                        if not data:
                            return
                        heard = True
                        for at, bits in self.damage:
                            if position <= at < position + len(data):
                                data[at - position] ^= bits
                        position += len(data)
                        to_caller.sendall(data)
                except OSError:
                    return

    def release(self, peers):
        while peers:
            peers.pop().close()

    def kill(self, peer):
        peer.close()

    def explain(self, peer):
        raise Severed

    def join(self):
        for thread in self.threads:
            thread.join()


def run_damaged(damage):
    relayed = RelayedPool(damage)
    call = Call(1, batch_size=5, ahead=2, options={})
    with mock.patch.object(process_engine, "pool", relayed):
        engine = process_engine.ProcessEngine(call)
        try:
            return engine.run(iter([(abs, (-i,), {}) for i in range(20)]))
        finally:
            relayed.join()


@pytest.fixture(scope="module", autouse=True)
def nursery():
    assert Parallel(2, "processes")(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
    yield
    until(lambda: not [t for t in threading.enumerate() if "relay" in t.name])


def test_an_undamaged_relay_changes_nothing():
    assert run_damaged([]) == list(range(20))


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
        found = run_damaged(damage)
    except Exception:
        return
    assert len(found) == 20


@pytest.mark.parametrize("at", range(48))
def test_each_byte_of_a_header_can_be_wrong(at):
    try:
        found = run_damaged([(at, 0xFF)])
    except Exception:
        return
    assert len(found) == 20


def test_a_message_of_another_kind_is_refused_and_not_unpickled():
    with pytest.raises(Severed):
        run_damaged([(0, 1)])


def test_a_channel_closes_its_descriptor():
    left, right = pair()
    assert left.fd >= 0 and right.fd >= 0
    left.close()
    assert left.fd == -1
    left.close()
    right.close()
