"""Turn a task into what is sent, at the moment it is taken from the input.

A task's arguments are those that it had when it was produced, whatever the caller
does to them afterwards.  Arguments that cannot change (numbers, strings, tuples of
such) wait for their batch and are pickled together with it.  All others are pickled at
once, each task on its own: a buffer that a generator fills again for every task
reaches every task as it was.

What is pickled only once a call:

- callables, by identity (a bound method counts as its function and, as the first
  argument, its object). Classes and functions of ``__main__`` that a callable refers to
  are pickled with it, and where they are a part of its arguments these refer to those;
  others are constants of their own;
- an argument whose pickle is large, by identity: the second task that has it sends a
  reference to the first one's pickle.  Since the caller may have changed the object in
  between, it is compared (``snapshot.pyx``), or, where that is impossible, pickled
  again and the bytes compared; if it differs it is a new constant. An object inside it
  that another argument of the task refers to, or another shared one, would arrive
  twice; such a task is pickled as a whole.

  All this holds for an argument, and for a member of a small tuple, list or dict that
  is an argument (``parts.pyx``): ``f((table, key))`` sends `table` once.

- a small argument that tasks in a row have, as the same array or list of parameters, if
  it is the only one of its task that could change. Each task still gets a copy of its
  own, since it may write to it: the reference in its place is one to the pickle. Again
  the object is compared before each task; once it has changed, it is pickled each time.

A constant that only one task used gives way when `KEEP_BYTES` of such have gathered:
tasks with a large argument each would else fill both processes' memory. Those that
several tasks used give way too, beyond a share of the machine's memory, the longest
unused first, but never one that the task at hand has: what all tasks have stays.
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_GET_ITEM

from libc.stdint cimport uint32_t

from fastjob._core.arrays cimport Sharer
from fastjob._core.parts cimport (
    HEAVY,
    LIGHT,
    SHARE_BYTES,
    UNKNOWN,
    Parts,
    only_open,
    plain,
    possibly_large,
    weight,
)
from fastjob._core.pickling cimport (
    cloud_class,
    dump_cloud,
    dump_plain,
    mentions_main,
    names_suffice,
)
from fastjob._core.quiet cimport pickles_quietly
from fastjob._core.snapshot cimport Snapshot

import copyreg
import io
from _pickle import Pickler
from sys import modules
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

from fastjob._core.constants import constant as fetch
from fastjob._core.constants import copied as fetch_copy
from fastjob._core.constants import member as fetch_member
from fastjob._core.pickling import loads
from fastjob._core.quiet import register_quiet
from fastjob._core.snapshot import Opaque
from fastjob.errors import TaskPicklingError

cdef enum:
    # Callables a call may intern. Wrappers made anew for each task (as scikit-learn's)
    # go beyond it and travel inside their task.
    MOST_FUNCTIONS = 64
    # Pickles, and their buffers, of constants that one task has used: what exceeds
    # this is given up.
    KEEP_BYTES = 64 << 20
    # Small objects of which each task gets a copy: how many, and their pickles' size.
    MOST_REPEATED = 64
    COPY_BYTES = 8 << 10


# What pickle memoizes and nobody tells apart.
cdef frozenset NAMELESS = frozenset({str, bytes, tuple, type, FunctionType,
                                     BuiltinFunctionType, ModuleType})


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


def lacks_room(error):
    """Whether an error says that memory, a disk or a limit is exhausted.

    All others come from the object that is pickled, or from outside (a signal handler
    that raises TimeoutError, say): pickling it once more tells.
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno is not None)


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
        self.candidates = {}
        self.kept = {}
        self.keep_bytes = max(<long long>KEEP_BYTES, sharer.store.warm_limit // 8)
        self.expired = []
        self.sharer = sharer
        self.reducers = None
        self.array_types = frozenset()

    cdef Constant _new(self, object value, object data, list blocks, list needs):
        cdef Constant c = Constant.__new__(Constant)
        c.number = self.n_constants
        self.n_constants += 1
        c.value = value
        c.data = data
        c.nbytes = PyBytes_GET_SIZE(data) + sum([b.nbytes for b in blocks or ()])
        c.blocks = blocks
        c.arrays = self.met
        c.needs = needs
        c.checked = self.epoch
        if blocks is not None:
            self.lends = True
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
            c.names = self.names
            self.functions[key] = c
        return c

    def lasting(self, value, uint32_t number):
        """A constant that outlives the call: see ``fastjob.share``."""
        cdef Constant c
        try:
            data, blocks = self.pickled(value, None)
        except Exception as error:
            if lacks_room(error):
                raise
            raise TaskPicklingError(None, "share", 0, type_name(value),
                                    str(error)) from error
        c = self._new(value, data, blocks, None)
        c.number = number
        return c

    def pickled(self, value, refer):
        """Pickle `value`: its bytes, and its out-of-band blocks or None."""
        cdef object data = None
        cdef dict names = {}
        cdef dict reducers = self.table()
        cdef bint quiet = not self.quiet or pickles_quietly(value, 4)
        if not quiet:
            self.next_epoch()
        self.sharer.met_main = False
        try:
            if type(value).__module__ != "__main__" and names_suffice():
                data = dump_plain(value, self.sharer, reducers)
        except (KeyboardInterrupt, MemoryError, OSError):
            self.sharer.blocks()
            raise
        except Exception:
            # Whatever plain pickle stumbles over, cloudpickle may be able to carry;
            # if not, its error is the one that is reported.
            data = None
        if data is None or self.sharer.met_main or mentions_main(data):
            self.sharer.blocks()
            self.sharer.pickler_class = cloud_class()
            try:
                data = dump_cloud(value, self.sharer, reducers, refer, names)
            except BaseException:
                self.sharer.blocks()
                raise
            finally:
                self.sharer.pickler_class = Pickler
        self.n_pickles += 1
        self.bytes_pickled += PyBytes_GET_SIZE(data)
        if not quiet:
            self.next_epoch()
        self.names = names
        self.met = self.sharer.met
        return data, self.sharer.blocks() or None

    cdef dict table(self):
        """The dispatch table; None as long as plain pickle's own will do."""
        cdef int n = ("numpy" in modules) + ("pandas" in modules)
        if n != self.n_libraries:
            extra = self.sharer.dispatch_table()
            if extra:
                self.reducers = {**copyreg.dispatch_table, **extra}
                self.array_types = frozenset(extra)
                self.n_libraries = n
        return self.reducers

    cpdef int next_epoch(self) except -1:
        """The caller's code may have run: nothing is known to be unchanged."""
        self.epoch += 1
        self.sharer.epoch = self.epoch
        return 0

    def _refer(self, obj):
        """Reduce value for a class or function of ``__main__``: a constant.

        If the task's function came with it, that one: to the task both are the same,
        and what it does to global variables shows in both.
        """
        cdef Constant c = self.current
        cdef tuple outer
        if c is not None and c.names.get(obj.__qualname__) is obj:
            self.refs.append(c)
            return fetch_member, (c.number, obj.__qualname__)
        c = self.functions.get(id(obj))
        if c is None:
            outer = self.sharer.begin_inner()
            try:
                data, blocks = self.pickled(obj, None)
            finally:
                self.sharer.end_inner(outer)
            c = self._new(obj, data, blocks, None)
            c.names = self.names
            self.functions[id(obj)] = c
        self.refs.append(c)
        return fetch, (c.number,)

    cdef object arguments(self, long long index, object f, object with_function,
                          tuple args, object kwargs):
        """Pickle a task's arguments now; sets `refs` and `blocks`.

        With `with_function` the pickle holds the callable too.
        """
        cdef Parts parts
        cdef Py_ssize_t i, others, known
        cdef bint split
        self.current = self.function(f) if with_function is None else None
        try:
            if with_function is None and not kwargs:
                i = only_open(args)
                if i >= 0:
                    self._repeat(<object>PyTuple_GET_ITEM(args, i))
            self.refs = []
            self.blocks = None
            self.used = []
            parts = Parts(args, kwargs)
            parts.unfold(HEAVY, self.shared, self.explicit)
            others = self._refer_to_known(parts)
            split = self._aliased(parts)
            if others == 1 and not split:
                known = len(self.used)
                self._put_alone(parts)
                split = len(self.used) > known and self._aliased(parts)
            if split or (parts.opened and not self.used):
                self.refs = []
                self.used = []
                parts = Parts(args, kwargs)
                if split:
                    others = 0      # only together do its objects arrive as the same
            data, blocks = self.pickled(parts.fold(with_function), self._refer)
            if PyBytes_GET_SIZE(data) > SHARE_BYTES and others > 0:
                data, blocks = self._with_shared(parts, with_function, data, blocks)
            if blocks is not None:
                self.blocks = blocks if self.blocks is None else self.blocks + blocks
        except Exception as error:
            if lacks_room(error):
                raise
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

    cdef Py_ssize_t _refer_to_known(self, Parts parts) except -1:
        """Put references in the places of values that the workers have, or will have;
        the number of open places that are left."""
        cdef Py_ssize_t others = 0
        cdef Constant c
        for container, key in parts.places:
            value = container[key]
            c = self.explicit.get(id(value)) if self.explicit else None
            if c is None and self.shared and id(value) in self.shared:
                c = self._known(value)
            if c is not None:
                container[key] = self._reference(c)
            elif self._open(value):
                others += 1
        return others

    cdef object _reference(self, Constant c):
        self.refs.append(c)
        self.used.append(c)
        return Reference(c.number)

    cdef int _put_alone(self, Parts parts) except -1:
        """Pickle the only open value by itself if it may be large, so that it need not
        be pickled again if it is to be shared."""
        for container, key in parts.places:
            value = container[key]
            if self._open(value) and weight(value) != LIGHT:
                container[key] = self._alone(
                    value, None if parts.opened else self._arrays(parts))
        return 0

    cdef bint _open(self, object value) except -1:
        """Whether a value is made of objects that another argument may refer to."""
        return not (type(value) is Reference or plain(value, 4)
                    or self._is_array(value))

    cdef bint _is_array(self, object value) except -1:
        """Whether a value is an array or a frame: to others it is one object."""
        return type(value) in self.array_types

    cdef set _arrays(self, Parts parts):
        """Addresses of the arrays and frames among a task's values."""
        cdef set found = set()
        for container, key in parts.places:
            if self._is_array(container[key]):
                found.add(id(container[key]))
        return found

    cdef bint _aliased(self, Parts parts) except -1:
        """Whether an object would arrive as several: it is in a value that is sent
        apart and in another one, or in two of them."""
        cdef Constant c, other
        cdef set mine, arrays
        cdef list rest
        cdef Py_ssize_t i, j
        if not self.used:
            return False
        mine = parts.copied()
        rest = [container[key] for container, key in parts.places
                if self._open(container[key])]
        if rest:
            found = identities(rest)
            if not mine.isdisjoint(found):
                return True
            mine |= found
        arrays = self._arrays(parts)
        for i in range(len(self.used)):
            c = self.used[i]
            if arrays and c.arrays and not arrays.isdisjoint(c.arrays):
                return True
            if mine and not mine.isdisjoint(self._inside(c)):
                return True
            for j in range(i):
                other = self.used[j]
                if other is not c and not self._apart(c, other):
                    return True
        return False

    cdef set _inside(self, Constant c):
        """Addresses of the objects that a constant is made of."""
        if c.inside is None:
            c.inside = identities(c.value) if c.snapshot is None else (
                c.snapshot.addresses())
        return c.inside

    cdef bint _apart(self, Constant a, Constant b) except -1:
        """Whether two constants have no object in common."""
        if a.apart is None:
            a.apart = {}
        if b.number not in a.apart:
            a.apart[b.number] = self._inside(a).isdisjoint(self._inside(b))
        return a.apart[b.number]

    def _alone(self, value, set beside):
        """A large value as a shared constant; a small one pickled by itself, if it has
        none of the arrays `beside` it inside (None: it must not be); else the value.
        """
        data, blocks, needs = self._pickled_alone(value)
        if PyBytes_GET_SIZE(data) > SHARE_BYTES:
            return self._new_shared(value, data, blocks, needs)
        if blocks is not None or beside is None or not beside.isdisjoint(self.met):
            # Its buffers are told apart by their order in the task's stream: let the
            # value be pickled as a part of it.
            return value
        self.refs.extend(needs)
        return Packed(data)

    def _pickled_alone(self, value):
        refs, self.refs = self.refs, []
        try:
            data, blocks = self.pickled(value, self._refer)
            return data, blocks, self.refs
        finally:
            self.refs = refs

    def _known(self, value):
        """The shared constant of a value if it is still what it was, or None."""
        cdef Constant c = self.shared[id(value)]
        if not self._unchanged(c):
            self._give_up(c)
            return None
        self._take_out(c)
        c.uses += 1
        self.kept[c.number] = c     # behind the others: used last
        self.kept_bytes += c.nbytes
        return c

    cdef int _take_out(self, Constant c) except -1:
        if c.uses == 1:
            del self.candidates[c.number]
            self.candidate_bytes -= c.nbytes
        else:
            del self.kept[c.number]
            self.kept_bytes -= c.nbytes
        return 0

    cdef int _give_up(self, Constant c) except -1:
        """Stop offering a constant."""
        self._take_out(c)
        if self.shared.get(id(c.value)) is c:
            del self.shared[id(c.value)]
        self.expired.append(c)
        return 0

    cdef int _make_room(self) except -1:
        """Give up what is too much: here, so only when there is something new."""
        cdef Constant old
        while self.candidate_bytes > KEEP_BYTES and len(self.candidates) > 1:
            self._give_up(next(iter(self.candidates.values())))
        while self.kept_bytes > self.keep_bytes:
            old = next(iter(self.kept.values()))
            if old in self.used:
                break
            self._give_up(old)
        return 0

    cdef bint _unchanged(self, Constant c) except -1:
        if c.checked == self.epoch:
            return True
        if type(c.value) is str or type(c.value) is bytes:
            same = True
        elif c.snapshot is not None:
            same = c.snapshot.unchanged()
        else:
            refs, self.refs = self.refs, []
            current, self.current = self.current, c.beside
            data, blocks = self.pickled(c.value, self._refer)
            self.current = current
            self.refs = refs
            # A block stands for the same bytes as long as the store gives the same.
            same = data == (c.data if type(c.data) is bytes else bytes(c.data)) and (
                blocks == c.blocks)
            c.arrays = self.met     # others may have come for equal ones
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
        cdef Constant c = self._new(value, data, blocks, needs)
        c.uses = 1
        c.beside = self.current
        if type(value) is not str and type(value) is not bytes:
            try:
                c.snapshot = Snapshot(value)
            except Opaque:
                c.snapshot = None
        self.shared[id(value)] = c
        self.candidates[c.number] = c
        self.candidate_bytes += c.nbytes
        self._make_room()
        return self._reference(c)

    cdef tuple _with_shared(self, Parts parts, object function, object data,
                            object blocks):
        """Pickle a large task of several objects again, with the large ones apart."""
        cdef list refs = list(self.refs)
        cdef Py_ssize_t before = len(self.used)
        parts.unfold(UNKNOWN, self.shared, self.explicit)
        for container, key in parts.places:
            container[key] = self._share(container[key])
        if len(self.used) == before or self._aliased(parts):
            self.refs = refs
            return data, blocks
        # The constants' pickles replace the first one: bytes are not counted twice.
        self.bytes_pickled -= PyBytes_GET_SIZE(data)
        return self.pickled(parts.fold(function), self._refer)

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
