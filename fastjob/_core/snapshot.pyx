"""Has a Python object changed since it was pickled?  Exactly, and without pickling.

An object that many tasks share is pickled once a call.  The caller may change it
between two tasks, and the later task must then see the change.  `Snapshot` remembers,
for everything that can be reached from the object, which objects it was made of, and
holds a reference to each: while the reference is held no other object can have the
same address, so comparing addresses is comparing contents.

What is compared, and how:

- ``list``, ``tuple``, ``dict``, ``set``, ``frozenset``: members, by address, in order;
- instances of classes written in Python, with the pickling that ``object`` gives or
  with their own: the attributes in ``__dict__`` and in slots;
- ``bytearray``, and numpy arrays of up to `MOST_BYTES` without objects: their bytes, an
  array's layout too;
- numbers, strings, ``bytes``, ``None``, classes, modules, and functions that are found
  by their name: immutable, or pickled by name.

A dict that belongs to nobody's attributes is not compared member by member where
CPython numbers the changes of every dict (up to 3.13) and the number is the same.
The numbers are trusted only after they have been seen to change with every operation.

Anything else keeps its state where Python cannot see it (an extension type, a large
array), or is pickled with what its code refers to (a lambda, a closure): then no
snapshot is taken, and the owner pickles again and compares the bytes.
"""

cimport cython
from cpython.buffer cimport PyBUF_FULL_RO, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.dict cimport PyDict_Next, PyDict_Size
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject

from fastjob._core.pickling cimport names_suffice

import sys
import types

cdef frozenset LEAVES = frozenset({
    int, float, complex, bool, str, bytes, type(None), type(Ellipsis),
    type(NotImplemented), range, type, types.ModuleType,
})
cdef frozenset FUNCTIONS = frozenset({types.FunctionType, types.BuiltinFunctionType})
cdef enum:
    HEAP_TYPE = 1 << 9      # Py_TPFLAGS_HEAPTYPE: made by a class statement
    MOST_PARTS = 1 << 16    # containers; more would cost more than pickling again
    MOST_BYTES = 8 << 10    # of an array; above, comparing is not what costs


cdef extern from *:
    """
    #if PY_VERSION_HEX < 0x030E0000 && !defined(Py_GIL_DISABLED)
    #if defined(__GNUC__)
    #pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    #endif
    static inline unsigned long long fj_changes(PyObject *d)
    { return (unsigned long long)((PyDictObject *)d)->ma_version_tag; }
    #else
    static inline unsigned long long fj_changes(PyObject *d)
    { (void)d; return 0; }
    #endif
    static inline int fj_same_members(PyObject *a, PyObject *b, Py_ssize_t n)
    { return n == 0 || memcmp(((PyListObject *)a)->ob_item,
                              ((PyListObject *)b)->ob_item,
                              (size_t)n * sizeof(PyObject *)) == 0; }
    """
    unsigned long long fj_changes(dict d) noexcept
    bint fj_same_members(list a, list b, Py_ssize_t n) noexcept


cdef extern from *:
    """
    #define FJ_LAYOUT 256
    /* What a contiguous buffer of at most `most` bytes looks like, without its
       contents; 0 if it is not one, or is too complicated. */
    static inline Py_ssize_t fj_layout(Py_buffer *b, Py_ssize_t most, char *out)
    {
        size_t format = b->format == NULL ? 0 : strlen(b->format);
        size_t numbers = 2 * (size_t)b->ndim + 2;
        Py_ssize_t at[FJ_LAYOUT / sizeof(Py_ssize_t)];
        int i;
        if (b->len > most || !PyBuffer_IsContiguous(b, 'A')
            || numbers * sizeof *at + format > FJ_LAYOUT)
            return 0;
        at[0] = b->readonly;
        at[1] = b->itemsize;
        for (i = 0; i < b->ndim; i++) {
            at[2 + 2 * i] = b->shape[i];
            at[3 + 2 * i] = b->strides[i];
        }
        memcpy(out, at, numbers * sizeof *at);
        if (format)
            memcpy(out + numbers * sizeof *at, b->format, format);
        return (Py_ssize_t)(numbers * sizeof *at + format);
    }
    """
    enum:
        FJ_LAYOUT
    Py_ssize_t fj_layout(Py_buffer *b, Py_ssize_t most, char *out) noexcept


cdef extern from "string.h":
    int memcmp(const void *a, const void *b, size_t n) noexcept


