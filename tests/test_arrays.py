"""Arrays through a link: what arrives, what is copied, and when."""

import gc
import pickle
import sys
import threading
import weakref

import numpy as np
import pytest
from handles import duplicate

from fastjob._core.arrays import RESULT_MIN_NBYTES, Sharer, decode, encode
from fastjob._core.lending import Link
from fastjob._core.segments import Store

SMALL = 1000


class Trip:
    """Sends objects from one end of a link to the other, in one process."""

    def __init__(self):
        self.store = Store()
        self.sender, self.receiver = Link(), Link()
        self.stream = b""
        self.blocks = 0

    def __call__(self, obj, mode="r", *, sharer=None, reuse=True, max_nbytes=SMALL):
        sharer = sharer or self.sharer(max_nbytes=max_nbytes, reuse=reuse)
        self.stream, blocks = encode(obj, sharer)
        self.blocks = len(blocks)
        tokens = self.sender.lend(blocks)
        self.receiver.give_fds([duplicate(fd) for fd in self.sender.take_fds()])
        return decode(self.stream, tokens, self.receiver, mode)

    def sharer(self, *, max_nbytes=SMALL, reuse=True):
        return Sharer(self.store, max_nbytes, reuse=reuse)


@pytest.fixture
def trip():
    trip = Trip()
    yield trip
    trip.sender.close()
    trip.receiver.close()
    trip.store.close()


class Subclass(np.ndarray):
    """An ndarray by another name."""


DENSE = {
    "C order": np.arange(1000.0).reshape(20, 50),
    "Fortran order": np.asfortranarray(np.arange(1000.0).reshape(20, 50)),
    "permuted": np.arange(2400.0).reshape(10, 12, 20).transpose(1, 2, 0),
    "big endian": np.arange(1000).astype(">i4"),
    "datetime": np.arange(1000).astype("M8[s]"),
    "timedelta": np.arange(1000).astype("m8[ns]"),
    "structured": np.zeros(1000, dtype=[("a", "i1"), ("b", ">f8", 3)]),
    "strings": np.array(["abc", "d"] * 500),
    "bytes": np.array([b"abc", b"d"] * 500),
    "bool": np.arange(1000) % 3 == 0,
    "half": np.arange(1000).astype(np.float16),
    "long double": np.arange(1000).astype(np.longdouble),
    "complex": np.arange(1000) * 1j,
    "void": np.zeros(1000, dtype="V7"),
    "one dimension of one": np.zeros((1, 1000, 1)),
}
OTHER = {
    "with gaps": np.arange(5000)[::2],
    "reversed": np.arange(5000)[::-1],
    "broadcast": np.broadcast_to(np.arange(1000), (10, 1000)),
    "objects": np.array([None, 1, "x"] * 500),
    "structured with objects": np.array([(1, None)] * 500, dtype="i4,O"),
    "empty": np.zeros((0, 3)),
    "scalar": np.array(5),
    "masked": np.ma.masked_array(np.arange(1000), np.arange(1000) % 2),
    "record": np.rec.array([(1, 2.0)] * 1000, names="a,b"),
    "subclass": np.arange(1000).view(Subclass),
    "small": np.arange(10),
}


@pytest.mark.parametrize("mode", ["r", "r+", "w+", "c"])
@pytest.mark.parametrize("name", DENSE)
def test_a_dense_array_arrives_unchanged_as_a_memmap(trip, name, mode):
    sent = DENSE[name]
    got = trip([sent], mode)[0]
    assert type(got) is np.memmap
    assert got.mode == ("r+" if mode == "w+" else mode)
    assert (got.dtype, got.shape, got.strides) == (sent.dtype, sent.shape, sent.strides)
    assert got.flags.aligned
    assert got.flags.writeable == (mode != "r")
    assert got.tobytes("A") == sent.tobytes("A")
    assert trip.blocks == 1
    assert len(trip.stream) < 400


@pytest.mark.parametrize("mode", ["r", "c", None])
@pytest.mark.parametrize("name", [*DENSE, *OTHER])
def test_any_array_arrives_equal(trip, name, mode):
    sent = {**DENSE, **OTHER}[name]
    for reuse in (True, False):
        got = trip(sent, mode, reuse=reuse)
        assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
        np.testing.assert_array_equal(got, sent)
        if type(sent) is not np.ndarray:
            assert type(got) is type(sent)
    if name == "masked":
        np.testing.assert_array_equal(got.mask, sent.mask)


