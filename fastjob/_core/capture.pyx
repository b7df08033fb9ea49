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
  again and the bytes compared; if it differs it is a new constant.

A constant that only one task used gives way when `KEEP_BYTES` of such have gathered:
tasks with a large argument each would else fill both processes' memory.
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from cpython.unicode cimport PyUnicode_GET_LENGTH

from fastjob._core.constants import constant as fetch
from fastjob._core.arrays cimport Sharer
from fastjob._core.pickling cimport cloud_class, dump_cloud, dump_plain, mentions_main
from fastjob._core.snapshot cimport Snapshot

import copyreg
from pickle import Pickler
from sys import modules
from types import MethodType

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
    """

    def __init__(self, Sharer sharer not None):
        self.functions = {}
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

    def pickled(self, value, refer):
        """Pickle `value`: its bytes, and its out-of-band blocks or None."""
        cdef object data = None
        cdef dict reducers = self.table()
        try:
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

    cdef int next_epoch(self) except -1:
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
        cdef list sent = None
        cdef dict named = None
        cdef object ref
        cdef Py_ssize_t i
        self.refs = []
        self.blocks = None
        if self.shared:
            for i in range(len(args)):
                if id(args[i]) in self.shared:
                    ref = self._known(args[i])
                    if ref is not None:
                        if sent is None:
                            sent = list(args)
                        sent[i] = ref
            for name, value in kwargs.items():
                if id(value) in self.shared:
                    ref = self._known(value)
                    if ref is not None:
                        if named is None:
                            named = dict(kwargs)
                        named[name] = ref
        what = (tuple(sent) if sent is not None else args,
                named if named is not None else kwargs)
        if with_function is not None:
            what = (with_function, *what)
        try:
            data, self.blocks = self.pickled(what, self._refer)
            if PyBytes_GET_SIZE(data) > SHARE_BYTES:
                data = self._with_shared(what, data)
        except (KeyboardInterrupt, MemoryError, OSError):
            raise
        except Exception as error:
            self._explain(index, f, with_function is not None, args, kwargs, error)
        return data

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

    cdef object _share(self, object value):
        """A reference to `value` if its own pickle is large, else `value`."""
        cdef Constant c
        if type(value) is Reference or fj_scalar(value):
            return value
        refs, self.refs = self.refs, []
        data, blocks = self.pickled(value, self._refer)
        needs, self.refs = self.refs, refs
        if PyBytes_GET_SIZE(data) < SHARE_BYTES:
            return value
        c = self._new(value, data, blocks, needs)
        c.uses = 1
        if type(value) is not str and type(value) is not bytes:
            try:
                c.snapshot = Snapshot(value)
            except Opaque:
                c.snapshot = None
        self.shared[id(value)] = c
        self.candidates.append(c)
        self.candidate_bytes += PyBytes_GET_SIZE(data)
        while self.candidate_bytes > KEEP_BYTES and len(self.candidates) > 1:
            old = <Constant>self.candidates[0]
            self.shared.pop(id(old.value), None)
            self._give_up(old)
        self.refs.append(c)
        return Reference(c.number)

    def _with_shared(self, what, data):
        """Pickle a large task again, its large arguments as constants."""
        kwargs = what[len(what) - 1]
        args = what[len(what) - 2]
        before = len(self.refs)
        sent = tuple([self._share(x) for x in args])
        named = {name: self._share(x) for name, x in kwargs.items()}
        if len(self.refs) == before:
            return data
        # The constants' pickles replace the first one: bytes are not counted twice.
        self.bytes_pickled -= PyBytes_GET_SIZE(data)
        data, self.blocks = self.pickled((*what[:len(what) - 2], sent, named), self._refer)
        return data

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
