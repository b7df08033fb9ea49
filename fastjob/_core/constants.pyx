"""The objects that a worker was sent once, and that tasks refer to by number.

The table belongs to the worker's only thread that reads the socket.  A definition is
kept as bytes until a task first needs it, so that an error in unpickling it (a module
that cannot be imported there) is that task's error.

`constant` and `copied` are what a pickled reference calls: ``pickle`` finds them by
their names. A number is referred to in one of the two ways only.
"""

from libc.stdint cimport uint32_t

from fastjob._core.pickling cimport load
from fastjob._core.snapshot cimport is_array
from fastjob._core.wire cimport is_lasting

cdef dict pickled = {}
cdef dict loaded = {}


cdef int define(uint32_t number, object data) except -1:
    pickled[number] = data
    loaded.pop(number, None)
    return 0


cdef int forget(uint32_t number) except -1:
    pickled.pop(number, None)
    loaded.pop(number, None)
    return 0


cdef int reset() except -1:
    """Forget what belongs to one call."""
    cdef dict table
    for table in (pickled, loaded):
        for number in [n for n in table if not is_lasting(n)]:
            del table[number]
    return 0


cdef dict known():
    """The objects that have been rebuilt, by number."""
    return loaded


cpdef object constant(uint32_t number):
    """The object behind a reference in a task's arguments."""
    cdef object value
    if number in loaded:
        return loaded[number]
    value = load(pickled[number])
    loaded[number] = value
    # The bytes stay only as long as they are needed.
    pickled[number] = None
    return value


cpdef object copied(uint32_t number):
    """A new copy of what a task's arguments refer to: the task may change it."""
    cdef object value = loaded.get(number)
    if value is None:
        value = load(pickled[number])
        if not (is_array(type(value)) and value.flags.writeable):
            return value
        loaded[number] = value      # copying it is ten times faster; no task has it
    return value.copy(order="K")
