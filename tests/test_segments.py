"""The store and the links, with a real second process at the other end."""

import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading

import pytest
from peer import Peer

from fastjob._core import inheriting, segments
from fastjob._core.lending import Link
from fastjob._core.regions import temporary_folder
from fastjob._core.segments import Store
from fastjob._core.wire import WireError

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


def memory_of(region):
    """Bytes behind a region, as the kernel counts them."""
    return os.fstat(region.fd).st_blocks * 512


def test_a_larger_buffer_in_a_block_that_is_partly_warm_arrives_whole(store, peer):
    for size in (70_000, 131_072, 66_000, 131_071):
        data = os.urandom(size)
        peer("keep", "x", "r", blocks=[store.put(data)])
        assert peer("read", "x") == [data]
        peer("drop", "x")
    assert store.region_count == 1


def test_allocated_blocks_are_written_in_place(store, peer):
    block = store.allocate(3 * MB)
    memoryview(block)[:] = b"a" * (3 * MB)
    peer("keep", "x", "r", blocks=[block])
    assert peer("ends", "x") == [(97, 97, True)]
    assert store.copies == 0


def test_counts_tell_copies_and_memory(store):
    block = store.put(b"a" * MB)
    assert (store.copies, store.copied_bytes) == (1, MB)
    assert (store.live_blocks, store.live_bytes, store.warm_bytes) == (1, MB, 0)
    del block
    assert store.collect()
    assert (store.live_blocks, store.live_bytes, store.warm_bytes) == (0, 0, MB)


def test_free_memory_beyond_the_limit_is_given_back_oldest_first():
    store = Store(warm_limit=3 * MB)
    blocks = [store.put(bytes([i]) * MB) for i in range(1, 9)]
    region = blocks[0].region
    assert memory_of(region) == 8 * MB
    last = blocks[-1].offset
    while blocks:
        del blocks[0]
    assert store.collect()
    assert memory_of(region) == store.warm_bytes == 3 * MB
    assert store.put(b"a" * MB).offset == last
    store.close()


def test_idle_memory_is_given_back():
    store = Store(idle_seconds=0)
    block = store.put(b"a" * MB)
    region = block.region
    del block
    assert not store.collect()
    assert memory_of(region) == store.warm_bytes == 0
    again = store.put(b"b" * MB)
    assert bytes(again) == b"b" * MB
    store.close()


def test_regions_double_so_that_their_number_stays_small(store):
    blocks = [store.put(bytes(5 * MB)) for _ in range(60)]
    assert [store.region_count, len({block.region for block in blocks})] == [4, 4]


def test_a_buffer_larger_than_a_region_gets_one_of_its_own(store):
    block = store.put(bytes(100 * MB))
    assert block.region.size >= 100 * MB


def test_a_hundred_thousand_views_take_no_mappings_and_no_descriptors(store, peer):
    block = store.put(b"a" * MB)
    peer("keep", "first", "r", blocks=[block])
    before = peer("maps")
    peer("keep", "x", "r", blocks=[block] * 100_000)
    maps, fds = peer("maps")
    assert maps <= before[0] + 20  # the objects' own memory
    assert fds == before[1]
    assert peer.link.outstanding == 100_001
    peer("drop", "x")
    store.collect()
    assert peer.link.outstanding == 1


def test_slots_are_used_again(store, peer):
    for _ in range(300):
        peer("keep", "x", "r", blocks=[store.put(b"a" * 1000)] * 7)
        peer("drop", "x")
        store.collect()
    tokens = peer.link.lend([store.put(b"a")])
    assert int.from_bytes(tokens[20:24], sys.byteorder) < 7
    peer("discard_these", tokens)


def test_tokens_of_a_dead_peer_can_be_opened_until_the_link_is_closed(peer):
    _, tokens = peer.ask("give", MB, 5, False)
    peer.kill()
    (view,) = peer.link.open(tokens, "r+")
    peer.link.close()
    assert bytes(view) == b"\x05" * MB


