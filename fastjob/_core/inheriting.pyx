"""Views that forked children of this process have too.

A child has all views of its parent without the owners of the blocks knowing; and the
parent, when it drops its own, must not let the block be reused, nor give its memory
back, while a child can read it.

(a) Before the fork all slots that are LENT become INHERITED, of every table that has a
    view, whether its link is still open or not; (b) a view opened between that and the
    fork itself is INHERITED from the start; (c) a deallocator turns INHERITED into
    INHERITED_DROPPED, which the owner does not take for RETURNED; (d) the child and all
    its descendants have a sign of life (below): when it is gone, none of them is left,
    and where no fork is left that a slot was visible to, INHERITED becomes LENT and
    INHERITED_DROPPED becomes RETURNED.  In (c) and (d) each change is a
    compare-and-swap, so a deallocator that runs meanwhile is not lost.  The child's own
    deallocators see that the epoch has changed and touch nothing.

Whoever needs memory looks for (d), and a worker whose task has forked does before its
last reply to a batch, while it is idle, and when it exits.  A slot that is inherited
when its process dies is never taken back: a descendant may live.  So the argument of
a task that forked, and whose worker was killed or ended before the child did, stays
for as long as its owner lives.

To which forks a slot is visible.  Forks are numbered in (a), under the mutex, in one
step with the marking.  The table notes for each slot the first and the last number
that came by while the slot was LENT or INHERITED (`Table.pin`).  A view that a child
has was there at its fork, so it had not been dropped, and its slot was in one of
these states when that fork was numbered, or (b) came later: then the slot belongs to
all forks.  What was dropped, or taken back and lent again, is in another state at the
later forks, or starts anew.  So no fork outside the two numbers can see it: a child
that lives for long keeps what was there when it was forked, and nothing else.

The sign of life is a page of shared memory that the parent maps before the fork, and
unmaps after it: whoever has it mapped is a descendant.  It is never touched, so it
takes no memory.  Like the views it belongs to the address space and nothing else: a
fork copies both, exec and death end both, and a child that closes all its
descriptors, as daemons do, keeps both.  It is asked for by `shm_mapped`, which is
tried before the fork: a kernel that does not say that the parent has the page mapped
is not believed.

Where there are no such files (macOS, ``FASTJOB_MEMFD=0``) it is the write end of a
pipe, whose read end hangs up.  A child that closes all its descriptors and lives on
is taken for dead there; the arrays that it has inherited may change under its eyes.

Memory of a dead owner is given back by whoever drops the last view on it here, unless
`has_heirs`: some fork is in `living`.  A deallocator in another thread, at any moment:

1. before the fork is in `living`: the view is gone, or being dropped by a thread that
   the child does not have;
2. after that, until the last descendant has ended: it sees that there is one.

What it then leaves is given back by `settle` once no fork is in `living`.  That lowers
`n_living` and looks at the views; the deallocator counts its view down and looks at
`n_living`: at least one of them sees the other, as in 4 of ``lending``.

A fork while there is no table costs nothing, and no descriptor.  If another thread
opens the first view in the middle of it, or if there was no descriptor for a sign of
life, the end of the child cannot be told: it is taken to live for ever.
"""

from fastjob._core.libc cimport POLLHUP, poll, pollfd
from fastjob._core.regions cimport PAGE, enter_child, lock, remove_all_unread, unlock
from fastjob._core.shm cimport (
    shm_add,
    shm_close,
    shm_count,
    shm_create,
    shm_map,
    shm_mapped,
    shm_unmap,
)
from fastjob._core.tables cimport (
    ANY,
    any_borrowed,
    forget_borrowed,
    pin_all,
    unpin_all,
)

import os
from _thread import get_ident

from fastjob._core.forks import register_at_fork

cdef enum:
    MOST_FORKS = 4096  # that are followed at the same time

# Changed under the mutex only.
cdef unsigned int forking = 0   # forks between their hooks
cdef unsigned int forks = 0     # the number of the last one
cdef bint inherited = False     # some slots may be INHERITED or INHERITED_DROPPED
cdef bint overflowed = False    # there were more: nothing is taken back any more
# Numbers of forks that go on, or have descendants alive, ascending; and the descriptor
# of the page or the pipe, or -1: nothing tells their end.
cdef unsigned int living[MOST_FORKS]
cdef int signs[MOST_FORKS]
cdef unsigned int n_living = 0

# By thread: the fork it is at, as number, address of the page or 0, write end or -1,
# and whether there were tables.
cdef dict begun = {}


