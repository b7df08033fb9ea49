"""Turn a task into what is sent, at the moment it is taken from the input.

A task's arguments are those that it had when it was produced, whatever the caller
does to them afterwards.  Arguments that cannot change (numbers, strings, tuples of
such) wait for their batch and are pickled together with it.  All others are pickled at
once, each task on its own: a buffer that a generator fills again for every task
reaches every task as it was.

What is pickled only once a call:

- callables, by identity (a bound method counts as its function and, as the first
  argument, its object);
- an argument whose pickle is large, by identity: the second task that has it sends a
  reference to the first one's pickle.  Since the caller may have changed the object in
  between, it is compared (``snapshot.pyx``), or, where that is impossible, pickled
  again and the bytes compared; if it differs it is a new constant. An object inside it
  that another argument of the task refers to would arrive twice; such a task is
  pickled as a whole.

- a small argument that tasks in a row have, as the same array or list of parameters, if
  it is the only one of its task that could change. Each task still gets a copy of its
  own, since it may write to it: the reference in its place is one to the pickle. Again
  the object is compared before each task; once it has changed, it is pickled each time.

A constant that only one task used gives way when `KEEP_BYTES` of such have gathered:
tasks with a large argument each would else fill both processes' memory.
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from cpython.unicode cimport PyUnicode_GET_LENGTH

from libc.stdint cimport uint32_t

from fastjob._core.arrays cimport Sharer
from fastjob._core.pickling cimport cloud_class, dump_cloud, dump_plain, mentions_main
from fastjob._core.quiet cimport pickles_quietly
from fastjob._core.snapshot cimport Snapshot, is_array

import copyreg
import io
from pickle import Pickler
from sys import modules
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

from fastjob._core.constants import constant as fetch
from fastjob._core.constants import copied as fetch_copy
from fastjob._core.pickling import loads
from fastjob._core.quiet import register_quiet
from fastjob._core.snapshot import Opaque
from fastjob.errors import TaskPicklingError

cdef enum:
    # Callables a call may intern. Wrappers made anew for each task (as scikit-learn's)
    # go beyond it and travel inside their task.
    MOST_FUNCTIONS = 64
    # Pickles from this size on are looked at for an argument to share: a reference
    # costs 60 bytes and a comparison, so below some tens of kilobytes it gains nothing.
    SHARE_BYTES = 32 << 10
    # A plain string or bytes above this is captured at once, to be shared.
    LONG_LEAF = 32 << 10
    KEEP_BYTES = 64 << 20
    # A container of fewer members is pickled with its task at once.
    FEW = 256
    # Small objects of which each task gets a copy: how many, and their pickles' size.
    MOST_REPEATED = 64
    COPY_BYTES = 8 << 10


cdef frozenset CONTAINERS = frozenset({list, tuple, dict, set, frozenset})
# What pickle memoizes and nobody tells apart.
cdef frozenset NAMELESS = frozenset({str, bytes, tuple, type, FunctionType,
                                     BuiltinFunctionType, ModuleType})


cdef extern from *:
    """
    static inline int fj_scalar(PyObject *o)
    {
        PyTypeObject *t = Py_TYPE(o);
        return t == &PyLong_Type || t == &PyFloat_Type || o == Py_None
            || t == &PyBool_Type || t == &PyComplex_Type;
    }
    """
    bint fj_scalar(object o) noexcept


cdef bint plain(object value, int depth) noexcept:
    """Whether a value can never change, and needs no early pickling."""
    cdef Py_ssize_t i
    cdef object kind
    if fj_scalar(value):
        return True
    kind = type(value)
    if kind is str:
        return PyUnicode_GET_LENGTH(value) < LONG_LEAF
    if kind is bytes:
        return PyBytes_GET_SIZE(value) < LONG_LEAF
    if kind is tuple and depth > 0 and PyTuple_GET_SIZE(value) < 100:
        for i in range(PyTuple_GET_SIZE(value)):
            if not plain(<object>PyTuple_GET_ITEM(value, i), depth - 1):
                return False
        return True
    return False


cdef Py_ssize_t only_open(tuple args) noexcept:
    """The place of the only argument that can change; -1 if there is not just one."""
    cdef Py_ssize_t i, place = -1
    for i in range(PyTuple_GET_SIZE(args)):
        if not plain(<object>PyTuple_GET_ITEM(args, i), 4):
            if place >= 0:
                return -1
            place = i
    return place


@cython.final
cdef class Constant:
    """Something sent once a worker, and referred to by number."""


class Reference:
    """Stands in a task's arguments for a constant."""

    __slots__ = ("number",)

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return fetch, (self.number,)


@cython.final
@cython.freelist(64)
cdef class Copied:
    """Stands in a task's arguments for an object of which the task gets a copy."""

    def __reduce__(self):
        return fetch_copy, (self.number,)


