"""The end of a worker whose caller is gone, where the kernel does not see to it.

A *lifeline* is a pipe whose writing end the caller alone has, and never writes to: a
worker sees its end when the caller has closed it, or has died in whatever way. A worker
without a task would see the end of its own socket; one that runs a task looks at
neither, so a thread waits for the lifeline, gives the worker a moment to end by itself,
and kills it and all that its tasks have started.

Why a thread in C: a task may hold the interpreter for as long as it likes, and this
must not wait for it. The thread never touches Python, takes no signals, and holds no
lock, so a fork at any moment finds nothing of it half done. Why not Linux's
parent-death signal: it comes when the *thread* that has started the worker ends.
"""

cdef extern from *:
    """
    #include <errno.h>
    #include <poll.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdlib.h>
    #include <unistd.h>

    typedef struct { int fd, patience; } fj_lifeline;

    static void *fj_watch(void *argument)
    {
        fj_lifeline lifeline = *(fj_lifeline *)argument;
        struct pollfd waiter = { lifeline.fd, POLLIN, 0 };
        free(argument);
        while (poll(&waiter, 1, -1) < 0 && (errno == EINTR || errno == EAGAIN)) {}
        poll(NULL, 0, lifeline.patience);
        kill(-getpgrp(), SIGKILL);
        return NULL;
    }

    /* 0, or an errno. */
    static int fj_hold(int fd, int patience)
    {
        pthread_t thread;
        pthread_attr_t attributes;
        sigset_t all, before;
        int error;
        fj_lifeline *lifeline = (fj_lifeline *)malloc(sizeof *lifeline);
        if (lifeline == NULL)
            return ENOMEM;
        lifeline->fd = fd;
        lifeline->patience = patience;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = pthread_create(&thread, &attributes, fj_watch, lifeline);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attributes);
        if (error)
            free(lifeline);
        return error;
    }
    """
    int fj_hold(int fd, int patience) nogil

from cython cimport final
from posix.unistd cimport close as close_fd

import os


@final
cdef class Descriptor:
    """A descriptor that is closed once, by `close` or with this object.

    Compiled, because an interrupt between the closing and the noting of it would have
    the number closed again, which somebody else may have got meanwhile.

    Attributes
    ----------
    fd : int
        Its number; -1 once it is closed.
    """

    cdef readonly int fd

    def __cinit__(self, int fd):
        self.fd = fd

    def __dealloc__(self):
        self.close()

    cpdef void close(self) noexcept:
        """Close it; a second time does nothing."""
        cdef int fd = self.fd
        self.fd = -1
        if fd >= 0:
            close_fd(fd)


def hold(int fd, double patience):
    """Kill this process's group `patience` seconds after the lifeline has ended.

    Parameters
    ----------
    fd : int
        Reading end of the lifeline; must stay open.
    patience : float
        Seconds.

    Raises
    ------
    OSError
        If the thread that waits cannot be started.
    """
    cdef int error = fj_hold(fd, <int>(patience * 1000))
    if error:
        raise OSError(error, f"cannot watch for the caller's end: {os.strerror(error)}")
