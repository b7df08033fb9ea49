"""multiprocessing.Pool and ThreadPool, which leave the native threads uncapped."""

import multiprocessing
import multiprocessing.pool

from benchmarks.peers import chunk_size, cold

REQUIRES = "multiprocessing"
KINDS = {"processes", "threads"}
ABILITIES = {"stream"}

_CALL = """
if __name__ == "__main__":
    pool = Pool(2)
    result = pool.map(function, range(4))
"""
COLD = cold("from multiprocessing.pool import Pool", _CALL)


class Session:
    """One pool, kept open."""

    def __init__(self, kind, n_jobs):
        self._n_jobs = n_jobs
        if kind == "threads":
            self._pool = multiprocessing.pool.ThreadPool(n_jobs)
        else:
            self._pool = multiprocessing.Pool(n_jobs)

    def run(self, function, items):
        return self._pool.map(function, items)

    def stream(self, function, items):
        return self._pool.imap(function, items, chunk_size(len(items), self._n_jobs))

    def close(self):
        self._pool.terminate()
        self._pool.join()


def open_session(kind, n_jobs):
    return Session(kind, n_jobs)