class Packed:
    """Stands in a task's arguments for an object that has been pickled already."""

    __slots__ = ("data",)

    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return loads, (self.data,)


# What stands for something else has been pickled before.
register_quiet(Reference, Packed)


cdef bint possibly_large(object value) except -1:
    """Whether the pickle of a value could be worth sharing."""
    if type(value) in CONTAINERS:
        return len(value) >= FEW
    if is_array(type(value)):
        return value.nbytes >= SHARE_BYTES
    return type(value).__module__ != "builtins" or len_or_zero(value) >= LONG_LEAF


cdef Py_ssize_t len_or_zero(object value) except -1:
    return len(value) if type(value) in (str, bytes, bytearray) else 0


cdef object identities(object value):
    """Addresses of the mutable objects that the pickle of a value is made of."""
    stream = io.BytesIO()
    pickler = cloud_class()(stream, 5, buffer_callback=in_band_never)
    pickler.dump(value)
    return {key for key, (_, part) in pickler.memo.copy().items()
            if type(part) not in NAMELESS}


def in_band_never(buffer):
    return False


def type_name(value):
    kind = type(value)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def function_name(f):
    return getattr(f, "__qualname__", None) or type_name(f)


@cython.final
cdef class Capture:
    """The constants of one call, and the pickling of its tasks.

    Parameters
    ----------
    sharer : Sharer
        Takes the large buffers out of the pickles.
    explicit : dict, optional
        The objects that the user has shared: ``{id: Constant}``.
    """

    def __init__(self, Sharer sharer not None, dict explicit=None):
        self.explicit = explicit
        self.functions = {}
        self.repeated = {}
        self.shared = {}
        self.candidates = []
        self.expired = []
        self.sharer = sharer
        self.reducers = None

    cdef Constant _new(self, object value, object data, list blocks, list needs):
        cdef Constant c = Constant.__new__(Constant)
        c.number = self.n_constants
        self.n_constants += 1
        c.value = value
        c.data = data
        c.nbytes = PyBytes_GET_SIZE(data)
        c.blocks = blocks
        c.needs = needs
        c.checked = self.epoch
        return c

    cdef Constant function(self, object f):
        """The constant of a callable; None if the table is full."""
        cdef Constant c
        cdef object key = id(f)
        if type(f) is MethodType:
            key = (id(f.__self__), id(f.__func__))
        c = self.functions.get(key)
        if c is None and len(self.functions) < MOST_FUNCTIONS:
            data, blocks = self.pickled(f, None)
            c = self._new(f, data, blocks, None)
            self.functions[key] = c
        return c

    def lasting(self, value, uint32_t number):
        """A constant that outlives the call: see ``fastjob.share``."""
        cdef Constant c
        try:
            data, blocks = self.pickled(value, None)
        except (KeyboardInterrupt, MemoryError, OSError):
            raise
        except Exception as error:
            raise TaskPicklingError(None, "share", 0, type_name(value),
                                    str(error)) from error
        c = self._new(value, data, blocks, None)
        c.number = number
        return c

    def pickled(self, value, refer):
        """Pickle `value`: its bytes, and its out-of-band blocks or None."""
        cdef object data = None
        cdef dict reducers = self.table()
        cdef bint quiet = not self.quiet or pickles_quietly(value, 4)
        if not quiet:
            self.next_epoch()
        try:
            if type(value).__module__ != "__main__":
                data = dump_plain(value, self.sharer, reducers)
        except (KeyboardInterrupt, MemoryError, OSError):
            self.sharer.blocks()
            raise
        except Exception:
            # Whatever plain pickle stumbles over, cloudpickle may be able to carry;
            # if not, its error is the one that is reported.
            data = None
        if data is None or mentions_main(data):
            self.sharer.blocks()
            self.sharer.pickler_class = cloud_class()
            try:
                data = dump_cloud(value, self.sharer, reducers, refer)
            except BaseException:
                self.sharer.blocks()
                raise
            finally:
                self.sharer.pickler_class = Pickler
        self.n_pickles += 1
        self.bytes_pickled += PyBytes_GET_SIZE(data)
        if not quiet:
            self.next_epoch()
        return data, self.sharer.blocks() or None

    cdef dict table(self):
        """The dispatch table; None as long as plain pickle's own will do."""
        cdef int n = ("numpy" in modules) + ("pandas" in modules)
        if n != self.n_libraries:
            extra = self.sharer.dispatch_table()
            if extra:
                self.reducers = {**copyreg.dispatch_table, **extra}
                self.n_libraries = n
        return self.reducers

    cpdef int next_epoch(self) except -1:
        """The caller's code may have run: nothing is known to be unchanged."""
        self.epoch += 1
        self.sharer.epoch = self.epoch
        return 0

    def _refer(self, obj):
        """Reduce value for a class or function of ``__main__``: a constant."""
        cdef Constant c = self.functions.get(id(obj))
        if c is None:
            data, blocks = self.pickled(obj, None)
            c = self._new(obj, data, blocks, None)
            self.functions[id(obj)] = c
        self.refs.append(c)
        return fetch, (c.number,)

    cdef object arguments(self, long long index, object f, object with_function,
                          tuple args, object kwargs):
        """Pickle a task's arguments now; sets `refs` and `blocks`.

        With `with_function` the pickle holds the callable too.
        """
        cdef list sent = list(args)
        cdef dict named = dict(kwargs)
        cdef Py_ssize_t i, others = 0
        cdef object alone = None, place = None
        try:
            if with_function is None and not kwargs:
                i = only_open(args)
                if i >= 0:
                    self._repeat(<object>PyTuple_GET_ITEM(args, i))
            self.refs = []
            self.blocks = None
            for i in range(len(sent)):
                sent[i] = self._replaced(sent[i])
                if self._open(sent[i]):
                    others += 1
                    alone, place = sent[i], i
            for name in named:
                named[name] = self._replaced(named[name])
                if self._open(named[name]):
                    others += 1
                    alone, place = named[name], name
            if self.refs and others and self._aliased(sent, named):
                # Objects inside a shared argument appear in another one too: only
                # together do they arrive as the same objects.
                self.refs = []
                sent, named = list(args), kwargs
                others = 0
            if others == 1 and possibly_large(alone):
                # Alone, so that it need not be pickled again if it is to be shared.
                alone = self._alone(alone)
                if type(place) is int:
                    sent[place] = alone
                else:
                    named[place] = alone
            what = (tuple(sent), named)
            if with_function is not None:
                what = (with_function, *what)
            data, blocks = self.pickled(what, self._refer)
            if PyBytes_GET_SIZE(data) > SHARE_BYTES and others > 0:
                data, blocks = self._with_shared(what, data, blocks)
            if blocks is not None:
                self.blocks = blocks if self.blocks is None else self.blocks + blocks
        except (KeyboardInterrupt, MemoryError, OSError):
            raise
        except Exception as error:
            self._explain(index, f, with_function is not None, args, kwargs, error)
        return data

    cdef tuple with_copy(self, tuple args):
        """The arguments with a reference to what `_repeat` has pickled; None if there
        is no such, or if others may change too. Sets `refs` and `blocks`."""
        cdef Py_ssize_t place
        cdef Constant c
        cdef Copied mark
        if not self.repeated:
            return None
        place = only_open(args)
        if place < 0:
            return None
        c = self.repeated.get(id(<object>PyTuple_GET_ITEM(args, place)))
        if c is None or c.snapshot is None:
            return None
        if c.checked != self.epoch:
            if not c.snapshot.unchanged():
                # It is of the kind that changes: no copy of it is made again.
                c.snapshot = None
                self.expired.append(c)
                return None
            c.checked = self.epoch
        mark = Copied.__new__(Copied)
        mark.number = c.number
        mark.value = c.value
        self.refs = [c]
        self.blocks = None
        # What it takes up in the worker: it bounds the size of a batch.
        self.bytes_pickled += c.nbytes
        return (*args[:place], mark, *args[place + 1:])

    cdef int _repeat(self, object value) except -1:
        """Pickle a small value that the task before had too once more: the tasks from
        now on have copies of it."""
        cdef Constant c
        if value is not self.last_alone:
            self.last_alone = None if possibly_large(value) else value
            return 0
        if len(self.repeated) >= MOST_REPEATED or id(value) in self.repeated:
            return 0
        # Until it is found to be fit: tried once, not again with every task.
        c = Constant.__new__(Constant)
        c.value = value
        self.repeated[id(value)] = c
        if not pickles_quietly(value, 4):
            return 0
        try:
            snapshot = Snapshot(value)
        except Opaque:
            return 0
        data, blocks, needs = self._pickled_alone(value)
        if blocks is not None or needs or PyBytes_GET_SIZE(data) > COPY_BYTES:
            return 0
        c = self._new(value, data, None, None)
        c.snapshot = snapshot
        self.repeated[id(value)] = c
        return 0

    cdef object _replaced(self, object value):
        """A reference in the place of a value that the worker has, or will have."""
        cdef Constant c
        cdef object ref
        if self.explicit:
            c = self.explicit.get(id(value))
            if c is not None:
                self.refs.append(c)
                return Reference(c.number)
        if self.shared and id(value) in self.shared:
            ref = self._known(value)
            if ref is not None:
                return ref
        return value

    cdef bint _open(self, object value) except -1:
        """Whether a value is made of objects that another argument may refer to."""
        return not (type(value) is Reference or plain(value, 4)
                    or (self.reducers is not None and type(value) in self.reducers))

    def _aliased(self, list sent, dict named):
        """Whether an argument refers to an object inside a shared one."""
        cdef Constant c
        mine = identities([x for x in sent if self._open(x)]
                          + [x for x in named.values() if self._open(x)])
        for c in self.refs:
            if c.inside is None:
                c.inside = identities(c.value)
            if not mine.isdisjoint(c.inside):
                return True
        return False

    def _alone(self, value):
        """A large value as a shared constant; a small one pickled by itself."""
        data, blocks, needs = self._pickled_alone(value)
        if PyBytes_GET_SIZE(data) > SHARE_BYTES:
            return self._new_shared(value, data, blocks, needs)
        self.refs.extend(needs)
        self.blocks = blocks
        if blocks is not None:
            # Its buffers are told apart by their order in the task's stream: let the
            # value be pickled as a part of it.
            self.blocks = None
            return value
        return Packed(data)

    def _pickled_alone(self, value):
        refs, self.refs = self.refs, []
        try:
            data, blocks = self.pickled(value, self._refer)
            return data, blocks, self.refs
        finally:
            self.refs = refs

    def _known(self, value):
        """A reference to a shared constant that is still what it was, or None."""
        cdef Constant c = self.shared[id(value)]
        if not self._unchanged(c):
            del self.shared[id(value)]
            if c.uses > 1:
                self.expired.append(c)
            else:
                self._give_up(c)
            return None
        if c.uses == 1:
            self.candidates.remove(c)
            self.candidate_bytes -= c.nbytes
        c.uses += 1
        self.refs.append(c)
        return Reference(c.number)

    def _give_up(self, Constant c):
        """Stop offering a constant that one task has used."""
        self.candidates.remove(c)
        self.candidate_bytes -= c.nbytes
        self.expired.append(c)

    cdef bint _unchanged(self, Constant c) except -1:
        if c.checked == self.epoch:
            return True
        if type(c.value) is str or type(c.value) is bytes:
            same = True
        elif c.snapshot is not None:
            same = c.snapshot.unchanged()
        else:
            refs, self.refs = self.refs, []
            data, blocks = self.pickled(c.value, self._refer)
            self.refs = refs
            # A block stands for the same bytes as long as the store gives the same.
            same = data == (c.data if type(c.data) is bytes else bytes(c.data)) and (
                blocks == c.blocks)
        if same:
            c.checked = self.epoch
        return same

    def _share(self, value):
        """A reference to `value` if its own pickle is large, else `value`."""
        if not self._open(value):
            return value
        data, blocks, needs = self._pickled_alone(value)
        if PyBytes_GET_SIZE(data) < SHARE_BYTES:
            return value
        return self._new_shared(value, data, blocks, needs)

    def _new_shared(self, value, data, blocks, needs):
        """A reference to a value that this task is the first to have."""
        cdef Constant c = self._new(value, data, blocks, needs), old
        c.uses = 1
        if type(value) is not str and type(value) is not bytes:
            try:
                c.snapshot = Snapshot(value)
            except Opaque:
                c.snapshot = None
        self.shared[id(value)] = c
        self.candidates.append(c)
        self.candidate_bytes += c.nbytes
        while self.candidate_bytes > KEEP_BYTES and len(self.candidates) > 1:
            old = self.candidates[0]
            self.shared.pop(id(old.value), None)
            self._give_up(old)
        self.refs.append(c)
        return Reference(c.number)

    def _with_shared(self, what, data, blocks):
        """Pickle a large task of several objects again, with the large ones apart."""
        kwargs = what[len(what) - 1]
        args = what[len(what) - 2]
        before = list(self.refs)
        sent = [self._share(x) for x in args]
        named = {name: self._share(x) for name, x in kwargs.items()}
        if len(self.refs) == len(before):
            return data, blocks
        if self._aliased(sent, named):
            self.refs = before
            return data, blocks
        # The constants' pickles replace the first one: bytes are not counted twice.
        self.bytes_pickled -= PyBytes_GET_SIZE(data)
        return self.pickled((*what[:len(what) - 2], tuple(sent), named), self._refer)

    def _explain(self, index, f, with_function, args, kwargs, error):
        """Raise an error that names the part of a task that cannot be pickled."""
        parts = [(None, f)] if with_function else []
        parts += list(enumerate(args)) + list(kwargs.items())
        for part, value in parts:
            try:
                self.pickled(value, self._refer)
            except Exception as own:
                raise TaskPicklingError(index, function_name(f), part,
                                        type_name(value), str(own)) from own
        raise error
