"""Sides with the call shape of joblib: ``Parallel(...)(delayed(f)(x) for x in xs)``."""

import contextlib
import importlib

from benchmarks.peers import clusters, cold

KINDS = {"processes", "threads", "sequential", "dask", "ray", "sklearn"}
ABILITIES = {"closure", "stream", "batch_size"}


class Session:
    """Calls of `Parallel`; the library keeps its workers by itself.

    Parameters
    ----------
    library : str
        The module that has ``Parallel`` and ``delayed``.
    kind : str
        Kind of workers.
    n_jobs : int
        Number of workers.
    backend : str or None
        Name of the backend in that library; None leaves it to the library.
    inner : str
        Name of the backend of this library in joblib, whose users then run on it.
    """

    def __init__(self, library, kind, n_jobs, backend, inner):
        module = importlib.import_module(library)
        self._parallel, self._delayed = module.Parallel, module.delayed
        self._inner = inner
        self._options = {"n_jobs": 1 if kind == "sequential" else n_jobs}
        if backend is not None:
            self._options["backend"] = backend
        self.cleanup = contextlib.ExitStack()
        if kind in ("dask", "ray"):
            self.cleanup.enter_context(clusters.cluster(kind, n_jobs))

    def run(self, function, items, **options):
        delayed = self._delayed
        parallel = self._parallel(**self._options, **options)
        return parallel(delayed(function)(item) for item in items)

    def stream(self, function, items):
        return self.run(function, items, return_as="generator")

    def joblib_backend(self):
        """Make joblib's users run on this library, inside the returned context."""
        import joblib

        n_jobs = self._options["n_jobs"]
        return joblib.parallel_config(backend=self._inner, n_jobs=n_jobs)

    def close(self):
        self.cleanup.close()


def cold_scripts(library):
    """Return the program texts for a new interpreter."""
    importing = f"from {library} import Parallel, delayed"
    call = "result = Parallel(n_jobs=2)(delayed(function)(i) for i in range(4))"
    return cold(importing, call)