def test_memory_of_a_dead_peer_that_no_view_covers_is_given_back(peer):
    views = [peer.fetch(MB, fill, keep=True) for fill in range(1, 9)]
    twice = [peer.link.open(peer.ask("give_kept", 3)[1], "r+")[0] for _ in range(2)]
    region = views[0].region
    del views[2:6]
    peer.kill()
    peer.link.close()
    assert memory_of(region) == 5 * MB
    del views[0], twice[0]
    assert memory_of(region) == 4 * MB
    assert bytes(twice[0]) == b"\x03" * MB
    assert [bytes(view) for view in views] == [bytes([i]) * MB for i in (2, 7, 8)]
    twice.clear()
    assert memory_of(region) == 3 * MB


def test_memory_of_a_dead_peer_is_kept_for_a_child_that_is_being_forked(peer):
    views = [peer.fetch(MB, fill) for fill in (1, 2, 3)]
    region = views[0].region
    peer.kill()
    peer.link.close()
    inheriting.before_fork()
    del views[0]  # as in another thread: the child may have been made already
    assert memory_of(region) == 3 * MB
    inheriting.after_fork_in_parent()
    inheriting.settle_forks()  # there was no child
    assert memory_of(region) == 2 * MB
    del views[0]
    assert memory_of(region) == MB
    assert bytes(views[0]) == b"\x03" * MB


def test_memory_of_a_dead_peer_is_given_back_after_the_last_child(peer):
    views = [peer.fetch(MB, fill) for fill in (1, 2, 3)]
    region = views[0].region
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)
        os._exit([bytes(view)[0] for view in views] != [1, 2, 3])
    os.close(read)
    del views[0]
    peer.kill()
    peer.link.close()
    del views[0]
    inheriting.settle_forks()
    assert memory_of(region) == 3 * MB
    os.close(write)
    assert os.waitpid(child, 0)[1] == 0
    inheriting.settle_forks()
    assert memory_of(region) == MB
    assert bytes(views[0]) == b"\x03" * MB


def test_closing_twice_and_using_a_closed_link(store, peer):
    block = store.put(b"a")
    peer.kill()
    peer.link.close()
    peer.link.close()
    for use in (
        lambda: peer.link.lend([block]),
        lambda: peer.link.open(bytes(24), "r"),
        lambda: peer.link.discard(bytes(24)),
        lambda: peer.link.give_fds([]),
    ):
        with pytest.raises(RuntimeError, match="after it was closed"):
            use()


TOKEN = struct.Struct("=QQII")  # offset, nbytes, region, slot


@pytest.mark.parametrize("use", ["open", "discard"])
@pytest.mark.parametrize("tokens", [bytes(24), bytes(23)])
def test_a_token_without_its_region_is_refused(peer, use, tokens):
    with pytest.raises(WireError, match="report it"):
        peer.link.open(tokens, "r") if use == "open" else peer.link.discard(tokens)


@pytest.mark.parametrize("use", ["open", "discard"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((0, value) for value in (1, 4096, 64 * MB, 64 * MB + 1, 1 << 40)),
        *((0, value) for value in ((1 << 63) + 1, (1 << 64) - 1, (1 << 64) - 65536)),
        *((1, value) for value in (64 * MB + 1, 1 << 40, (1 << 64) - 1)),
        *((2, value) for value in (1, 2048, (1 << 32) - 1)),
        *((3, value) for value in (0, 2, 4096, (1 << 24) - 1, 1 << 24, (1 << 32) - 1)),
    ],
)
def test_a_token_that_cannot_be_right_is_refused(peer, use, field, value):
    _, other = peer.ask("give", MB, 5, False)
    _, tokens = peer.ask("give", MB, 6, False)
    peer.link.discard(other)  # slot 0 is returned, and the peer's to lend again
    parts = list(TOKEN.unpack(tokens))
    parts[field] = value
    damaged = TOKEN.pack(*parts)
    with pytest.raises(WireError, match="report it"):
        if use == "open":
            peer.link.open(tokens + damaged, "r")
        else:
            peer.link.discard(damaged)
    peer.link.discard(tokens)


