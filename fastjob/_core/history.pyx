"""What the tasks of a function took in the calls before this one.

Nothing is known of a call's first tasks, so they are sent one by one.  A program that
calls ``Parallel`` again and again with a few small tasks never gets beyond that: it
wakes two workers for two tasks that the first would have done before the second was
awake.  So a call leaves behind the mean duration of its tasks, and the next call of the
same function begins with batches that last as long as waking a worker takes
(`START_NS` in autobatch.pyx).

It is a guess, for the next arguments may be others.  Where it is wrong, an idle worker
takes the tasks over after a moment (`PATIENCE_NS` in dispatch.pyx).  What is remembered
rises at once and falls by half a call, so a function that is fast in one call and slow
in the next counts as slow.

Functions are known by identity, as in capture.pyx, and not kept alive; an entry whose
function is gone is not taken for another one at the same address.  Only hints are kept:
two calls at once can lose one, which costs some batches.
"""

from cpython.weakref cimport PyWeakref_NewRef

cdef enum:
    # Functions remembered; beyond that, all are forgotten.
    MOST_FUNCTIONS = 256

cdef dict known = {}    # id -> (weak reference, ns)


cpdef double recalled(object f) except? -1:
    """Mean ns of a task of `f`; 0 if nothing is known."""
    cdef tuple entry = known.get(id(f))
    if entry is None or entry[0]() is not f:
        return 0
    return entry[1]


cpdef int remember(object f, double task_ns) except -1:
    """A call has ended whose tasks, all of them of `f`, took so long on average."""
    task_ns = max(task_ns, recalled(f) / 2)
    try:
        reference = PyWeakref_NewRef(f, None)
    except TypeError:
        return 0    # it has no place for weak references
    if len(known) >= MOST_FUNCTIONS:
        known.clear()
    known[id(f)] = (reference, task_ns)
    return 0
