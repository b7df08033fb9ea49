"""Not a library: the side that runs what physics asks of a row, and no more."""

REQUIRES = "time"
KINDS = frozenset()
ABILITIES = frozenset()
COLD = {
    "first call": "result = None",
    "first numpy call": "import numpy; result = None",
}


class Session:
    """Holds nothing; the host calls the row's ``limit`` instead of its ``work``."""

    def close(self):
        pass


def open_session(kind, n_jobs):
    return Session()
