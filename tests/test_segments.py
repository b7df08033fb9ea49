"""The store and the links, with a real second process at the other end."""

import os
import random

import pytest
from peer import Peer

from fastjob._core.segments import Store

MB = 1 << 20


@pytest.fixture
def store():
    store = Store()
    yield store
    store.close()


@pytest.fixture
def peer():
    with Peer() as peer:
        yield peer


def test_a_block_arrives_as_it_was_put(store, peer):
    data = os.urandom(3 * MB + 17)
    peer("keep", "x", "r", blocks=[store.put(data)])
    assert peer("read", "x") == [data]


@pytest.mark.parametrize("nbytes", [0, 1, 4095, 65536, 65537, 5 * 65536, 9 * 65536 + 1])
def test_blocks_of_any_size_do_not_overlap(store, nbytes):
    blocks = [store.put(bytes([i]) * nbytes) for i in range(20)]
    assert [bytes(block) for block in blocks] == [
        bytes([i]) * nbytes for i in range(20)
    ]


def test_a_lent_block_is_not_reused_before_it_is_dropped(store, peer):
    peer("keep", "x", "r", blocks=[store.put(b"a" * MB)])
    others = [store.put(b"b" * MB) for _ in range(5)]
    assert peer("ends", "x") == [(97, 97, True)]
    assert store.live_blocks == 6
    peer("drop", "x")
    store.collect()
    assert store.live_blocks == len(others)


def test_the_owners_reference_alone_keeps_a_block(store, peer):
    block = store.put(b"a" * MB)
    peer("keep", "x", "r", blocks=[block])
    peer("drop", "x")
    store.collect()
    store.put(b"b" * MB)
    assert bytes(block) == b"a" * MB


def test_a_block_lent_twice_needs_both_views_dropped(store, peer):
    block = store.put(b"a" * MB)
    peer("keep", "x", "r", blocks=[block])
    peer("keep", "y", "r", blocks=[block])
    del block
    peer("drop", "x")
    store.collect()
    assert store.live_blocks == 1
    peer("drop", "y")
    store.collect()
    assert store.live_blocks == 0


def test_a_freed_block_is_reused_warm(store):
    offset = store.put(b"a" * MB).offset
    again = store.put(b"b" * (MB - 5))
    assert again.offset == offset
    assert store.region_count == 1


def test_a_discarded_token_ends_its_loan(store, peer):
    peer("discard", blocks=[store.put(b"a" * MB)])
    store.collect()
    assert store.live_blocks == 0


def test_a_token_in_flight_keeps_its_block_until_the_peer_is_dead(store, peer):
    peer("ignore", blocks=[store.put(b"a" * MB)])
    store.collect()
    assert store.live_blocks == 1
    peer.kill()
    peer.link.close()
    store.collect()
    assert store.live_blocks == 0


def test_views_survive_the_death_of_their_owner(peer):
    views = [peer.fetch(MB, fill) for fill in range(1, 9)]
    peer.kill()
    peer.link.close()
    del views[2:6]
    assert [bytes(view) for view in views] == [bytes([i]) * MB for i in (1, 2, 7, 8)]


@pytest.mark.parametrize("mode", ["r", "r+", "w+", "c"])
def test_modes_are_those_of_memmap(store, peer, mode):
    block = store.put(b"a" * MB)
    peer("keep", "x", mode, blocks=[block])
    if mode == "r":
        with pytest.raises(TypeError, match="read-only"):
            peer("write", "x", 0, b"b")
        assert peer("ends", "x") == [(97, 97, True)]
    else:
        peer("write", "x", 0, b"b")
        assert peer("ends", "x") == [(98, 97, False)]
    assert bytes(block)[:1] == (b"b" if mode in ("r+", "w+") else b"a")


def test_random_keeping_and_dropping_never_shows_a_wrong_byte(store, peer):
    choose = random.Random(5)
    mine, theirs = {}, {}
    for step in range(1500):
        fill = step % 251 + 1
        size = choose.choice([1000, 65536, 70000, 200000, MB])
        action = choose.random()
        if action < 0.35:
            blocks = [store.put(bytes([fill]) * size)] * choose.choice([1, 1, 2])
            peer("keep", step, choose.choice(["r", "c"]), blocks=blocks)
            theirs[step] = (fill, len(blocks))
        elif action < 0.6:
            mine[step] = (
                fill,
                size,
                peer.fetch(size, fill, keep=choose.random() < 0.2),
            )
        elif action < 0.75 and theirs:
            name = choose.choice(list(theirs))
            fill, count = theirs.pop(name)
            assert peer("ends", name) == [(fill, fill, True)] * count
            peer("drop", name)
        elif action < 0.95 and mine:
            fill, size, view = mine.pop(choose.choice(list(mine)))
            assert bytes(view) == bytes([fill]) * size
        else:
            store.collect()
            peer("counts")
    for fill, size, view in mine.values():
        assert bytes(view) == bytes([fill]) * size
    for name, (fill, count) in theirs.items():
        assert peer("ends", name) == [(fill, fill, True)] * count
        peer("drop", name)
    mine.clear()
    del view, blocks
    store.collect()
    assert store.live_blocks == 0
