"""The values that a task's arguments are made of, one level into small containers.

``f(table)``, ``f((table, key))`` and ``f(options={"table": table})`` are the same to
whoever wants `table` pickled once for all tasks.  So a task is looked at as a flat list
of places: an argument, or a member of a small tuple, list or dict that is an argument.
What stands in a place can be exchanged for a reference to what has been sent before.

Guarantee: nothing of the caller's is written to.  A container of which a member is
exchanged is sent as a copy, made from its members at this moment, and a worker builds
a new container anyway.  A container that is several arguments at once is copied once,
and so stays one object.  That a copy is also referred to from *inside* some other value
is not seen here: `copied` names the originals, for ``capture`` to find out.

Dict keys are not looked at, and no more than one level: what lies deeper is found by
nobody, and pickled with its task.
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from cpython.unicode cimport PyUnicode_GET_LENGTH

from fastjob._core.snapshot cimport is_array

cdef enum:
    # A plain string or bytes above this is captured at once, to be shared.
    LONG_LEAF = 32 << 10
    # A container of fewer members is pickled with its task at once.
    FEW = 256
    # Members of a container that is looked into: it is done for each task.
    MOST_MEMBERS = 32

cdef frozenset CONTAINERS = frozenset({list, tuple, dict, set, frozenset})


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


cdef int weight(object value) except -1:
    """How large the pickle of a value may be, by itself: a `Weight`."""
    cdef object kind = type(value)
    if fj_scalar(value):
        return LIGHT
    if kind in CONTAINERS:
        return HEAVY if len(value) >= FEW else LIGHT
    if kind is str or kind is bytes or kind is bytearray:
        return HEAVY if len(value) >= LONG_LEAF else LIGHT
    if is_array(kind):
        return HEAVY if value.nbytes >= SHARE_BYTES else LIGHT
    return UNKNOWN if kind.__module__ != "builtins" else LIGHT


cdef bint possibly_large(object value) except -1:
    """Whether the pickle of a value, or of a member of it, could be worth sharing."""
    return weight(value) != LIGHT or has_member(value, HEAVY, None, None)


cdef bint has_member(object value, int least, dict known, dict explicit) except -1:
    """Whether a small container has a member of at least this weight, or a known one.
    """
    cdef object member
    if not is_small(value):
        return False
    for member in ((<dict>value).values() if type(value) is dict else value):
        if (weight(member) >= least or (known and id(member) in known)
                or (explicit and id(member) in explicit)):
            return True
    return False


cdef bint is_small(object value) except -1:
    """Whether a value is a container that is looked into."""
    cdef object kind = type(value)
    if kind is not tuple and kind is not list and kind is not dict:
        return False
    return len(value) <= MOST_MEMBERS


@cython.final
cdef class Parts:
    """The arguments of one task, place by place.

    Parameters
    ----------
    args : tuple
    kwargs : dict

    Attributes
    ----------
    places : list of tuple
        ``(container, key)`` of each value that may change: ``container[key]`` is to be
        read, and written to.
    """

    def __init__(self, tuple args, kwargs):
        cdef Py_ssize_t i
        self.args = list(args)
        self.named = dict(kwargs)
        self.places = []
        self.opened = []
        self.copies = {}
        for i in range(len(self.args)):
            if not plain(self.args[i], 4):
                self.places.append((self.args, i))
        for name in self.named:
            if not plain(self.named[name], 4):
                self.places.append((self.named, name))

    cdef int unfold(self, int least, dict known, dict explicit) except -1:
        """Put members in the place of containers that have one of at least this weight,
        or one that is among the `known` or `explicit`, by identity."""
        cdef list places = []
        cdef object container, key, value, copy
        for container, key in self.places:
            value = container[key]
            # A member of what is unfolded already is not looked into.
            if ((container is not self.args and container is not self.named)
                    or (known and id(value) in known)
                    or (explicit and id(value) in explicit)
                    or not has_member(value, least, known, explicit)):
                places.append((container, key))
                continue
            copy = self.copies.get(id(value))
            if copy is None:
                copy = dict(value) if type(value) is dict else list(value)
                self.copies[id(value)] = copy
                for inner in (copy if type(copy) is dict else range(len(copy))):
                    if not plain(copy[inner], 4):
                        places.append((copy, inner))
            self.opened.append((container, key, copy, value))
        self.places = places
        return 0

    cdef tuple fold(self, object function):
        """The task as it is to be pickled, with its function if it has one to carry."""
        cdef dict tuples = {}
        for container, key, copy, value in self.opened:
            if type(value) is tuple:
                # One tuple for all places of one original.
                if id(copy) not in tuples:
                    tuples[id(copy)] = tuple(copy)
                copy = tuples[id(copy)]
            container[key] = copy
        if function is None:
            return tuple(self.args), self.named
        return function, tuple(self.args), self.named

    cdef set copied(self):
        """Addresses of the lists and dicts of which copies are sent."""
        return {id(value) for _, _, _, value in self.opened if type(value) is not tuple}
