"""How large buffers leave a pickle stream for shared memory, and come back.

Pickle's protocol 5 hands every large buffer to a callback instead of copying it into
the stream.  A `Sharer` is that callback, for one call: it puts the buffer into a
block, and the stream says no more than "the next buffer".  The receiver opens the
blocks that were lent to it and unpickles with the views in their place.

What arrives

- Arguments: an ndarray of at least ``min_nbytes`` is a `numpy.memmap` of the call's
  mode; any other buffer (pyarrow, and what a pandas object is made of: pandas does not
  expect subclasses of ndarray there) lies on a view of that mode.
  dtype, shape, byte order and strides are those that were sent; an array with gaps
  (``a[::2]``) is sent without them.
- A smaller ndarray argument is an ordinary one of the task's own.  From
  `RESULT_MIN_NBYTES` on it travels through a block all the same, and is copied out of
  it: three copies fewer than through the stream and the socket.
- Results: ordinary writable ndarrays on a view, with nobody else's data in them.
- A `numpy.memmap` of a file, and any view of one, travels by file name, offset and
  strides, and is opened in its own mode.  Two kinds cannot: one of mode ``'c'``, since
  what was written to it is not in the file, and one whose file has been deleted or
  replaced.  They are sent as arrays.
- ndarray's own pickling leaves its subclasses and datetimes in the stream; datetimes
  are taken out here, like any dtype without objects.  Subclasses (masked arrays,
  matrices) have state of their own and stay in the stream.

One copy a call: see ``copies``.

A buffer that was refilled since it was copied must not pass for the copy.  So it is
compared with the block, byte for byte: exact, and as fast as hashing it would be (80
MB: memcmp 6 ms with both warm, against 5-7 ms to read it once for a hash, 8 ms to copy
it).  The comparison is left out if nothing can have changed: while ``epoch`` stays the
same, no code of the user has run in this thread (see ``quiet``).

What is guaranteed: a task sees an array as it was when the task was taken from the
input, whatever the thread of the call does to the array: the input's own code,
pickling, callbacks, the reader of a stream.  If another thread, a signal handler or a
finalizer writes to it while the call runs, a task sees what it was at that moment or
at an earlier one of the call.

A read-only view that a worker received is passed on without a copy, since nobody may
write to it; a writable one is the user's array like any other.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_ANY_CONTIGUOUS,
    PyBuffer_Release,
    PyObject_GetBuffer,
)

from fastjob._core.copies cimport Copies
from fastjob._core.lending cimport Link
from fastjob._core.pickling cimport mentions_main
from fastjob._core.segments cimport Block, Store, part_of
from fastjob._core.views cimport View

import copyreg
import io
import mmap
import os
import sys
from _pickle import PickleBuffer, Pickler
from _pickle import loads


# Bytes from which a buffer of a result, or an ndarray argument, travels in shared
# memory.  A block wins from 16 kB on when it is warm, and loses below 64 kB when its
# memory is fresh; see README.md.
cdef enum:
    WORTH_A_BLOCK = 65536

RESULT_MIN_NBYTES = WORTH_A_BLOCK


@cython.final
cdef class Sharer:
    """Takes the large buffers of one call out of its pickle streams.

    Parameters
    ----------
    store : Store
        Where copies are made.
    min_nbytes : int
        Size in bytes from which a buffer is taken, to be seen as a view; negative is
        never.
    reuse : bool
        True for arguments: a buffer that has not changed is copied once. False for
        results: each is copied, and arrives as an ordinary array.

    Attributes
    ----------
    epoch : int
        To be changed by the caller whenever code of the user may have run.
    met : set of int
        Of arguments: addresses of the arrays and frames in the stream so far.
    """

    def __init__(self, Store store not None, long long min_nbytes, *,
                 bint reuse=True):
        self.store = store
        self.min_nbytes = min_nbytes
        self.reuse = reuse
        self.taken = []
        self.met = set()
        self.copies = Copies(store.warm_limit)
        self.files = {}
        self.pickler_class = Pickler

    @property
    def comparisons(self):
        """Buffers compared with their copies so far."""
        return self.copies.comparisons

    cdef bint is_small(self, long long nbytes) noexcept:
        """Whether a buffer stays in the stream."""
        return self.min_nbytes < 0 or nbytes == 0 or nbytes < self.min_nbytes

    def __call__(self, buffer):
        """Take a buffer, or leave it in the stream: pickle's ``buffer_callback``.

        Parameters
        ----------
        buffer : pickle.PickleBuffer

        Returns
        -------
        bool
            True if it stays in the stream.
        """
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_ANY_CONTIGUOUS)
        try:
            # Whoever else made a small buffer cannot do with a view instead of a copy.
            if buffer is not self.reduced and self.is_small(view.len):
                return True
            self.taken.append(self.share(view.buf, view.len, <object>view.obj))
            return False
        finally:
            self.reduced = None
            PyBuffer_Release(&view)

    cpdef list blocks(self):
        """Return the blocks taken since the last time, in the order of the stream."""
        taken = self.taken
        self.taken = []
        self.met = set()
        self.reduced = None
        return taken

    cdef tuple begin_inner(self):
        """Begin a stream in the middle of another one; what `end_inner` takes."""
        outer = self.taken, self.met, self.reduced, self.pickler_class
        self.blocks()
        return outer

    cdef int end_inner(self, tuple outer) except -1:
        """Go on with the stream that was interrupted."""
        self.taken, self.met, self.reduced, self.pickler_class = outer
        return 0

    cpdef object clear(self):
        """Forget the call's buffers."""
        self.taken = []
        self.met = set()
        self.copies.clear()
        self.files.clear()

    cpdef dict dispatch_table(self):
        """Return the reducers that a pickler of this call needs, beside copyreg's.

        Empty as long as nobody has imported numpy.
        """
        if self.numpy is None:
            numpy = sys.modules.get("numpy")
            if not hasattr(numpy, "memmap"):
                return {}  # absent, or being imported by another thread
            self.numpy = numpy
        table = {self.numpy.ndarray: self.reduce, self.numpy.memmap: self.reduce}
        if self.reuse:
            pandas = sys.modules.get("pandas")
            if hasattr(pandas, "Series") and hasattr(pandas, "DataFrame"):
                table[pandas.DataFrame] = table[pandas.Series] = self.reduce_frame
        return table

    def reduce(self, array):
        """Reduce an ndarray or a memmap for pickle."""
        small = self.is_small(array.nbytes)
        if not self.reuse:
            return self.reduce_as(array, result_array, small)
        self.met.add(id(array))
        if small:
            return self.reduce_as(array, private_array, array.nbytes < WORTH_A_BLOCK)
        return self.reduce_as(array, argument_array, False)

    def reduce_plain(self, array):
        """Reduce an ndarray of a pandas object so that it arrives as an ndarray."""
        return self.reduce_as(array, result_array, self.is_small(array.nbytes))

    def reduce_frame(self, frame):
        """Reduce a pandas object to a stream of its own, where arrays are plain."""
        self.met.add(id(frame))
        file = io.BytesIO()
        buffers = []

        def take(buffer):
            if self.is_small(memoryview(buffer).nbytes):
                return True
            buffers.append(buffer)
            return False

        pickler = self.pickler_class(file, protocol=5, buffer_callback=take)
        others = getattr(pickler, "dispatch_table", copyreg.dispatch_table)
        pickler.dispatch_table = {**others, self.numpy.ndarray: self.reduce_plain,
                                  self.numpy.memmap: self.reduce_plain}
        pickler.dump(frame)
        stream = file.getvalue()
        # In the outer stream these are mere bytes: nobody looks into them.
        self.met_main = self.met_main or mentions_main(stream)
        return pandas_object, (stream, buffers)

    cdef object reduce_as(self, array, build, bint inside):
        """Reduce an array for `build`, its buffer inside the stream or out of it."""
        if array.base is not None:
            file = self.reduce_file(array)
            if file is not None:
                return file
            # As an ndarray: a memmap without its file would arrive broken.
            array = self.numpy.asarray(array)
        if inside or array.dtype.hasobject:
            if not self.reuse and not array.flags.writeable:
                array = array.copy(order="K")  # in the stream it would stay read-only
            return array.__reduce_ex__(5)
        dense = array.transpose(by_stride(array))
        if not dense.flags.c_contiguous:
            array = array.copy(order="K")
            dense = array.transpose(by_stride(array))
        flat = dense.reshape(-1).view(self.numpy.uint8)
        buffer = PickleBuffer(flat)
        if build is private_array:
            self.reduced = buffer
        return build, (buffer, array.dtype, array.shape,
                       None if array.flags.c_contiguous else array.strides)

    cdef object reduce_file(self, array):
        """Reduce a view of a memory-mapped file to its name; None if it is none."""
        mapped = None
        base = array
        while isinstance(base, self.numpy.ndarray):
            if isinstance(base, self.numpy.memmap):
                mapped = base
            base = base.base
        if mapped is None or base is None or type(base) is View or array.size == 0:
            return None
        if mapped.filename is None or mapped.mode == "c":
            return None
        origin = address_of(mapped)
        if self.files.get(origin) != self.epoch:
            if not still_named(origin, os.fspath(mapped.filename)):
                return None
            self.files[origin] = self.epoch
        low = high = 0
        for length, stride in zip(array.shape, array.strides):
            if stride < 0:
                low += (length - 1) * stride
            else:
                high += (length - 1) * stride
        first = address_of(array)
        return file_array, (
            os.fspath(mapped.filename), "r" if mapped.mode == "r" else "r+",
            mapped.offset + (first + low - origin), high - low + array.itemsize,
            array.dtype, array.shape, array.strides, -low)

    cdef Block share(self, void *address, size_t nbytes, object exporter):
        cdef Block block
        cdef View view
        owner = exporter
        if not self.reuse:
            return self.store.put_memory(address, nbytes)
        while type(owner) is not View:
            base = getattr(owner, "base", None)
            if base is None:
                break
            owner = base
        if type(owner) is View:
            view = <View>owner
            if not view.writable and view.region.fd >= 0:
                return part_of(view, view.region,
                               view.offset + (<char *>address - view.address), nbytes)
        block = self.copies.find(address, nbytes, self.epoch)
        if block is None:
            block = self.store.put_memory(address, nbytes)
            if self.numpy is None or not isinstance(owner, self.numpy.ndarray):
                owner = None
            self.copies.add(address, block, owner, self.epoch)
        return block


