"""concurrent.futures: ProcessPoolExecutor and ThreadPoolExecutor."""

import concurrent.futures

from benchmarks.peers import chunk_size

REQUIRES = "concurrent.futures"
KINDS = {"processes", "threads"}
ABILITIES = {"stream"}

_FIRST_CALL = """
from concurrent.futures import ProcessPoolExecutor
from benchmarks.{module} import {function} as function
if __name__ == "__main__":
    executor = ProcessPoolExecutor(2)
    result = list(executor.map(function, range(4)))
"""
COLD = {
    "first call": _FIRST_CALL.format(module="tasks", function="tiny"),
    "first numpy call": _FIRST_CALL.format(module="array_tasks", function="root"),
    "import": "from concurrent.futures import ProcessPoolExecutor; result = None",
}
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
