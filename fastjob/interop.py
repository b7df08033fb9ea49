"""fastjob in other libraries: as a backend of joblib, in place of joblib, on ray."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _import_joblib() -> Any:
    try:
        import joblib
    except ImportError as error:
        raise ImportError(
            "joblib is not installed, so there is nothing to hook fastjob into: "
            "pip install joblib"
        ) from error
    return joblib


def register_joblib(make_default: bool = False) -> None:
    """Make fastjob's worker processes a backend of joblib, named ``"fastjob"``.

    Whatever runs on joblib, scikit-learn for one, can then use them without a change.

    Parameters
    ----------
    make_default : bool
        Use it where joblib is asked for no backend.

    Raises
    ------
    ImportError
        If joblib is not installed.

    Examples
    --------
    >>> import fastjob, joblib
    >>> fastjob.register_joblib()
    >>> with joblib.parallel_config(backend="fastjob", n_jobs=2):
    ...     joblib.Parallel()(joblib.delayed(abs)(-i) for i in range(4))
    [0, 1, 2, 3]
    """
    joblib = _import_joblib()
    from fastjob.joblib_backend import FastjobBackend

    joblib.register_parallel_backend(
        "fastjob", FastjobBackend, make_default=make_default
    )
