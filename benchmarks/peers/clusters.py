"""The local clusters that the dask and ray rows of every side run on."""

import contextlib


@contextlib.contextmanager
def cluster(kind, n_jobs):
    """Start a local cluster of `n_jobs` single-threaded worker processes.

    Yields
    ------
    object
        The dask client, or the ray module.
    """
    if kind == "dask":
        from distributed import Client, LocalCluster

        with (
            LocalCluster(
                n_workers=n_jobs,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
            ) as local,
            Client(local) as client,
        ):
            yield client
    else:
        import ray

        ray.init(num_cpus=n_jobs, include_dashboard=False, log_to_driver=False)
        try:
            yield ray
        finally:
            ray.shutdown()
