"""dask.distributed's own interface: one future a task, on a local cluster."""

REQUIRES = "distributed"
KINDS = {"dask"}
ABILITIES = {"closure", "stream"}
COLD = {}


class Session:
    """One local cluster and its client."""

    def __init__(self, cluster):
        self._cluster = cluster
        self._client = cluster.__enter__()

    def run(self, function, items):
        # Not pure: dask would give the results of the sample before from its cache.
        return self._client.gather(self._client.map(function, items, pure=False))

    def stream(self, function, items):
        for future in self._client.map(function, items, pure=False):
            yield future.result()

    def close(self):
        self._cluster.__exit__(None, None, None)


def open_session(kind, n_jobs):
    from benchmarks.peers import clusters

    return Session(clusters.cluster(kind, n_jobs))
