"""joblib, with default settings."""

import contextlib

REQUIRES = "joblib"
KINDS = {"processes", "threads", "sequential", "dask", "ray", "sklearn"}
ABILITIES = {"closure", "stream", "batch_size"}

_FIRST_CALL = """
from joblib import Parallel, delayed
from benchmarks.{module} import {function} as function
result = Parallel(n_jobs=2)(delayed(function)(i) for i in range(4))
"""
COLD = {
    "first call": _FIRST_CALL.format(module="tasks", function="tiny"),
    "first numpy call": _FIRST_CALL.format(module="array_tasks", function="root"),
    "import": "from joblib import Parallel, delayed; result = None",
}
_BACKENDS = {"processes": "loky", "threads": "threading"}


class Session:
    """Calls of `joblib.Parallel`; the library keeps its workers by itself."""

    def __init__(self, kind, n_jobs, cluster):
        from joblib import Parallel, delayed

        self._parallel, self._delayed = Parallel, delayed
        self._cluster = cluster
        self._options = {"n_jobs": 1 if kind == "sequential" else n_jobs}
        if kind in _BACKENDS:
            self._options["backend"] = _BACKENDS[kind]

    def run(self, function, items, **options):
        delayed = self._delayed
        parallel = self._parallel(**self._options, **options)
        return parallel(delayed(function)(item) for item in items)

    def stream(self, function, items):
        return self.run(function, items, return_as="generator")

    def joblib_backend(self):
        """Run joblib's users on loky, inside the returned context."""
        import joblib

        return joblib.parallel_config(backend="loky", n_jobs=self._options["n_jobs"])

    def close(self):
        self._cluster.close()


def open_session(kind, n_jobs):
    from benchmarks.peers import clusters

    cluster = contextlib.ExitStack()
    if kind in ("dask", "ray"):
        from joblib import parallel_config

        cluster.enter_context(clusters.cluster(kind, n_jobs))
        if kind == "ray":
            from ray.util.joblib import register_ray

            register_ray()
        # By name alone, joblib finds these two only through its configuration.
        cluster.enter_context(parallel_config(backend=kind))
    return Session(kind, n_jobs, cluster)
