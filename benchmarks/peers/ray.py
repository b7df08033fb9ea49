"""ray's own interface: one remote call a task, on a local cluster."""

REQUIRES = "ray"
KINDS = {"ray"}
ABILITIES = {"closure", "stream"}
COLD = {}


class Session:
    """One local cluster."""

    def __init__(self, cluster):
        self._cluster = cluster
        self._ray = cluster.__enter__()

    def run(self, function, items):
        remote = self._ray.remote(function)
        return self._ray.get([remote.remote(item) for item in items])

    def stream(self, function, items):
        remote = self._ray.remote(function)
        for reference in [remote.remote(item) for item in items]:
            yield self._ray.get(reference)

    def close(self):
        self._cluster.__exit__(None, None, None)


def open_session(kind, n_jobs):
    from benchmarks.peers import clusters

    return Session(clusters.cluster(kind, n_jobs))
