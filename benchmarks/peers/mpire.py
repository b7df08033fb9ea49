"""mpire's WorkerPool, kept alive from call to call."""

from benchmarks.peers import cold

REQUIRES = "mpire"
KINDS = {"processes", "threads"}
ABILITIES = {"stream"}

_CALL = """
if __name__ == "__main__":
    pool = WorkerPool(2)
    result = pool.map(function, range(4))
"""
COLD = cold("from mpire import WorkerPool", _CALL)
_METHODS = {"processes": "fork", "threads": "threading"}


class Session:
    """One pool, kept open.  An item goes in as a 1-tuple: mpire unpacks tuples."""

    def __init__(self, kind, n_jobs):
        from mpire import WorkerPool

        self._pool = WorkerPool(n_jobs, start_method=_METHODS[kind], keep_alive=True)

    def run(self, function, items):
        return self._pool.map(
            function, [(item,) for item in items], concatenate_numpy_output=False
        )

    def stream(self, function, items):
        return self._pool.imap(function, [(item,) for item in items])

    def close(self):
        self._pool.terminate()


def open_session(kind, n_jobs):
    return Session(kind, n_jobs)
