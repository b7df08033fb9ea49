"""The objects that a worker was sent once, and that tasks refer to by number.

The table belongs to the worker's only thread that reads the socket.  A definition is
kept as bytes until a task first needs it, so that an error in unpickling it (a module
that cannot be imported there) is that task's error.

`constant`, `member` and `copied` are what a pickled reference calls: ``pickle`` finds
them by their names. A number that is referred to by `copied` is by that alone.
"""

from libc.stdint cimport uint32_t

from fastjob._core.pickling cimport load
from fastjob._core.snapshot cimport is_array
from fastjob._core.wire cimport is_lasting

cdef dict pickled = {}
cdef dict loaded = {}
# What of the caller's __main__ came with them, by number and name.
cdef dict named = {}


cdef int define(uint32_t number, object data) except -1:
    pickled[number] = data
    loaded.pop(number, None)
    named.pop(number, None)
    return 0


cdef int forget(uint32_t number) except -1:
    pickled.pop(number, None)
    loaded.pop(number, None)
    named.pop(number, None)
    return 0


cdef int reset() except -1:
    """Forget what belongs to one call."""
    cdef dict table
    for table in (pickled, loaded, named):
        for number in [n for n in table if not is_lasting(n)]:
            del table[number]
    return 0


cdef dict known():
    """The objects that have been rebuilt, by number."""
    return loaded


cpdef object constant(uint32_t number):
    """The object behind a reference in a task's arguments."""
    cdef object value
    cdef dict names
    if number in loaded:
        return loaded[number]
    names = {}
    value = load(pickled[number], None, names)
    loaded[number] = value
    if names:
        named[number] = names
    # The bytes stay only as long as they are needed.
    pickled[number] = None
    return value


cpdef object member(uint32_t number, str name):
    """A class or function of ``__main__`` that is a part of a constant."""
    constant(number)
    return named[number][name]


cpdef object copied(uint32_t number):
    """A new copy of what a task's arguments refer to: the task may change it."""
    cdef object value = loaded.get(number)
    if value is None:
        value = load(pickled[number])
        if not (is_array(type(value)) and value.flags.writeable):
            return value
        loaded[number] = value      # copying it is ten times faster; no task has it
    return value.copy(order="K")
