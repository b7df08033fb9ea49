"""Limits on the native thread pools, and how they are undone.

Whom a setting reaches differs (see `pools`), and decides how it can be undone:

- *per thread*: a limiter saves the number of the thread it is in and puts it back;
  threads cannot disturb each other.
- *process-wide*: two limiters that overlap in two threads, and each restore what they
  found, leave the limit of one behind:

      1. A finds 4, sets 1
      2. B finds 1, sets 1
      3. A restores 4
      4. B restores 1, for ever

  So such a pool keeps the number from before the first limiter, and the claims of
  those that are active, in order of arrival.  The newest claim holds; with the last
  one gone the first number returns.  Within one thread that is plain nesting.
- *either*, by version: both ways are used.

Claims are changed under ``_lock``, which is renewed in a forked child, where the
thread that held it does not exist; the limits stay as they were at the fork.  It is
reentrant since a limiter may be collected, and then drops its claims, at any
allocation, also one made under the lock.

Calls that overlap share one claim, of the least of their numbers (`CommonLimit`).  The
end of a call may be a destructor, which runs at any allocation of any thread, also in
the middle of such a change, and must not wait.  So a change is noted first, and who
holds ``_common_lock`` makes all that are noted, and looks again once it has let go:
whoever finds the lock taken can leave.
"""

from _thread import RLock
from collections import deque
from functools import wraps
from operator import index

from cython cimport final

from fastjob._core.pools cimport Pool
from fastjob._core.forks import register_at_fork
from fastjob._core.pools import loaded_pools

USER_APIS = ("blas", "openmp", "tbb")

_lock = RLock()
_common_lock = RLock()


def _renew_lock():
    global _lock, _common_lock
    _lock = RLock()
    _common_lock = RLock()


register_at_fork(after_in_child=_renew_lock)


def threadpool_info():
    """Return the native thread pools loaded in this process.

    Returns
    -------
    list of dict
        One for each library, in the order of loading, with the keys ``user_api``,
        ``internal_api``, ``num_threads``, ``prefix``, ``filepath`` and ``version``;
        OpenBLAS and BLIS add ``threading_layer`` and ``architecture``, MKL
        ``threading_layer``, FlexiBLAS its lists of backends. These are the keys and
        values of the threadpoolctl package; TBB and Accelerate are found in addition.

    Examples
    --------
    >>> all(pool["num_threads"] >= 1 for pool in threadpool_info())
    True
    """
    return [(<Pool>pool).info() for pool in loaded_pools()]


# ------------------------------------------------------- process-wide settings

def claim(owner, dict wanted):
    """Set process-wide pools for ``owner`` until it calls `release`.

    Parameters
    ----------
    owner : hashable
        Who asks. A second claim of the same owner replaces its number and keeps its
        place.
    wanted : dict
        Threads for each `Pool`.
    """
    cdef Pool pool
    with _lock:
        # All are read before any is set: setting one may change another (FlexiBLAS).
        for pool in wanted:
            if not pool.claims:
                pool.base = pool.read()
        for pool, threads in wanted.items():
            pool.claims[owner] = threads
            pool.write(newest(pool))


def release(owner, pools):
    """End the claims of ``owner``; one that it does not have is no error."""
    cdef Pool pool
    with _lock:
        for pool in pools:
            if pool.claims.pop(owner, None) is not None:
                pool.write(newest(pool))


def forget(owner, pools):
    """End the claims of ``owner`` and leave the numbers as they are."""
    cdef Pool pool
    with _lock:
        for pool in pools:
            pool.claims.pop(owner, None)


def number_before(Pool pool):
    """The threads that the calling thread uses, or would if nobody had a claim."""
    with _lock:
        return pool.base if pool.claims else pool.read()


def restore(Pool pool, int threads):
    """Set the calling thread's number back, unless that would undo a claim."""
    with _lock:
        pool.write(newest(pool) if pool.process_wide and pool.claims else threads)


cdef int newest(Pool pool) except -1:
    for threads in reversed(pool.claims.values()):
        return threads
    return pool.base


# ------------------------------------------------------------ limits of calls

cdef object COMMON = object()          # the owner of the claim that calls share
cdef dict _asked = {}                  # CommonLimit -> threads; under _common_lock
cdef object _changes = deque()         # (CommonLimit, what becomes of it), not made yet

cdef enum Change:
    BEGIN
    REFRESH
    END


@final
cdef class CommonLimit:
    """What one call asks of process-wide pools; compiled: no interrupt cuts it short.

    Parameters
    ----------
    threads : int
        With several calls the least of their numbers holds.
    """

    cdef int threads

    def __cinit__(self, int threads):
        self.threads = threads

    def begin(self):
        """Ask for it."""
        change(self, BEGIN, True)

    def refresh(self):
        """Reach libraries that were loaded since; nothing after the end."""
        change(self, REFRESH, True)

    def end(self, bint wait=True):
        """Ask no more; a second time does nothing.

        Parameters
        ----------
        wait : bool
            Return only when that is done. Not to be asked for in a destructor; if then
            another thread changes limits right now, it does this too.
        """
        change(self, END, wait)


cdef int change(CommonLimit limit, Change what, bint wait) except -1:
    _changes.append((limit, what))
    if _common_lock._is_owned():
        return 0                       # in the middle of a change: that goes on here
    while _common_lock.acquire(wait):
        try:
            make_changes()
        finally:
            _common_lock.release()
        if not _changes:
            break
    return 0