def test_a_token_that_comes_twice_shows_a_wrong_value_and_returns_one_loan(peer):
    _, tokens = peer.ask("give", MB, 5, False)
    _, others = peer.ask("give", MB, 6, False)
    views = peer.link.open(tokens + tokens, "r")
    del views[0], views[0]
    peer.link.discard(others)
    assert peer("counts")["live"] == 0


def test_a_mode_that_does_not_exist_is_refused(peer):
    with pytest.raises(ValueError, match="mode must be"):
        peer.link.open(b"", "w")


def test_without_descriptors_there_is_no_copy_on_write_and_no_passing_on(store):
    with Peer(keep_fds=False) as peer:
        before = len(os.listdir("/proc/self/fd"))
        view = peer.fetch(MB, 5)
        assert len(os.listdir("/proc/self/fd")) == before
        assert view.region.fd == -1
        _, tokens = peer.ask("give", MB, 6, False)
        with pytest.raises(ValueError, match="keeps descriptors"):
            peer.link.open(tokens, "c")
        assert peer("counts")["outstanding"] == 1  # the failed one was returned
        assert bytes(view) == b"\x05" * MB


def test_descriptors_of_rubbish_are_closed(peer, tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    peer.fetch(MB, 5)
    before = len(os.listdir("/proc/self/fd"))
    fds = [os.open(empty, os.O_RDWR) for _ in range(3)]
    with pytest.raises(WireError, match="0 bytes came as shared memory"):
        peer.link.give_fds(fds)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_region_in_the_place_of_a_table_is_refused(store, peer):
    lent = peer.link.lend([store.put(b"a")])
    table, region = map(os.dup, peer.link.take_fds())
    other = Link()
    with pytest.raises(WireError, match="came as shared memory"):
        other.give_fds([region, table])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(table)
    with pytest.raises(WireError, match="without its descriptor"):
        other.open(lent, "r")
    other.close()


def test_the_temporary_folder_is_that_of_tempfile(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert temporary_folder() == tempfile.gettempdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert temporary_folder() == str(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.setenv("TEMP", str(tmp_path))
    assert temporary_folder() == tempfile.gettempdir() == str(tmp_path)


def test_the_temporary_folder_is_found_without_a_file(tmp_path, monkeypatch):
    def refuse():
        raise AssertionError("a killed worker would leave this file")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", refuse)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert temporary_folder() == str(tmp_path)
    # A folder that has gone is passed over, and another one looked for.
    store = Store(folder=str(tmp_path / "gone"))
    with pytest.warns(RuntimeWarning, match="No such file or directory"):
        assert bytes(store.put(b"x" * 100)) == b"x" * 100


@pytest.mark.skipif(not hasattr(fcntl, "F_SEAL_SHRINK"), reason="no seals here")
def test_nobody_can_make_a_region_or_a_table_shorter(store, peer):
    peer.link.lend([store.put(b"a")])
    for fd in peer.link.take_fds():
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)


def test_a_store_cannot_be_used_after_it_was_closed():
    store = Store()
    block = store.put(b"a" * MB)
    store.close()
    assert bytes(block) == b"a" * MB
    with pytest.raises(RuntimeError, match="after it was closed"):
        store.put(b"a")
    assert not store.collect()


def test_a_buffer_of_absurd_size_is_refused(store):
    with pytest.raises(OverflowError, match="too large to share"):
        store.allocate(1 << 63)
    with pytest.raises(OSError, match="cannot map"):
        store.allocate(1 << 55)
    assert bytes(store.put(b"a")) == b"a"


def test_threads_share_a_store_without_mixing_blocks_up(store):
    wrong = []

    def work(number):
        choose = random.Random(number)
        kept = []
        for step in range(300):
            size = choose.choice([10, 65_536, 70_000, 300_000])
            data = bytes([number * 40 + step % 40]) * size
            kept.append((data, store.put(data)))
            if len(kept) > 5:
                data, block = kept.pop(choose.randrange(6))
                if bytes(block) != data:
                    wrong.append((number, step))
            if step % 50 == 0:
                store.collect()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    store.collect()
    assert store.live_blocks == 0


def test_a_forked_child_of_the_receiver_keeps_what_its_parent_drops(store, peer):
    peer("keep", "x", "r", blocks=[store.put(b"a" * MB)])
    peer("keep", "y", "r", blocks=[store.put(b"b" * MB)])
    peer("fork")
    peer("drop", "x")
    store.collect()
    assert store.live_blocks == 2
    others = [store.put(b"c" * MB) for _ in range(5)]
    assert peer("end_child") == {"x": [b"a"], "y": [b"b"]}
    peer("counts")
    store.collect()
    assert store.live_blocks == len(others) + 1
    peer("drop", "y")
    store.collect()
    assert store.live_blocks == len(others)


def test_two_forked_children_both_have_to_end(store, peer):
    peer("keep", "x", "r", blocks=[store.put(b"a" * MB)])
    peer("fork")
    peer("fork")
    before = peer("maps")[1]
    peer("drop", "x")
    for left in (1, 0):
        store.put(b"c" * MB)
        assert peer("end_child") == {"x": [b"a"]}
        peer("counts")
        store.collect()
        assert store.live_blocks == left
    assert peer("maps")[1] == before - 2 - 4  # pipes of the links, and of the test


def test_a_child_keeps_only_what_was_there_when_it_was_forked(store, peer):
    peer("keep", "w", "r", blocks=[store.put(b"w" * MB)])
    peer("fork")  # lives until the end; w
    peer("keep", "x", "r", blocks=[store.put(b"x" * MB)])
    peer("fork")  # w, x
    peer("drop", "x")
    peer("keep", "y", "r", blocks=[store.put(b"y" * MB)])
    peer("fork")  # w, y
    peer("drop", "y")
    peer("drop", "w")
    long = peer("rotate")

    def live():
        peer("counts")
        store.collect()
        return store.live_blocks

    assert live() == 3
    assert peer("end_child") == {"w": [b"w"], "x": [b"x"]}
    assert live() == 2  # although an older and a newer child live
    peer("keep", "z", "r", blocks=[store.put(b"z" * MB)])
    peer("drop", "z")
    assert live() == 2
    assert peer("end_child") == {"w": [b"w"], "y": [b"y"]}
    assert live() == 1
    assert long == 3
    assert peer("end_child") == {"w": [b"w"]}
    assert live() == 0


def test_a_slot_that_is_lent_again_belongs_to_later_forks_alone(store, peer):
    peer("keep", "w", "r", blocks=[store.put(b"w" * MB)])
    peer("keep", "x", "r", blocks=[store.put(b"x" * MB)])
    peer("fork")
    peer("drop", "x")
    assert peer("end_child") == {"w": [b"w"], "x": [b"x"]}
    peer("counts")
    store.collect()
    peer("fork")
    peer("keep", "y", "r", blocks=[store.put(b"y" * MB)])  # in the slot of x
    peer("fork")
    peer("drop", "y")
    assert peer("end_child") == {"w": [b"w"]}
    peer("counts")
    store.collect()
    assert store.live_blocks == 2
    assert peer("end_child") == {"w": [b"w"], "y": [b"y"]}
    peer("counts")
    store.collect()
    assert store.live_blocks == 1


@pytest.mark.skipif(not hasattr(fcntl, "F_SEAL_SHRINK"), reason="no seals here")
def test_a_child_that_closes_all_descriptors_keeps_what_its_parent_drops(store, peer):
    peer("keep", "x", "r", blocks=[store.put(b"a" * MB)])
    peer("fork", True)
    peer("drop", "x")
    peer("counts")
    store.collect()
    assert store.live_blocks == 1
    assert peer("end_child") == {"x": [b"a"]}
    peer("counts")
    store.collect()
    assert store.live_blocks == 0


def test_without_anonymous_files_a_pipe_tells_that_a_child_lives(store, monkeypatch):
    monkeypatch.setenv("FASTJOB_MEMFD", "0")
    with Peer() as peer:
        peer("keep", "x", "r", blocks=[store.put(b"a" * MB)])
        before = peer("maps")[1]
        peer("fork")
        peer("drop", "x")
        peer("counts")
        store.collect()
        assert store.live_blocks == 1
        assert peer("end_child") == {"x": [b"a"]}
        peer("counts")
        store.collect()
        assert store.live_blocks == 0
        assert peer("maps")[1] == before


def test_more_forks_than_are_followed_keep_all_that_is_inherited(run_python):
    done = run_python(
        "import os, sys\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from peer import Peer\n"
        "from fastjob._core import inheriting\n"
        "def fork():\n"
        "    inheriting.before_fork()\n"
        "    inheriting.after_fork_in_parent()\n"
        "def no_pipe():\n"
        "    raise OSError(24, 'Too many open files')\n"
        "with Peer() as peer:\n"
        "    view = peer.fetch(1000, 7)\n"
        "    pipe, os.pipe = os.pipe, no_pipe\n"
        "    os.environ['FASTJOB_MEMFD'] = '0'\n"
        "    for _ in range(4096):\n"
        "        fork()\n"
        "    os.pipe = pipe\n"
        "    before = os.listdir('/proc/self/fd')\n"
        "    fork()\n"
        "    print(os.listdir('/proc/self/fd') == before)\n"
        "    del view\n"
        "    inheriting.settle_forks()\n"
        "    print(peer('counts')['live'])\n"
    )
    assert (done.stdout, done.stderr) == ("True\n1\n", "")


def test_what_a_dead_process_left_to_its_children_is_never_reused(run_python):
    # In a process of its own, since the memory stays for as long as the owner lives.
    done = run_python(
        "import os, signal, sys\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from peer import Peer\n"
        "from fastjob._core.segments import Store\n"
        "store = Store()\n"
        "with Peer() as peer:\n"
        "    peer('keep', 'x', 'r', blocks=[store.put(b'a' * 1000)])\n"
        "    child = peer('fork')\n"
        "    peer('keep', 'y', 'r', blocks=[store.put(b'b' * 1000)])\n"
        "    peer.kill()\n"
        "    peer.link.close()\n"
        "    try: os.kill(child, signal.SIGKILL)\n"
        "    except ProcessLookupError: pass  # it sees that its parent is gone\n"
        "store.collect()\n"
        "print(store.live_blocks)\n"
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_forked_child_of_the_owner_changes_nothing_for_it(store, peer):
    block = store.put(b"a" * MB)
    peer("keep", "x", "r", blocks=[block])
    view = peer.fetch(MB, 7)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            peer.link.close()
            store.collect()
            with pytest.raises(RuntimeError, match="forked child"):
                store.put(b"b")
            with pytest.raises(RuntimeError, match="after it was closed"):
                peer.link.lend([block])
            assert bytes(view) == b"\x07" * MB
            del block, view
            own = Store()
            assert bytes(own.put(b"c" * MB)) == b"c" * MB
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert bytes(block) == b"a" * MB
    assert bytes(view) == b"\x07" * MB
    assert peer("ends", "x") == [(97, 97, True)]
    assert store.live_blocks == 1
    del view
    store.collect()
    assert peer("counts")["live"] == 0


def test_a_fork_that_fails_delays_nothing(store, peer):
    view = peer.fetch(MB, 7)
    before = os.listdir("/proc/self/fd")
    inheriting.before_fork()
    inheriting.after_fork_in_parent()  # which is what `os.fork` calls when it fails
    del view
    store.collect()
    assert peer("counts")["live"] == 0
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_without_a_descriptor_to_watch_a_child_its_views_are_kept(run_python):
    done = run_python(
        "import os, resource, sys\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from peer import Peer\n"
        "from fastjob._core.segments import Store\n"
        "store = Store()\n"
        "with Peer() as peer:\n"
        "    view = peer.fetch(1000, 7)\n"
        "    next = os.dup(0)\n"
        "    os.close(next)\n"
        "    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (next, hard))\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
        "    del view\n"
        "    store.collect()\n"
        "    print(peer('counts')['live'])\n"
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_child_that_replaces_itself_lets_go(store, peer):
    view = peer.fetch(MB, 7)
    child = os.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", "input()"])
    del view
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    store.collect()
    assert peer("counts")["live"] == 0


def test_the_folder_named_by_the_user_is_used_and_stays_empty(tmp_path, peer):
    store = Store(tmp_path)
    block = store.put(b"a" * MB)
    peer("keep", "x", "c", blocks=[block])
    peer("write", "x", 0, b"b")
    assert bytes(block) == b"a" * MB
    assert os.fstat(block.region.fd).st_dev == tmp_path.stat().st_dev
    assert list(tmp_path.iterdir()) == []
    store.close()


def test_a_folder_that_does_not_exist_is_passed_over_with_a_warning(tmp_path):
    store = Store(tmp_path / "missing")
    with pytest.warns(RuntimeWarning, match="missing") as seen:
        block = store.put(b"a" * MB)
    assert bytes(block) == b"a" * MB
    assert bytes(store.put(b"b" * (100 * MB)))[-1:] == b"b"
    assert len(seen) == 1
    store.close()


@pytest.fixture
def small_folder(tmp_path):
    """A file system of 4 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_folder_is_passed_over_with_one_warning(small_folder, peer):
    store = Store(small_folder)
    first = store.put(b"a" * MB)
    second = store.put(b"b" * (2 * MB))
    with pytest.warns(RuntimeWarning, match="bytes are free") as seen:
        blocks = [store.put(bytes([i]) * (2 * MB)) for i in range(5)]
    assert len(seen) == 1
    assert str(small_folder) in str(seen[0].message)
    assert "2097152" in str(seen[0].message)
    free = os.statvfs(small_folder)
    assert free.f_bavail * free.f_frsize == MB  # what did not fit was given back
    assert bytes(first) + bytes(second) == b"a" * MB + b"b" * (2 * MB)
    assert [bytes(block) for block in blocks] == [
        bytes([i]) * (2 * MB) for i in range(5)
    ]
    del second
    store.collect()
    # What is warm in the full folder is still used, for what fits into it.
    assert bytes(store.put(b"c" * (2 * MB))) == b"c" * (2 * MB)
    store.close()


def test_memory_that_the_machine_does_not_have_is_not_promised(monkeypatch, tmp_path):
    monkeypatch.setattr(segments, "available_memory", lambda: 99 * MB)
    store = Store()
    small, large = store.put(bytes(MB)), store.put(bytes(100 * MB))
    folder = os.stat(tempfile.gettempdir())
    assert os.fstat(small.region.fd).st_dev != folder.st_dev
    assert os.fstat(large.region.fd).st_dev == folder.st_dev
    store.close()


def test_when_no_place_has_room_the_error_says_what_was_needed(run_python, tmp_path):
    done = run_python(
        "import errno, resource, warnings\n"
        "from fastjob._core.segments import Store\n"
        "warnings.simplefilter('ignore')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        f"for folder in (None, {str(tmp_path)!r}):\n"
        "    for size in (5 << 20, 5 << 20):\n"
        "        try:\n"
        "            Store(folder).put(bytes(size))\n"
        "        except OSError as error:\n"
        "            assert error.errno == errno.ENOSPC\n"
        "            print(error)\n"
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert "5242880 bytes" in line
        assert "bytes are free" in line


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
