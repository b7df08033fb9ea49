"""Views that forked children of this process have too.

A child has all views of its parent without the owners of the blocks knowing; and the
parent, when it drops its own, must not let the block be reused, nor give its memory
back, while a child can read it.

(a) Before the fork all slots that are LENT become INHERITED, of every table that has a
    view, whether its link is still open or not; (b) a view opened between that and the
    fork itself is INHERITED from the start; (c) a deallocator turns INHERITED into
    INHERITED_DROPPED, which the owner does not take for RETURNED; (d) the child and all
    its descendants hold the write end of a pipe: when its read end hangs up, none of
    them is left, and with no such pipe left INHERITED becomes LENT and
    INHERITED_DROPPED becomes RETURNED.  In (c) and (d) each change is a
    compare-and-swap, so a deallocator that runs meanwhile is not lost.  The child's own
    deallocators see that the epoch has changed and touch nothing.  A slot that is
    inherited when its process dies is never taken back: a descendant may live.

Memory of a dead owner is given back by whoever drops the last view on it here, unless
`has_heirs`.  A deallocator in another thread, at any moment of a fork:

1. before `forking` is raised: the view is gone, or being dropped by a thread that the
   child does not have;
2. from then until `generations` is raised: it sees `forking`, which is lowered last;
3. after that, until the last descendant has ended: it sees `generations`.

It looks at `forking` first: in the other order it could miss both.

A fork while there is no table costs nothing, and no descriptor.  If another thread
opens the first view in the middle of it, or if there was no descriptor for the pipe,
the end of the child cannot be told: it is taken to live for ever.
"""

from fastjob._core.libc cimport POLLHUP, poll, pollfd
from fastjob._core.regions cimport enter_child, lock, unlock
from fastjob._core.shm cimport shm_add, shm_count
from fastjob._core.tables cimport any_borrowed, forget_borrowed, pin_all, unpin_all

import os
from _thread import get_ident

from fastjob._core.forks import register_at_fork

# Changed under the mutex only.
cdef unsigned int forking = 0      # forks between their hooks
cdef unsigned int generations = 0  # forks some descendants of which are alive
cdef bint inherited = False        # some slots may be INHERITED or INHERITED_DROPPED

# Read ends of the pipes that the descendants of a fork hold.
cdef list inheritors = []
# By thread: the two ends of the pipe of the fork it is at, or None.
cdef dict pipes = {}


cdef bint is_forking() noexcept nogil:
    return shm_count(&forking) != 0


cdef bint has_heirs() noexcept nogil:
    return shm_count(&forking) != 0 or shm_count(&generations) != 0


cdef int settle() except -1:
    """Forget the forks whose descendants have all ended."""
    global generations, inherited
    cdef pollfd hangup
    if not inherited:
        return 0
    for fd in list(inheritors):
        hangup.fd = fd
        hangup.events = 0
        hangup.revents = 0
        if poll(&hangup, 1, 0) == 1 and hangup.revents & POLLHUP:
            try:
                inheritors.remove(fd)
            except ValueError:
                continue  # another thread was first
            os.close(fd)
            lock()
            shm_add(&generations, -1)
            unlock()
    lock()
    if forking == 0 and generations == 0:
        inherited = False
        unpin_all()
    unlock()
    return 0


def settle_forks():
    """Release the descriptors that wait for forks whose descendants have ended."""
    settle()


def before_fork():
    """Mark what is lent to this process as inherited by the child to come."""
    global inherited
    ends = None
    lock()
    found = any_borrowed()
    unlock()
    if found:
        # Or a program that forks again and again would run out of descriptors.
        settle()
        try:
            ends = os.pipe()
        except OSError:
            pass  # as if the child lived for ever
    pipes[get_ident()] = ends
    lock()
    shm_add(&forking, 1)
    if any_borrowed():
        inherited = True
        pin_all()
    unlock()


def after_fork_in_parent():
    """Remember the child until it and its descendants have ended."""
    if get_ident() not in pipes:
        return
    ends = pipes.pop(get_ident())
    lock()
    if ends is not None or any_borrowed():
        shm_add(&generations, 1)
    shm_add(&forking, -1)
    unlock()
    if ends is not None:
        os.close(ends[1])
        inheritors.append(ends[0])


def forget():
    """Disown all shared memory, in a forked child; runs by itself after `os.fork`.

    Views stay readable.  The write end of this fork's pipe stays open for as long as
    this process lives: it is what tells the parent that it does.
    """
    global forking, generations, inherited
    enter_child()
    forget_borrowed()
    forking = 0
    generations = 0
    inherited = False
    ends = pipes.pop(get_ident(), None)
    pipes.clear()
    if ends is not None:
        os.close(ends[0])
    for fd in inheritors:
        os.close(fd)
    inheritors.clear()


register_at_fork(before=before_fork, after_in_parent=after_fork_in_parent,
                 after_in_child=forget)