def encode(obj, Sharer sharer not None, pickler_class=Pickler):
    """Pickle an object, its large buffers apart.

    Parameters
    ----------
    obj : object
    sharer : Sharer
    pickler_class : type
        `pickle.Pickler`, or a subclass such as cloudpickle's.

    Returns
    -------
    data : bytes
    blocks : list of Block
        For `Link.lend`, whose tokens are for `decode`.
    """
    file = io.BytesIO()
    pickler = pickler_class(file, protocol=5, buffer_callback=sharer)
    sharer.pickler_class = pickler_class
    reducers = sharer.dispatch_table()
    if reducers:
        others = getattr(pickler, "dispatch_table", copyreg.dispatch_table)
        pickler.dispatch_table = {**others, **reducers}
    try:
        pickler.dump(obj)
    except BaseException:
        sharer.blocks()
        raise
    return file.getvalue(), sharer.blocks()


def decode(data, bytes tokens, Link link, mode):
    """Unpickle an object whose large buffers were lent.

    Parameters
    ----------
    data : bytes-like
    tokens : bytes
    link : Link
        May be None if there are no tokens.
    mode : {'r', 'r+', 'w+', 'c', None}
        Mode of the buffers; None is a private copy.  Results take ``'r+'``.

    Returns
    -------
    object
    """
    if not tokens:
        return loads(data)
    buffers = link.open(tokens, "r" if mode is None else mode)
    if mode is None:
        buffers = [bytearray(view) for view in buffers]
    return loads(data, buffers=buffers)


