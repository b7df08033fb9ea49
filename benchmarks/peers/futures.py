"""concurrent.futures: ProcessPoolExecutor and ThreadPoolExecutor."""

import concurrent.futures

from benchmarks.peers import chunk_size, cold

REQUIRES = "concurrent.futures"
KINDS = {"processes", "threads"}
ABILITIES = {"stream"}

_CALL = """
if __name__ == "__main__":
    executor = ProcessPoolExecutor(2)
    result = list(executor.map(function, range(4)))
"""
COLD = cold("from concurrent.futures import ProcessPoolExecutor", _CALL)
_EXECUTORS = {
    "processes": concurrent.futures.ProcessPoolExecutor,
    "threads": concurrent.futures.ThreadPoolExecutor,
}


class Session:
    """One executor, kept open."""

    def __init__(self, kind, n_jobs):
        self._n_jobs = n_jobs
        self._executor = _EXECUTORS[kind](n_jobs)

    def run(self, function, items):
        return list(self.stream(function, items))

    def stream(self, function, items):
        items = list(items)
        size = chunk_size(len(items), self._n_jobs)
        return self._executor.map(function, items, chunksize=size)

    def close(self):
        self._executor.shutdown()


def open_session(kind, n_jobs):
    return Session(kind, n_jobs)