cdef bint changes_are_numbered() except -1:
    """Whether every way of changing a dict gives it a number it never had."""
    cdef dict d = {1: object(), 2: object(), 3: object(), "a": 1}
    cdef set seen = {fj_changes(d)}
    cdef int steps = 0
    for change in (
        lambda: d.__setitem__(1, object()), lambda: d.__setitem__(9, object()),
        lambda: d.pop(9), lambda: d.__delitem__(1), lambda: d.popitem(),
        lambda: d.update({2: object()}), lambda: d.setdefault(7, object()),
        lambda: d.__ior__({8: object()}), lambda: d.clear(),
    ):
        change()
        steps += 1
        seen.add(fj_changes(d))
    return len(seen) == steps + 1


cdef bint numbered = changes_are_numbered()


cdef bint is_array(object kind) except -1:
    """Whether a class is numpy's own array."""
    return kind.__module__ == "numpy" and kind.__qualname__ == "ndarray"


cdef bint goes_by_name(object function) except -1:
    """Whether a function is pickled as its name.

    Otherwise its defaults and the cells and globals that it uses are in the pickle, or
    the object that it is a method of.  A function at the top of ``__main__`` is a
    constant of the call (``capture``), and all pickles of it the same reference.
    """
    cdef object found = sys.modules.get(function.__module__)
    if found is None or not names_suffice():
        return False
    if function.__module__ == "__main__" and "." in function.__qualname__:
        return False
    try:
        for name in function.__qualname__.split("."):
            found = getattr(found, name)
    except Exception:       # whatever a module's own __getattr__ raises
        return False
    return found is function