def argument_array(buffer, dtype, shape, strides):
    """Rebuild an ndarray argument: a memmap if its buffer is shared memory."""
    import numpy
    buffer = unwrapped(buffer)
    if not is_shared(buffer):
        return numpy.ndarray(shape, dtype, buffer, 0, strides)
    array = numpy.ndarray.__new__(numpy.memmap, shape, dtype, buffer, 0, strides)
    array._mmap = buffer
    array.mode = buffer.mode
    array.offset = 0
    return array


def private_array(buffer, dtype, shape, strides):
    """Rebuild an ndarray argument as one of the task's own."""
    import numpy
    buffer = unwrapped(buffer)
    array = numpy.ndarray(shape, dtype, buffer, 0, strides)
    return array.copy(order="K") if is_shared(buffer) else array


def result_array(buffer, dtype, shape, strides):
    """Rebuild an ndarray result."""
    import numpy
    return numpy.ndarray(shape, dtype, unwrapped(buffer), 0, strides)


cdef bint is_shared(buffer) except -1:
    """Whether a buffer is a `View`, or a mapping that a worker has made of its own."""
    return type(buffer) is View or isinstance(buffer, mmap.mmap)


cdef object unwrapped(buffer):
    """What lies under the read-only memoryview that pickle makes of a buffer that was
    read-only where it was sent; here the mode alone decides."""
    return buffer.obj if type(buffer) is memoryview else buffer


def pandas_object(stream, buffers):
    """Rebuild a pandas object."""
    return loads(stream, buffers=buffers)


def file_array(filename, mode, offset, nbytes, dtype, shape, strides, start):
    """Map a piece of a file again, as the sender had it."""
    import numpy
    raw = numpy.memmap(filename, numpy.uint8, mode, offset, (nbytes,))
    array = numpy.ndarray.__new__(numpy.memmap, shape, dtype, raw, start, strides)
    array._mmap = raw._mmap
    array.filename = raw.filename
    array.mode = raw.mode
    array.offset = offset + start
    return array


cdef list by_stride(array):
    """The order of axes in which memory is laid out, largest steps first."""
    strides = array.strides
    return sorted(range(array.ndim), key=lambda axis: -strides[axis])


cdef size_t address_of(array) except? 0:
    return array.__array_interface__["data"][0]


cdef bint still_named(size_t address, str filename) except -1:
    """Whether a mapping's file still has the name by which it was opened."""
    try:
        with open("/proc/self/maps") as maps:
            for line in maps:
                start, end = line.split(" ", 1)[0].split("-")
                if int(start, 16) <= address < int(end, 16):
                    path = line.split(None, 5)[5].rstrip("\n")
                    return path == os.path.realpath(filename)
    except FileNotFoundError:
        pass  # no such list on this system: the name has to do
    return os.path.exists(filename)
