"""Backends by name, imported when they are first asked for."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from fastjob.backends.base import Engine, ParallelBackendBase


class LazyFactory:
    """Makes instances of a backend class that is imported at the first call.

    Parameters
    ----------
    module, name : str
        Where the class is.
    needs : tuple of str
        Optional packages it needs, and the extra that installs them is `extra`.
    extra : str
        Name of the extra in ``pip install 'fastjob[extra]'``.
    """

    def __init__(
        self, module: str, name: str, needs: tuple[str, ...] = (), extra: str = ""
    ) -> None:
        self.module = module
        self.name = name
        self.needs = needs
        self.extra = extra
        self._class: type[ParallelBackendBase] | None = None

    def load(self) -> type[ParallelBackendBase]:
        """Import the class."""
        if self._class is None:
            missing = self.missing()
            if missing:
                raise ImportError(missing)
            # Not importlib: its import costs more than this whole module.
            __import__(self.module)
            self._class = getattr(sys.modules[self.module], self.name)
        return self._class

    def missing(self) -> str | None:
        """Say which optional package is not installed, and how to get it."""
        if self.needs:
            from importlib.util import find_spec

            for package in self.needs:
                if find_spec(package) is None:
                    return (
                        f"the {self.extra!r} backend needs the package {package!r}: "
                        f"pip install 'fastjob[{self.extra}]'"
                    )
        return None

    def __call__(self, **kwargs: Any) -> ParallelBackendBase:
        return (self._class or self.load())(**kwargs)

    def __repr__(self) -> str:
        return f"<factory of {self.module}.{self.name}>"


_processes = LazyFactory("fastjob.backends.processes", "ProcessBackend")
RAY = LazyFactory("fastjob.backends.ray", "RayBackend", ("ray",), "ray")

#: Factories of backends by name; what `register_parallel_backend` writes.
BACKENDS: dict[str, Callable[..., ParallelBackendBase]] = {
    "processes": _processes,
    "loky": _processes,
    "threading": LazyFactory("fastjob.backends.threading", "ThreadingBackend"),
    "sequential": LazyFactory("fastjob.backends.sequential", "SequentialBackend"),
    "multiprocessing": LazyFactory(
        "fastjob.backends.multiprocessing", "MultiprocessingBackend"
    ),
    "dask": LazyFactory(
        "fastjob.backends.dask", "DaskBackend", ("dask", "distributed"), "dask"
    ),
    "ray": RAY,
}

DEFAULT_BACKEND = "processes"
DEFAULT_THREAD_BACKEND = "threading"
DEFAULT_PROCESS_BACKEND = "processes"

# What stands in for the process backend where it cannot be used; None until it is
# first asked for.
_process_default: str | None = None


def register_parallel_backend(
    name: str, factory: Callable[..., ParallelBackendBase], make_default: bool = False
) -> None:
    """Make a backend known by a name.

    Parameters
    ----------
    name : str
        What users pass as ``backend=``.
    factory : callable
        Returns a backend; takes ``nesting_level`` and the options of the backend as
        keywords. A subclass of `ParallelBackendBase` is one.
    make_default : bool
        Use it where no backend is asked for.

    Raises
    ------
    TypeError
        If `name` is not a string or `factory` cannot be called.

    Examples
    --------
    >>> from fastjob.backends.threading import ThreadingBackend
    >>> register_parallel_backend("mine", ThreadingBackend)
    """
    global DEFAULT_BACKEND
    if not isinstance(name, str):
        raise TypeError(f"the name of a backend is a string, got: {name!r}")
    if not callable(factory):
        raise TypeError(f"the factory of backend {name!r} is not callable: {factory!r}")
    BACKENDS[name] = factory
    if make_default:
        DEFAULT_BACKEND = name


def find(name: object) -> Callable[..., ParallelBackendBase]:
    """Return the factory registered under a name.

    A name that is only known to joblib is found when joblib has been imported.

    Raises
    ------
    ValueError
        If the name is unknown, listing those that are known.
    """
    try:
        factory = BACKENDS.get(name)  # type: ignore[call-overload]
    except TypeError:  # unhashable
        factory = None
    if factory is None:
        theirs = getattr(sys.modules.get("joblib.parallel"), "BACKENDS", {})
        if isinstance(name, str) and name in theirs:
            return theirs[name]  # type: ignore[no-any-return]
        raise ValueError(
            f"Invalid backend: {name}, expected one of {sorted({*BACKENDS, *theirs})}"
        )
    return factory  # type: ignore[no-any-return]


def create(name: object, **kwargs: Any) -> ParallelBackendBase:
    """Return a new backend, given its name and the keywords of its factory."""
    return find(name)(**kwargs)


def create_default(nesting_level: int = 0) -> ParallelBackendBase:
    """Return the backend to use where none is asked for."""
    return create(_usable(DEFAULT_BACKEND), nesting_level=nesting_level)


def create_for_processes() -> ParallelBackendBase:
    """Return the backend to use where processes are preferred to threads."""
    return create(_usable(DEFAULT_PROCESS_BACKEND), nesting_level=0)


def _usable(name: str) -> str:
    """Return the name of a default, or of what stands in for it here."""
    if name == "processes":
        return _process_default or _check_processes()
    return name


def _check_processes() -> str:
    """Find out once whether there can be processes; threads if there cannot."""
    global _process_default
    reason = _reason_against("processes")
    if reason is None:
        _process_default = "processes"
    else:
        import warnings

        _process_default = "threading"
        warnings.warn(
            f"Worker processes cannot be used here ({reason}): Parallel uses threads "
            "by default.",
            RuntimeWarning,
            stacklevel=2,
        )
    return _process_default


def _reason_against(name: str) -> str | None:
    factory = BACKENDS[name]
    if isinstance(factory, LazyFactory):
        try:
            return factory.load().unavailable()
        except ImportError as error:
            return str(error)
    check = getattr(factory, "unavailable", None)
    return check() if check is not None else None


def available() -> dict[str, str | None]:
    """Return the registered backends, and what hinders those that cannot be used.

    Returns
    -------
    dict of str to (str or None)
        For each name None, or the reason why it cannot be used here.
    """
    return {name: _reason_against(name) for name in sorted(BACKENDS)}


def is_backend(candidate: object) -> bool:
    """Tell whether an object can run calls, whatever it derives from."""
    return not isinstance(candidate, type) and hasattr(candidate, "effective_n_jobs")


def is_context(candidate: object) -> bool:
    """Tell whether an object is a ``multiprocessing`` context, or that module."""
    return hasattr(candidate, "Pool") and hasattr(candidate, "Lock")


# The classes of joblib that fastjob has itself; the others are driven as they are.
_JOBLIB_NESTED = {"SequentialBackend": "sequential", "ThreadingBackend": "threading"}


def native(backend: Any) -> ParallelBackendBase:
    """Return fastjob's own backend in place of joblib's threads or plain loop.

    joblib's classes name these as fallbacks and for nested calls.
    """
    cls = type(backend)
    if cls.__module__ == "joblib._parallel_backends" and cls.__name__ in _JOBLIB_NESTED:
        return create(
            _JOBLIB_NESTED[cls.__name__], nesting_level=backend.nesting_level or 0
        )
    return backend  # type: ignore[no-any-return]


def open_engine(backend: Any, call: Any) -> Engine:
    """Return an engine of a backend for one call."""
    try:
        open_call = backend.open_call
    except AttributeError:
        # Derived from joblib's own base class.
        from fastjob.backends.callback import CallbackEngine

        return CallbackEngine(backend, call)
    return open_call(call)  # type: ignore[no-any-return]
