"""multiprocessing.Pool and ThreadPool, which leave the native threads uncapped."""

import multiprocessing
import multiprocessing.pool

from benchmarks.peers import chunk_size

REQUIRES = "multiprocessing"
KINDS = {"processes", "threads"}
ABILITIES = {"stream"}

_FIRST_CALL = """
from multiprocessing import Pool
from benchmarks.{module} import {function} as function
if __name__ == "__main__":
    pool = Pool(2)
    result = pool.map(function, range(4))
"""
COLD = {
    "first call": _FIRST_CALL.format(module="tasks", function="tiny"),
    "first numpy call": _FIRST_CALL.format(module="array_tasks", function="root"),
    "import": "from multiprocessing.pool import Pool; result = None",
}


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