@cython.final
cdef class ArrayState:
    """What a small array held: its bytes, their layout, and its dtype.

    Raises
    ------
    Opaque
        If it is large, has holes, or consists of what no buffer can describe.
    """
    cdef object dtype
    cdef bytes layout
    cdef bytes data

    def __init__(self, array):
        cdef Py_buffer view
        cdef char layout[FJ_LAYOUT]
        cdef Py_ssize_t n
        self.dtype = array.dtype
        if self.dtype.hasobject:
            raise Opaque
        try:
            PyObject_GetBuffer(array, &view, PyBUF_FULL_RO)
        except (ValueError, BufferError):   # dates, for example
            raise Opaque from None
        try:
            n = fj_layout(&view, MOST_BYTES, layout)
            if n == 0:
                raise Opaque
            self.layout = PyBytes_FromStringAndSize(layout, n)
            self.data = PyBytes_FromStringAndSize(<char *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef bint unchanged(self, object array) except -1:
        cdef Py_buffer view
        cdef char layout[FJ_LAYOUT]
        cdef Py_ssize_t n
        if array.dtype is not self.dtype:
            return False
        PyObject_GetBuffer(array, &view, PyBUF_FULL_RO)
        n = fj_layout(&view, MOST_BYTES, layout)
        same = (n == PyBytes_GET_SIZE(self.layout)
                and memcmp(layout, PyBytes_AS_STRING(self.layout), n) == 0
                and view.len == PyBytes_GET_SIZE(self.data)
                and memcmp(view.buf, PyBytes_AS_STRING(self.data), view.len) == 0)
        PyBuffer_Release(&view)
        return same


class Opaque(Exception):
    """The object has state that cannot be compared."""


cdef tuple slots_of(object kind):
    names = []
    for base in kind.__mro__:
        own = base.__dict__.get("__slots__", ())
        names.extend((own,) if isinstance(own, str) else own)
    return tuple(n for n in names if n not in ("__dict__", "__weakref__"))


cdef bint is_python_instance(object kind):
    """Whether all state of the instances of `kind` is in attributes."""
    for base in kind.__mro__:
        if base is object:
            continue
        if not base.__flags__ & HEAP_TYPE or base.__module__ == "builtins":
            return False
        # A heap type that C code made has members or methods of C types.
        for value in base.__dict__.values():
            if type(value) in C_MEMBERS:
                name = getattr(value, "__name__", "")
                if name not in ("__dict__", "__weakref__") and (
                        name not in slots_of(base)):
                    return False
    return True


cdef frozenset C_MEMBERS = frozenset({
    types.MemberDescriptorType, types.GetSetDescriptorType,
    types.MethodDescriptorType, types.WrapperDescriptorType,
})


@cython.final
cdef class Snapshot:
    """What an object was made of at one moment.

    Parameters
    ----------
    obj : object

    Raises
    ------
    Opaque
        If some part of it cannot be compared.
    """

    def __init__(self, obj):
        self.parts = []
        self.owned = set()
        self.kinds = {}
        stack = [obj]
        seen = set()
        while stack:
            self._add(stack.pop(), stack, seen)

    cdef int _add(self, object obj, list stack, set seen) except -1:
        cdef object kind = type(obj)
        cdef object copy
        if kind in LEAVES or isinstance(obj, type):
            return 0
        if id(obj) in seen:
            return 0
        if kind in FUNCTIONS:
            if not goes_by_name(obj):
                raise Opaque
            seen.add(id(obj))
            return 0
        seen.add(id(obj))
        if len(self.parts) >= MOST_PARTS:
            raise Opaque
        if kind is list:
            copy = list(obj)
            stack.extend(x for x in <list>copy if type(x) not in LEAVES)
        elif kind is tuple:
            # Cannot change itself; the snapshot holds it through its owner.
            stack.extend(x for x in <tuple>obj if type(x) not in LEAVES)
            return 0
        elif kind is dict:
            copy = [dict(<dict>obj), 0]
            if numbered and id(obj) not in self.owned:
                (<list>copy)[1] = fj_changes(<dict>obj)
            stack.extend(x for x in (<dict>obj).values() if type(x) not in LEAVES)
            stack.extend(x for x in <dict>obj if type(x) not in LEAVES)
        elif kind is set:
            copy = list(obj)
            stack.extend(x for x in <list>copy if type(x) not in LEAVES)
        elif kind is frozenset:
            stack.extend(x for x in obj if type(x) not in LEAVES)
            return 0
        elif kind is bytearray:
            copy = bytes(obj)
        elif is_array(kind):
            copy = ArrayState(obj)
        else:
            if kind not in self.kinds:
                if not is_python_instance(kind):
                    raise Opaque
                self.kinds[kind] = slots_of(kind)
            own = getattr(obj, "__dict__", None)
            if own is not None:
                if type(own) is not dict:
                    raise Opaque
                # Attributes can be set without a change of the dict's number.
                self.owned.add(id(own))
                stack.append(own)
            slots = self.kinds[kind]
            if not slots:
                # The same attributes dictionary for life, unless it is replaced.
                copy = own
            else:
                values = [getattr(obj, name, MISSING) for name in slots]
                stack.extend(values)
                copy = (own, values)
            self.parts.append((obj, kind, copy))
            return 0
        self.parts.append((obj, kind, copy))
        return 0

    cdef bint unchanged(self) except -1:
        """Whether the object is still made of the same objects."""
        cdef object obj, kind, copy, number
        for obj, kind, copy in self.parts:
            if type(obj) is not kind:
                return False
            if kind is dict:
                number = (<list>copy)[1]
                if number and fj_changes(<dict>obj) == number:
                    continue
                if not same_dict(<dict>obj, <dict>(<list>copy)[0]):
                    return False
                if number:
                    (<list>copy)[1] = fj_changes(<dict>obj)
            elif kind is list:
                if not same_list(<list>obj, <list>copy):
                    return False
            elif kind is set:
                # Not by `==`: 1 equals 1.0, and what a class calls equal may differ.
                if not same_list(list(<set>obj), <list>copy):
                    return False
            elif kind is bytearray:
                if obj != copy:
                    return False
            elif type(copy) is ArrayState:
                if not (<ArrayState>copy).unchanged(obj):
                    return False
            elif type(copy) is tuple:
                if getattr(obj, "__dict__", None) is not copy[0]:
                    return False
                for name, value in zip(self.kinds[kind], copy[1], strict=True):
                    if getattr(obj, name, MISSING) is not value:
                        return False
            elif getattr(obj, "__dict__", None) is not copy:
                return False
        return True

    cdef set addresses(self):
        """Addresses of the objects that can change, of which the object is made."""
        return {id(obj) for obj, _, _ in self.parts}

    def same(self):
        """Whether the object is still made of the same objects."""
        return bool(self.unchanged())


cdef object MISSING = object()
LEAVES |= {object}


cdef bint same_list(list now, list then) noexcept:
    cdef Py_ssize_t n = PyList_GET_SIZE(then)
    return PyList_GET_SIZE(now) == n and fj_same_members(now, then, n)


cdef bint same_dict(dict now, dict then) noexcept:
    cdef Py_ssize_t at = 0, at_then = 0
    cdef PyObject *key
    cdef PyObject *value
    cdef PyObject *key_then
    cdef PyObject *value_then
    if PyDict_Size(now) != PyDict_Size(then):
        return False
    while PyDict_Next(then, &at_then, &key_then, &value_then):
        if not PyDict_Next(now, &at, &key, &value):
            return False
        if key is not key_then or value is not value_then:
            return False
    return True
