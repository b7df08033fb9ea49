"""Threads that begin, whatever is set in the thread that starts them.

``PyThreadState_SetAsyncExc`` sets an exception in a thread from outside; notebooks and
web servers end a calculation with it. Until version 3.12, CPython makes the state of a
new thread with the identifier of the *starting* one, and the new thread corrects it
when it first runs. So an exception may miss its aim:

1. thread A starts B, and has not given up the interpreter yet;
2. another thread sets an exception in A; it is stored in the first state with A's
   identifier, which is B's;
3. B runs, and dies of it in the first lines of `threading`;
4. A, in `Thread.start`, waits for ever for B to say that it has begun.

Here B begins in compiled code, where exceptions of this kind are not raised, with its
own identifier. It calls a Python function that does nothing, catches what comes out of
it, passes that on to A, and does its work. From then on nobody takes it for A.
"""

cimport cython

from _thread import get_ident, start_new_thread

from fastjob._core.nothing import nothing

cdef extern from "Python.h":
    int PY_VERSION_HEX
    int PyThreadState_SetAsyncExc(unsigned long ident, object exception) except -1


@cython.final
cdef class Beginning:
    """Calls a function after what was meant for the starting thread is passed on."""
    cdef object function
    cdef unsigned long starter

    def __init__(self, function, unsigned long starter):
        self.function = function
        self.starter = starter

    def __call__(self, *args):
        function = self.function
        self.function = None  # the thread's own method, which keeps the thread alive
        try:
            nothing()
        except BaseException as error:
            PyThreadState_SetAsyncExc(self.starter, type(error))
        function(*args)


def start_bare_thread(target, *args):
    """Start a thread that `threading` knows nothing of, as `_thread` does.

    Parameters
    ----------
    target : callable
    *args
        What `target` is called with.

    Raises
    ------
    RuntimeError
        If the system has no more threads.
    """
    start_new_thread(Beginning(target, get_ident()), args)


def start_thread(target, str name, tuple args=()):
    """Start a daemon thread.

    Parameters
    ----------
    target : callable
    name : str
    args : tuple
        What `target` is called with.

    Returns
    -------
    threading.Thread

    Raises
    ------
    RuntimeError
        If the system has no more threads.
    """
    import threading

    thread = threading.Thread(target=target, name=name, args=args, daemon=True)
    if PY_VERSION_HEX < 0x030C0000:
        thread._bootstrap = Beginning(thread._bootstrap, get_ident())
    thread.start()
    return thread
