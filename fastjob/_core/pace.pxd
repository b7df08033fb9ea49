# When a report is due: ten times a second or so, at a cost that the smallest tasks do
# not feel.
#
# Reading a clock after each task would cost 5 % of a task that only calls a function.
# So the clock is the coarse one (a load from a page that the kernel keeps), and while
# tasks are short it is read after every eighth only.  A read that finds the clock
# moved, by a millisecond or one of its ticks, makes the next read come after one
# task again: with long tasks every task is looked at, and where short tasks turn into
# long ones at most seven go unseen.  Whoever uses it reports the rest at the end.
#
# One owner: no lock.

from fastjob._core.libc cimport coarse_ns

cdef enum:
    MAX_STRIDE = 8
    TICK_NS = 1000000


cdef struct Pace:
    long long interval  # ns between reports; 0 is a report after each task
    long long due       # when the next one is
    long long seen      # what the clock said last
    int stride          # tasks between two reads of the clock
    int left            # ... of which so many are still to come


cdef inline void pace_start(Pace *pace, double seconds) noexcept nogil:
    pace.interval = <long long>(seconds * 1e9)
    pace.seen = coarse_ns()
    pace.due = pace.seen + pace.interval
    pace.stride = pace.left = 1


# To be asked after each task.
cdef inline bint pace_due(Pace *pace) noexcept nogil:
    cdef long long now
    if pace.interval == 0:
        return True
    pace.left -= 1
    if pace.left > 0:
        return False
    now = coarse_ns()
    if now - pace.seen >= TICK_NS:
        pace.stride = 1
    elif pace.stride < MAX_STRIDE:
        pace.stride *= 2
    pace.seen = now
    pace.left = pace.stride
    if now < pace.due:
        return False
    pace.due = now + pace.interval
    return True
