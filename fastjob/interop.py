"""fastjob in other libraries: as a backend of joblib, in place of joblib, on ray."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

# What `install_as_joblib` replaces where joblib has it: in the package, and in the
# module from which extension code imports.
JOBLIB_NAMES = (
    "Parallel",
    "cpu_count",
    "delayed",
    "effective_n_jobs",
    "parallel_backend",
    "parallel_config",
    "register_parallel_backend",
    "wrap_non_picklable_objects",
)
JOBLIB_PARALLEL_NAMES = (
    "Parallel",
    "cpu_count",
    "delayed",
    "effective_n_jobs",
    "get_active_backend",
    "parallel_backend",
    "parallel_config",
    "register_parallel_backend",
)


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


class JoblibInstallation:
    """What `install_as_joblib` has replaced; leaving its ``with`` block undoes it."""

    def __init__(self) -> None:
        self._originals: list[tuple[ModuleType, str, Any]] = []

    def replace(self, module: ModuleType, name: str, value: Any) -> None:
        """Set an attribute of a module, and remember what it was."""
        if hasattr(module, name):
            self._originals.append((module, name, getattr(module, name)))
            setattr(module, name, value)

    def undo(self) -> None:
        """Give joblib its own names back; harmless the second time.

        Modules that were imported in between keep what they have taken.
        """
        while self._originals:
            module, name, original = self._originals.pop()
            setattr(module, name, original)

    def __enter__(self) -> JoblibInstallation:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.undo()


def install_as_joblib() -> JoblibInstallation:
    """Replace the parallel half of joblib, for modules that are imported afterwards.

    For programs that own their process: libraries should use `register_joblib`.
    Modules that have imported names of joblib before keep those. Worker processes are
    not affected: what tasks import there is joblib as it is.

    Returns
    -------
    JoblibInstallation
        Its method `undo` restores joblib; it can be used in a ``with`` statement.

    Raises
    ------
    ImportError
        If joblib is not installed.

    Examples
    --------
    >>> import fastjob
    >>> with fastjob.install_as_joblib():
    ...     from joblib import Parallel
    >>> Parallel is fastjob.Parallel
    True
    """
    joblib = _import_joblib()
    import joblib.parallel as joblib_parallel

    import fastjob
    from fastjob import parallel

    installation = JoblibInstallation()
    for name in JOBLIB_NAMES:
        installation.replace(joblib, name, getattr(fastjob, name))
    for name in JOBLIB_PARALLEL_NAMES:
        installation.replace(joblib_parallel, name, getattr(parallel, name))
    return installation


def register_ray(name: str = "ray") -> None:
    """Register the ray backend, and connect to the cluster now.

    ``backend="ray"`` works without this; a program that calls it learns at its start
    whether there is a cluster.

    Parameters
    ----------
    name : str
        What users pass as ``backend=``.

    Raises
    ------
    ImportError
        If ray is not installed.
    ClusterError
        If no cluster can be reached or started.
    """
    from fastjob.backends import registry

    backend = registry.EXTERNAL_BACKENDS["ray"]
    from fastjob.backends.ray import connect

    connect()
    registry.register_parallel_backend(name, backend)
