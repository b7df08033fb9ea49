"""fastjob, with default settings."""

from benchmarks.peers import calls

REQUIRES = "fastjob"
KINDS = calls.KINDS
ABILITIES = calls.ABILITIES
COLD = calls.cold_scripts("fastjob")

_BACKENDS = {
    "processes": "processes",
    "threads": "threading",
    "dask": "dask",
    "ray": "ray",
}


def open_session(kind, n_jobs):
    if kind == "sklearn":
        import fastjob

        fastjob.register_joblib()
    return calls.Session("fastjob", kind, n_jobs, _BACKENDS.get(kind), "fastjob")
