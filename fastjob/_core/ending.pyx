"""Objects whose end is the end of a call, however they are dropped.

They are iterators for one reader at a time.  A second one is refused here, before the
engine hears of it, since every error that comes out of an engine ends the call: the
refusal would take its results from the first.  Compiled, so that no interrupt comes
between the note that somebody reads and the promise to take it back.

What is raised in a destructor is printed and lost.  An interrupt, or an exception that
another thread sets, can be raised in one:

1. the main thread drops the last reference to the results of a call;
2. Ctrl-C comes, and the interpreter notes it;
3. the destructor begins.  If it is written in Python, the first thing that happens in
   it is the handling of the signal, which raises KeyboardInterrupt.

So the destructor is compiled, what is raised within it is caught, the call is ended all
the same, and an interrupt is set again in this thread: it is raised as soon as the
destructor is left.  An ordinary error is printed, with what it says, as from every
destructor: raised anywhere in the caller's code, by its type alone, it would mislead.
"""

from _thread import get_ident

cdef extern from "Python.h":
    int PyThreadState_SetAsyncExc(unsigned long ident, object exception) except -1

cdef enum:
    # An error that comes so often is one of ours.
    MOST_TRIES = 16


cdef class Ending:
    """Calls ``_end(early=True)``, which may be repeated, when it is dropped.

    It iterates over what ``_next()`` returns, and calls ``_end`` when that raises.
    """

    cdef bint reading

    def __iter__(self):
        return self

    def __next__(self):
        if self.reading:
            raise ValueError("the next result is already being waited for")
        self.reading = True
        try:
            return self._next()
        except BaseException as error:
            self._end(early=not isinstance(error, StopIteration))
            raise
        finally:
            self.reading = False

    def __del__(self):
        cdef int _attempt
        raised = None
        for _attempt in range(MOST_TRIES):
            try:
                self._end(early=True)
                break
            except BaseException as error:
                raised = error
        if isinstance(raised, Exception):
            raise raised
        if raised is not None:
            PyThreadState_SetAsyncExc(get_ident(), type(raised))