cdef bint is_forking() noexcept nogil:
    return shm_count(&forking) != 0


cdef bint has_heirs() noexcept nogil:
    return shm_count(&n_living) != 0


cdef bint ended(int fd) noexcept nogil:
    """Whether nobody is left who has this sign of life."""
    cdef int mapped
    cdef pollfd hangup
    if fd < 0:
        return False
    mapped = shm_mapped(fd)
    if mapped >= 0:
        return mapped == 0
    hangup.fd = fd
    hangup.events = 0
    hangup.revents = 0
    return poll(&hangup, 1, 0) == 1 and hangup.revents & POLLHUP


cdef void remove(unsigned int i) noexcept nogil:
    """Take a fork out of `living`; under the mutex."""
    cdef int fd = signs[i]
    cdef unsigned int j
    # In this order for `forget`, which sees it unfinished if another thread forks now.
    signs[i] = -1
    if fd >= 0:
        shm_close(fd)
    for j in range(i + 1, n_living):
        living[j - 1] = living[j]
        signs[j - 1] = signs[j]
    shm_add(&n_living, -1)


cdef bint settle() noexcept nogil:
    """Forget the forks whose descendants have all ended; whether some may end yet."""
    global inherited
    cdef unsigned int i, before
    cdef bint more = False
    if not inherited:
        return False
    lock()
    before = n_living
    i = 0 if overflowed else n_living
    while i:
        i -= 1
        if ended(signs[i]):
            remove(i)
        elif signs[i] >= 0:
            more = True
    if n_living < before or n_living == 0:
        unpin_all(living, n_living)
    if n_living == 0:
        inherited = False
        remove_all_unread()
    unlock()
    return more


def settle_forks():
    """Release the descriptors that wait for forks whose descendants have ended."""
    settle()


cdef int make_sign(void **page, int *write_end) except -2:
    """A sign of life, which this process has too; -1 if there can be none."""
    cdef int fd = shm_create(b"fastjob", PAGE)
    if fd >= 0:
        page[0] = shm_map(fd, 0, PAGE, False)
        if page[0] != NULL:
            if shm_mapped(fd) == 1:
                return fd
            shm_unmap(page[0], PAGE)
            page[0] = NULL
        shm_close(fd)
    try:
        fd, write_end[0] = os.pipe()
    except OSError:
        return -1
    return fd


cdef void drop_sign(size_t page, int write_end) noexcept nogil:
    """Show this sign of life no longer."""
    if page:
        shm_unmap(<void *>page, PAGE)
    if write_end >= 0:
        shm_close(write_end)


def before_fork():
    """Mark what is lent to this process as inherited by the child to come."""
    global forks, inherited, overflowed
    cdef void *page = NULL
    cdef int fd = -1, write_end = -1
    cdef unsigned int number = 0
    lock()
    found = any_borrowed()
    unlock()
    if found:
        # Or a program that forks again and again would run out of descriptors.
        settle()
        fd = make_sign(&page, &write_end)
    lock()
    shm_add(&forking, 1)
    if n_living < MOST_FORKS and forks < ANY:
        forks += 1
        number = forks
        living[n_living] = number
        signs[n_living] = fd
        shm_add(&n_living, 1)
    else:
        overflowed = True
        if fd >= 0:
            shm_close(fd)
    if any_borrowed():
        inherited = True
        pin_all(number)
    unlock()
    begun[get_ident()] = number, <size_t>page, write_end, found


def after_fork_in_parent():
    """Remember the child until it and its descendants have ended."""
    cdef unsigned int number, i
    if get_ident() not in begun:
        return
    number, page, write_end, found = begun.pop(get_ident())
    drop_sign(page, write_end)
    lock()
    if not found and not any_borrowed():
        for i in range(n_living):
            if living[i] == number:
                remove(i)
                break
    shm_add(&forking, -1)
    unlock()


def forget():
    """Disown all shared memory, in a forked child; runs by itself after `os.fork`.

    Views stay readable.  This fork's sign of life stays for as long as this process
    lives: it is what tells the parent that it does.
    """
    global forking, inherited, n_living, overflowed
    enter_child()
    forget_borrowed()
    forking = 0
    inherited = False
    overflowed = False
    begun.pop(get_ident(), None)
    for _, page, write_end, _ in begun.values():
        drop_sign(page, write_end)  # another thread's
    begun.clear()
    while n_living:
        n_living -= 1
        if signs[n_living] >= 0:
            shm_close(signs[n_living])


register_at_fork(before=before_fork, after_in_parent=after_fork_in_parent,
                 after_in_child=forget)