cdef int make_changes() except -1:
    cdef CommonLimit limit
    cdef bint changed = False
    while _changes:
        limit, what = _changes.popleft()
        if what == BEGIN:
            _asked[limit] = limit.threads
        if limit in _asked:
            changed = True
        if what == END:
            _asked.pop(limit, None)
    if changed:
        pools = [pool for pool in loaded_pools() if (<Pool>pool).process_wide]
        if _asked:
            claim(COMMON, dict.fromkeys(pools, min(_asked.values())))
        else:
            release(COMMON, pools)
    return 0


# --------------------------------------------------------------------- limits

cdef int checked_number(value) except -1:
    try:
        number = index(value)
    except TypeError:
        raise TypeError(
            f"limits must be whole numbers of threads, got {value!r}"
        ) from None
    if not 1 <= number < 1 << 31:
        raise ValueError(
            f"limits must be at least 1 thread and below 2**31, got {number}"
        )
    return number


cdef dict checked_limits(limits, user_api):
    """``{filepath, prefix or user_api: threads}`` of what the caller wrote."""
    cdef dict found = {}
    if user_api is not None and user_api not in USER_APIS:
        raise ValueError(
            f"user_api must be one of {', '.join(USER_APIS)} or None, got {user_api!r}"
        )
    if limits is None:
        return found
    if isinstance(limits, str):
        if limits != "sequential_blas_under_openmp":
            raise ValueError(
                "limits must be a number of threads, a dict, a list or "
                f"'sequential_blas_under_openmp', got {limits!r}"
            )
        # OpenBLAS over OpenMP is sequential in an OpenMP region by itself, and a
        # limit on it would be one on the region as well.
        over_openmp = any(pool.internal_api == "openblas"
                          and pool.threading_layer == "openmp"
                          for pool in loaded_pools())
        return found if over_openmp else {"blas": 1}
    if isinstance(limits, (list, tuple)):
        for entry in limits:
            try:
                key = entry["filepath"] if "filepath" in entry else entry["prefix"]
                found[key] = entry["num_threads"]
            except (TypeError, KeyError):
                raise ValueError(
                    "limits as a list holds dicts with 'filepath' or 'prefix', and "
                    f"'num_threads', got {entry!r}"
                ) from None
    elif isinstance(limits, dict):
        found.update(limits)
    else:
        number = checked_number(limits)
        return dict.fromkeys(USER_APIS if user_api is None else [user_api], number)
    return {key: checked_number(number) for key, number in found.items()
            if number is not None}


class threadpool_limits:
    """Limit the threads of native pools.

    As a plain call it limits them until `restore_original_limits` is called; in a
    ``with`` block until its end, however it ends; `wrap` limits them during each call
    of a function. A setting that a library keeps for each thread reaches the calling
    thread only, one of the whole process reaches all. Limits that overlap in several
    threads end well: the newest one that is active holds, and after the last one the
    number from before the first.

    Parameters
    ----------
    limits : int, dict, list, 'sequential_blas_under_openmp' or None
        Threads, at least 1. A dict gives them by ``filepath``, ``prefix`` or
        ``user_api``, looked up in this order; a list is one that `threadpool_info`
        returned. None changes nothing.
    user_api : {'blas', 'openmp', 'tbb'} or None
        The libraries that a number is meant for; None is all.

    Raises
    ------
    ValueError
        For a number below 1, a string, or a ``user_api`` that is none.
    TypeError
        For limits of another type.

    Examples
    --------
    >>> with threadpool_limits(1):
    ...     all(pool["num_threads"] == 1 for pool in threadpool_info())
    True
    """

    def __init__(self, limits=None, user_api=None):
        cdef Pool pool
        cdef dict process_wide = {}
        self._claimed = ()
        self._owner = object()             # not self: claims would keep it alive
        self._before = []
        self._user_apis = USER_APIS if user_api is None else (user_api,)
        wanted = checked_limits(limits, user_api)
        pools = loaded_pools()
        self._original = [(pool, pool.num_threads) for pool in pools]
        for pool, threads in self._original:
            for key in (pool.filepath, pool.prefix, pool.user_api):
                if key in wanted:
                    if pool.per_thread:
                        self._before.append((pool, threads, wanted[key]))
                    if pool.process_wide:
                        process_wide[pool] = wanted[key]
                    break
        # First, since it must find the numbers from before.
        self._claimed = tuple(process_wide)
        claim(self._owner, process_wide)
        for pool, _, threads in self._before:
            pool.write(threads)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.restore_original_limits()

    def __del__(self):
        # A plain call that nobody will undo: what it set stays.
        if self._claimed:
            forget(self._owner, self._claimed)

    def restore_original_limits(self):
        """Set the numbers back to those from before; a second time does nothing."""
        cdef Pool pool
        before, self._before = self._before, []
        for pool, threads, _ in before:
            pool.write(threads)
        claimed, self._claimed = self._claimed, ()
        release(self._owner, claimed)

    unregister = restore_original_limits

    def get_original_num_threads(self):
        """Return the threads from before, by user API.

        Returns
        -------
        dict
            ``{user_api: threads}``: the least where libraries differed, None where
            none was loaded.
        """
        return {
            api: min([threads for pool, threads in self._original
                      if pool.user_api == api], default=None)
            for api in self._user_apis
        }

    @classmethod
    def wrap(cls, limits=None, user_api=None):
        """Return a decorator that limits the threads during each call.

        Parameters
        ----------
        limits, user_api
            As for the class; checked at once.
        """
        checked_limits(limits, user_api)

        def decorate(function):
            @wraps(function)
            def limited(*args, **kwargs):
                with cls(limits, user_api):
                    return function(*args, **kwargs)
            return limited
        return decorate
