"""Backends by name, imported when they are first asked for."""

from __future__ import annotations

import sys
from _collections_abc import MutableMapping  # collections.abc costs a millisecond

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from fastjob.backends.base import Engine, ParallelBackendBase


class Home:
    """Where a backend class is to be imported from.

    Parameters
    ----------
    module, name : str
        Module and name of the class.
    needs : tuple of str
        Optional packages it needs.
    extra : str
        Name of the extra that installs them: ``pip install 'fastjob[extra]'``.
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
        """Return the class.

        Raises
        ------
        ImportError
            If an optional package is not installed; it says how to get it.
        """
        if self._class is None:
            self._check_packages()
            # Not importlib: its import costs more than this whole module.
            __import__(self.module)
            self._class = getattr(sys.modules[self.module], self.name)
        return self._class

    def _check_packages(self) -> None:
        if self.needs:
            from importlib.util import find_spec

            for package in self.needs:
                if find_spec(package) is None:
                    raise ImportError(
                        f"the {self.extra!r} backend needs the package {package!r}: "
                        f"pip install 'fastjob[{self.extra}]'"
                    )


class Backends(MutableMapping["str", "Callable[..., ParallelBackendBase]"]):
    """Backend classes, or other factories of backends, by name.

    A class whose home alone is known is imported when its name is looked up: to
    iterate over the names imports nothing.

    Parameters
    ----------
    entries : mapping
        Names, and for each a factory or its `Home`.
    """

    def __init__(
        self, entries: Mapping[str, Home | Callable[..., ParallelBackendBase]]
    ) -> None:
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Callable[..., ParallelBackendBase]:
        entry = self._entries[name]
        return entry.load() if isinstance(entry, Home) else entry

    def __setitem__(
        self, name: str, factory: Callable[..., ParallelBackendBase]
    ) -> None:
        self._entries[name] = factory

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<backends: {', '.join(self)}>"

    def copy(self) -> Backends:
        """Return another mapping with the same names; nothing is imported."""
        return Backends(self._entries)


_processes = Home("fastjob.backends.processes", "ProcessBackend")

#: What `register_parallel_backend` writes.
BACKENDS = Backends(
    {
        "processes": _processes,
        "loky": _processes,
        "threading": Home("fastjob.backends.threading", "ThreadingBackend"),
        "sequential": Home("fastjob.backends.sequential", "SequentialBackend"),
        "multiprocessing": Home(
            "fastjob.backends.multiprocessing", "MultiprocessingBackend"
        ),
    }
)

#: Backends that need other packages; a name in `BACKENDS` comes before one of these.
EXTERNAL_BACKENDS = Backends(
    {
        "dask": Home(
            "fastjob.backends.dask", "DaskBackend", ("dask", "distributed"), "dask"
        ),
        "ray": Home("fastjob.backends.ray", "RayBackend", ("ray",), "ray"),
    }
)

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
    ImportError
        If the backend needs a package that is not installed.
    """
    if isinstance(name, str):
        for known in (BACKENDS, EXTERNAL_BACKENDS, _of_joblib()):
            if name in known:
                return known[name]
    names = sorted({*BACKENDS, *EXTERNAL_BACKENDS, *_of_joblib()})
    raise ValueError(f"Invalid backend: {name}, expected one of {names}")


def _of_joblib() -> Mapping[str, Callable[..., ParallelBackendBase]]:
    """Return the backends registered with joblib, as far as that is imported."""
    return getattr(sys.modules.get("joblib.parallel"), "BACKENDS", {})


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
    try:
        factory = find(name)
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
    names = sorted({*BACKENDS, *EXTERNAL_BACKENDS})
    return {name: _reason_against(name) for name in names}


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
    # Those derived from joblib's own base class say nothing.
    if getattr(backend, "by_submit", True):
        from fastjob.backends.callback import CallbackEngine

        return CallbackEngine(backend, call)
    engine: Engine = backend.open_call(call)
    if backend.surrounds:
        from fastjob.backends.around import SurroundedEngine

        return SurroundedEngine(backend, engine)
    return engine