def test_a_read_only_array_arrives_in_the_mode_asked_for(trip):
    sent = np.arange(1000.0)
    sent.flags.writeable = False
    for mode in ("r", "c"):
        got = trip(sent, mode)
        assert type(got) is np.memmap
        assert got.flags.writeable == (mode == "c")
    assert trip(sent, None).flags.writeable
    assert trip(sent, "r+", reuse=False).flags.writeable


def test_an_array_with_gaps_travels_in_shared_memory(trip):
    trip(np.arange(100_000)[::3])
    assert trip.blocks == 1
    assert len(trip.stream) < 400


def test_writing_into_a_read_only_argument_is_an_error(trip):
    got = trip(np.zeros(1000))
    with pytest.raises(ValueError, match="read-only"):
        got[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        got.flags.writeable = True


def test_copy_on_write_changes_one_copy_alone(trip):
    sent = np.zeros(100_000)
    sharer = trip.sharer()
    first, second = (trip(sent, "c", sharer=sharer) for _ in range(2))
    first[:] = 1
    assert not second.any()
    assert not sent.any()
    assert trip(sent, "r", sharer=sharer).sum() == 0
    assert trip.store.copies == 1


def test_without_a_mode_an_argument_is_a_private_ndarray(trip):
    sent = np.zeros(1000)
    sharer = trip.sharer()
    first, second = (trip(sent, None, sharer=sharer) for _ in range(2))
    first[:] = 1
    assert type(first) is np.ndarray
    assert not second.any()


def test_max_nbytes_is_where_sharing_begins(trip):
    trip(np.zeros(125), max_nbytes=1000)
    assert trip.blocks == 1
    trip(np.zeros(124), max_nbytes=1000)
    assert trip.blocks == 0


MIDDLE = {
    name: np.resize(array, 8 * RESULT_MIN_NBYTES // array.itemsize)
    for name, array in DENSE.items()
    if array.ndim == 1
}
MIDDLE["C order"] = np.arange(40_000.0).reshape(200, 200)
MIDDLE["Fortran order"] = np.asfortranarray(MIDDLE["C order"])
MIDDLE["permuted"] = np.arange(24_000.0).reshape(20, 30, 40).transpose(1, 2, 0)


@pytest.mark.parametrize("mode", ["r", "r+", "c", None])
@pytest.mark.parametrize("name", MIDDLE)
@pytest.mark.parametrize("max_nbytes", [-1, 1 << 30])
def test_an_array_below_max_nbytes_arrives_as_an_ordinary_one(
    trip, name, mode, max_nbytes
):
    sent = MIDDLE[name]
    sent.flags.writeable = False
    got = trip([sent], mode, max_nbytes=max_nbytes)[0]
    assert trip.blocks == 1
    assert len(trip.stream) < 400
    assert type(got) is np.ndarray
    assert (got.dtype, got.shape, got.strides) == (sent.dtype, sent.shape, sent.strides)
    assert got.flags.writeable
    assert got.flags.aligned
    assert got.tobytes("A") == sent.tobytes("A")
    trip.store.collect()
    assert trip.sender.outstanding == 0  # it is a copy, and its block is free again


def test_an_array_below_max_nbytes_belongs_to_its_task_alone(trip):
    sent = np.zeros(20_000)
    sharer = trip.sharer(max_nbytes=-1)
    first, second = (trip(sent, "r+", sharer=sharer) for _ in range(2))
    first[:] = 1
    assert not second.any()
    assert not sent.any()
    assert not trip(sent, "r+", sharer=sharer).any()
    assert trip.store.copies == 1


def test_an_array_below_max_nbytes_twice_in_a_task_is_one_array(trip):
    sent = np.zeros(20_000)
    first, (second,) = trip([sent, (sent,)], max_nbytes=-1)
    assert first is second
    assert trip.blocks == 1


def test_a_refilled_array_below_max_nbytes_is_copied_again(trip):
    buffer = np.zeros(20_000)
    sharer = trip.sharer(max_nbytes=-1)
    for value in range(1, 4):
        sharer.epoch += 1
        buffer[-1] = value
        assert trip(buffer, sharer=sharer)[-1] == value
    assert trip.store.copies == 3


def test_a_buffer_below_max_nbytes_that_is_no_array_stays_writable(trip):
    data = bytearray(200_000)
    sent = [np.zeros(20_000), Raw(data)]
    array, raw = trip(sent, max_nbytes=-1)
    assert trip.blocks == 1  # the array's
    raw.data[0] = 1
    array[0] = 1


def test_an_array_that_cannot_be_sent_is_not_kept(trip):
    class Refused:
        def __reduce__(self):
            raise TypeError("not this one")

    sharer = trip.sharer(max_nbytes=-1)
    sent = np.zeros(20_000)
    gone = weakref.ref(sent)
    with pytest.raises(TypeError, match="not this one"):
        trip([sent, Refused()], sharer=sharer)
    del sent
    gc.collect()
    assert gone() is None
    assert sharer.blocks() == []


def test_results_are_ordinary_independent_arrays(trip):
    kept = np.arange(1000.0)
    sharer = trip.sharer(reuse=False)
    first, second = (trip(kept, "r+", sharer=sharer) for _ in range(2))
    assert type(first) is np.ndarray
    first[:] = 0
    np.testing.assert_array_equal(second, kept)
    np.testing.assert_array_equal(kept, np.arange(1000.0))


def test_a_result_that_is_an_argument_is_an_ordinary_array(trip):
    argument = trip(np.arange(1000.0))
    for part in (argument, argument[:10], argument[10:900]):
        got = trip(part, "r+", reuse=False)
        assert type(got) is np.ndarray
        got[:] = 7
    np.testing.assert_array_equal(argument, np.arange(1000.0))


def test_the_same_array_is_copied_once_and_compared_once_an_epoch(trip):
    sent = np.random.default_rng(0).random(50_000)
    sharer = trip.sharer()
    for epoch in range(3):
        sharer.epoch = epoch
        for _ in range(10):
            np.testing.assert_array_equal(trip(sent, sharer=sharer), sent)
    assert trip.store.copies == 1
    assert sharer.comparisons == 2


@pytest.mark.parametrize("where", [0, 25_000, 49_999])
def test_a_refilled_array_is_copied_again_and_earlier_tasks_keep_theirs(trip, where):
    buffer = np.zeros(50_000, np.uint8)
    sharer = trip.sharer()
    got = []
    for value in range(1, 6):
        sharer.epoch += 1
        buffer[where] = value
        got.append(trip(buffer, sharer=sharer))
    assert [array[where] for array in got] == [1, 2, 3, 4, 5]
    assert trip.store.copies == 5


def test_overlapping_views_of_one_array_are_told_apart(trip):
    base = np.arange(10_000)
    sharer = trip.sharer()
    for part in (base, base[:5000], base[5000:], base[:5000]):
        np.testing.assert_array_equal(trip(part, sharer=sharer), part)
    assert trip.store.copies == 3


def test_an_array_that_is_gone_is_not_mistaken_for_its_successor(trip):
    sharer = trip.sharer()
    for value in range(50):
        # The same address, most likely, in the same epoch.
        sent = np.full(200_000, value)
        assert trip(sent, sharer=sharer)[-1] == value
        del sent
    assert trip.store.copies == 50


def test_a_sharer_keeps_neither_arrays_nor_copies_of_dead_ones(trip):
    sharer = trip.sharer()
    for value in range(20):
        trip(np.full(200_000, value), sharer=sharer)
    trip.store.collect()
    assert trip.store.live_blocks == 0


def test_clear_lets_the_copies_go(trip):
    sent = np.zeros(50_000)
    sharer = trip.sharer()
    trip(sent, sharer=sharer)
    trip.store.collect()
    assert trip.store.live_blocks == 1
    sharer.clear()
    trip.store.collect()
    assert trip.store.live_blocks == 0


class Raw:
    """Pickles a buffer of its own, exported by an object made for the occasion."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        return Raw, (pickle.PickleBuffer(memoryview(self.data)),)


def test_a_buffer_without_an_array_is_compared_each_time(trip):
    data = bytearray(b"a" * 5000)
    sharer = trip.sharer()
    first = trip(Raw(data), sharer=sharer)
    assert bytes(first.data) == b"a" * 5000
    trip(Raw(data), sharer=sharer)
    assert (trip.store.copies, sharer.comparisons) == (1, 1)
    data[-1] = 0
    second = trip(Raw(data), sharer=sharer)
    assert bytes(second.data)[-1] == 0
    assert bytes(first.data)[-1] == ord("a")


def test_copies_of_buffers_without_an_array_are_bounded():
    store = Store(warm_limit=20_000)
    sharer = Sharer(store, SMALL)
    kept = [bytearray([i]) * 5000 for i in range(20)]
    for data in kept:
        encode(Raw(data), sharer)
    store.collect()
    assert store.live_blocks == 4
    store.close()


def test_copies_of_arrays_that_were_used_once_are_bounded():
    store = Store(warm_limit=2_000_000)
    sharer = Sharer(store, SMALL)
    arrays = [np.full(50_000, float(i)) for i in range(20)]
    for array in arrays:
        encode(array, sharer)
    store.collect()
    assert store.live_blocks == 5  # of 400 kB
    encode(arrays[-1], sharer)
    assert store.copies == 20
    # Given up, so copied again.
    encode(arrays[0], sharer)
    assert store.copies == 21
    store.close()


def test_a_copy_that_two_tasks_have_used_is_kept():
    store = Store(warm_limit=2_000_000)
    sharer = Sharer(store, SMALL)
    common = np.ones(50_000)
    encode(common, sharer)
    encode(common, sharer)
    arrays = [np.full(50_000, float(i)) for i in range(20)]
    for array in arrays:
        encode(array, sharer)
    encode(common, sharer)
    assert store.copies == 21
    store.close()


def test_an_array_beyond_the_bound_is_copied_once():
    store = Store(warm_limit=1000)
    sharer = Sharer(store, SMALL)
    common = np.ones(50_000)
    for _ in range(5):
        encode(common, sharer)
    assert store.copies == 1
    store.close()


def test_the_bound_forgets_arrays_that_are_gone():
    store = Store(warm_limit=2_000_000)
    sharer = Sharer(store, SMALL)
    kept = [np.full(50_000, float(i)) for i in range(3)]
    for array in kept:
        encode(array, sharer)
    for i in range(20):
        encode(np.full(50_000, float(i)), sharer)
    for array in kept:
        encode(array, sharer)
    assert store.copies == 23
    store.close()


def test_a_discontiguous_buffer_is_refused_like_pickle_does(trip):
    with pytest.raises((BufferError, pickle.PicklingError)):
        trip(Raw(memoryview(bytes(5000))[::2]))
    assert trip.sharer().blocks() == []


def test_an_object_that_cannot_be_pickled_leaves_no_block_behind(trip):
    sharer = trip.sharer()
    with pytest.raises(TypeError, match="pickle"):
        trip([np.zeros(1000), threading.Lock()], sharer=sharer)
    assert sharer.blocks() == []
    sharer.clear()
    trip.store.collect()
    assert trip.store.live_blocks == 0


def test_a_view_is_passed_on_without_a_copy_and_keeps_the_first_loan(trip):
    second, third = Link(), Link()
    sent = np.arange(100_000)
    sharer = trip.sharer()
    argument = trip(sent, sharer=sharer)
    sharer.clear()
    copies = trip.store.copies
    data, blocks = encode(argument[1000:90_000], trip.sharer())
    tokens = second.lend(blocks)
    third.give_fds([duplicate(fd) for fd in second.take_fds()])
    got = decode(data, tokens, third, "r")
    del argument, blocks, tokens
    trip.store.collect()
    assert trip.store.copies == copies
    assert trip.store.live_blocks == 1
    np.testing.assert_array_equal(got, sent[1000:90_000])
    del got
    trip.store.collect()  # the second hop
    trip.store.collect()  # the first, which the second held
    assert trip.store.live_blocks == 0
    second.close()
    third.close()


def test_a_writable_view_is_copied_when_it_is_passed_on(trip):
    argument = trip(np.zeros(1000), "c")
    argument[:] = 1
    assert trip(argument).sum() == 1000


@pytest.fixture
def mapped(tmp_path):
    file = np.memmap(tmp_path / "data", np.float64, "w+", 64, (100, 10))
    file[:] = np.arange(1000).reshape(100, 10)
    return file


PARTS = {
    "all": lambda a: a,
    "rows": lambda a: a[3:50],
    "one element": lambda a: a[2:3, 4:5],
    "with gaps": lambda a: a[::2, ::-3],
    "transposed": lambda a: a.T,
    "as an ndarray": lambda a: np.asarray(a)[5:7],
    "of another dtype": lambda a: a.view(np.int64)[1:],
    "view of a view": lambda a: a[10:][5:][::-1],
}


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("part", PARTS)
def test_a_mapped_file_travels_by_name_with_offset_and_strides(
    trip, mapped, part, reuse
):
    sent = PARTS[part](mapped)
    got = trip(sent, reuse=reuse)
    assert trip.store.copies == 0
    assert type(got) is np.memmap
    assert (got.dtype, got.strides) == (sent.dtype, sent.strides)
    np.testing.assert_array_equal(got, sent)
    got[...] += 1
    np.testing.assert_array_equal(got, sent)
    again = trip(got, reuse=reuse)
    np.testing.assert_array_equal(again, sent)
    assert trip.store.copies == 0


def test_a_mapped_file_keeps_its_own_mode(trip, mapped):
    mapped.flush()
    read_only = np.memmap(mapped.filename, np.float64, "r", 64, (100, 10))
    assert trip(read_only, "r+").mode == "r"
    with pytest.raises(ValueError, match="read-only"):
        trip(read_only, "r+")[0] = 1


def test_a_private_mapping_travels_with_what_was_written_to_it(trip, mapped):
    private = np.memmap(mapped.filename, np.float64, "c", 64, (100, 10))
    private[:] = 5
    assert (trip(private) == 5).all()
    assert mapped[0, 1] == 1


@pytest.mark.posix
@pytest.mark.parametrize("replace", [False, True])
def test_a_file_that_lost_its_name_travels_as_an_array(trip, mapped, replace):
    name = mapped.filename
    if replace:
        other = name.with_suffix(".new")
        other.write_bytes(bytes(name.stat().st_size))
        other.replace(name)
    else:
        name.unlink()
    np.testing.assert_array_equal(trip(mapped), mapped)
    assert trip.store.copies == 1


def test_a_pandas_frame_lies_on_views(trip):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(np.random.default_rng(0).random((1000, 5)))
    frame["n"] = np.arange(1000)
    frame["t"] = pandas.Timestamp("2020-01-01")
    frame["s"] = "abc"
    sharer = trip.sharer()
    copies = []
    for epoch in range(3):
        sharer.epoch = epoch
        pandas.testing.assert_frame_equal(trip(frame, sharer=sharer), frame)
        pandas.testing.assert_series_equal(trip(frame["n"], sharer=sharer), frame["n"])
        copies.append(trip.store.copies)
    assert copies[0] >= 3
    assert copies[2] == copies[0]
    pandas.testing.assert_frame_equal(trip(frame, "r+", reuse=False), frame)


def test_a_sparse_matrix_lies_on_views(trip):
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.random(1000, 1000, 0.1, format="csr", random_state=0)
    got = trip(matrix)
    assert (got != matrix).nnz == 0
    assert trip.blocks == 3


def test_an_arrow_table_lies_on_views_and_is_copied_once(trip):
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"a": np.arange(1000), "b": [f"{i}" for i in range(1000)]})
    sharer = trip.sharer()
    for epoch in range(3):
        sharer.epoch = epoch
        assert trip(table, sharer=sharer) == table
    assert trip.store.copies == trip.blocks


def test_without_numpy_nothing_is_imported(run_python):
    done = run_python(
        "import sys\n"
        "from fastjob._core.arrays import Sharer, encode, decode\n"
        "from fastjob._core.segments import Store\n"
        "data, blocks = encode([1, b'x' * 10_000], Sharer(Store(), 1000))\n"
        "assert decode(data, b'', None, 'r') == [1, b'x' * 10_000] and not blocks\n"
        "print('numpy' in sys.modules)\n"
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_a_sharer_that_was_cleared_is_not_kept_alive(trip):
    sharer = trip.sharer()
    trip(np.zeros(1000), sharer=sharer)
    sharer.clear()
    gc.disable()
    try:
        before = sys.getrefcount(trip.store)
        del sharer
        after = sys.getrefcount(trip.store)
        assert after == before - 1
    finally:
        gc.enable()
