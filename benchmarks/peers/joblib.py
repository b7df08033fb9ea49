"""joblib, with default settings."""

from benchmarks.peers import calls

REQUIRES = "joblib"
KINDS = calls.KINDS
ABILITIES = calls.ABILITIES
COLD = calls.cold_scripts("joblib")

_BACKENDS = {"processes": "loky", "threads": "threading"}


def open_session(kind, n_jobs):
    session = calls.Session("joblib", kind, n_jobs, _BACKENDS.get(kind), "loky")
    if kind in ("dask", "ray"):
        from joblib import parallel_config

        if kind == "ray":
            from ray.util.joblib import register_ray

            register_ray()
        # By name alone, joblib finds these two only through its configuration.
        session.cleanup.enter_context(parallel_config(backend=kind))
    return session
