"""The configuration that surrounds a call, and what a task inherits from it.

A configuration is a plain dict that holds only what was set; it is never changed once
it is active.  The active one is a context variable: a new thread starts without one,
an asyncio task and a copied context inherit it, and a worker is handed a picklable
one (`nested`, made by the caller; `restore`, called by the worker) in which the
backend may be a pair of name and nesting level instead of an instance.
"""

from __future__ import annotations

from contextvars import ContextVar

from fastjob.active import configuration
from fastjob.backends import registry
from fastjob.backends.base import ParallelBackendBase, nested_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextvars import Token
    from typing import Any

    Config = dict[str, Any]


class Default:
    """Marks an argument that was not given; holds the value it then has."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"default({self.value!r})"


#: What each key means where nothing sets it. The markers are told apart by identity,
#: so that a value given explicitly wins over the configuration even if it is the same.
DEFAULTS: dict[str, Any] = {
    "backend": Default(None),
    "n_jobs": Default(None),
    "verbose": Default(0),
    "temp_folder": Default(None),
    "max_nbytes": Default("1M"),
    "mmap_mode": Default("r"),
    "prefer": Default(None),
    "require": Default(None),
    "inner_max_num_threads": Default(None),
    "on_error": Default("raise"),
    "retries": Default(0),
    "progress": Default(None),
    "timeline": Default(None),
    "show_values": Default(True),
    "forward_logs": Default(True),
}

# What a call inside a task inherits. Not n_jobs, which is the caller's; not verbose
# and progress, whose output would come from many workers at once; not on_error and
# retries, which would be applied twice to the same failure.
INHERITED = (
    "temp_folder",
    "max_nbytes",
    "mmap_mode",
    "prefer",
    "require",
    "inner_max_num_threads",
    "show_values",
    "forward_logs",
)

HINTS = ("processes", "threads", None)
CONSTRAINTS = ("sharedmem", None)

_active: ContextVar[Config] = configuration

# The nested configurations of calls made without any: by nesting level.
_plain_nested: dict[int, Config] = {}


def active() -> Config:
    """Return the active configuration; it must not be changed."""
    return _active.get()


def resolve(key: str, value: Any, config: Config) -> Any:
    """Return an argument as given, else as configured, else its default."""
    if value is not DEFAULTS[key]:
        return value
    value = config.get(key, value)
    return value.value if value is DEFAULTS[key] else value


def backend_of(config: Config) -> Any:
    """Return the backend that a configuration names, or None."""
    backend = config.get("backend")
    if type(backend) is tuple:
        name, level = backend
        return registry.create(name, nesting_level=level)
    return backend


def nesting_level_of(config: Config) -> int:
    """Return how deep calls are nested under a configuration, without its backend."""
    backend = config.get("backend")
    if backend is None:
        return 0
    if type(backend) is tuple:
        return backend[1]  # type: ignore[no-any-return]
    return getattr(backend, "nesting_level", None) or 0


def check_hints(prefer: object, require: object) -> None:
    """Refuse values of `prefer` and `require` that mean nothing.

    Raises
    ------
    ValueError
    """
    if prefer not in HINTS:
        raise ValueError(
            f"prefer={prefer} is not a valid backend hint, expected one of {HINTS}"
        )
    if require not in CONSTRAINTS:
        raise ValueError(
            f"require={require} is not a valid backend constraint, "
            f"expected one of {CONSTRAINTS}"
        )
    if prefer == "processes" and require == "sharedmem":
        raise ValueError(
            "prefer == 'processes' and require == 'sharedmem' are inconsistent settings"
        )


def choose(
    config: Config, prefer: str | None, require: str | None, verbose: int
) -> tuple[Any, Any]:
    """Return the backend of a call that names none, and its configured n_jobs.

    Parameters
    ----------
    config : dict
        The active configuration.
    prefer, require, verbose
        As resolved for the call; the first two are valid.

    Returns
    -------
    backend : ParallelBackendBase
    n_jobs : int or None
    """
    backend = backend_of(config)
    n_jobs = config.get("n_jobs")
    if backend is None:
        if require == "sharedmem" or prefer == "threads":
            name = registry.DEFAULT_THREAD_BACKEND
            return registry.create(name, nesting_level=0), n_jobs
        backend = registry.create_default()
        if prefer == "processes" and getattr(backend, "uses_threads", False):
            backend = registry.create_for_processes()
        return backend, n_jobs
    if require == "sharedmem" and not getattr(backend, "supports_sharedmem", False):
        threads = registry.create(
            registry.DEFAULT_THREAD_BACKEND, nesting_level=backend.nesting_level
        )
        if verbose >= 10:
            print(
                f"Using {type(threads).__name__} as fastjob backend instead of "
                f"{type(backend).__name__} as the latter does not provide shared "
                "memory semantics."
            )
        # The configured number was meant for the other backend.
        return threads, 1
    return backend, n_jobs


def get_active_backend(
    prefer: str | None = DEFAULTS["prefer"],
    require: str | None = DEFAULTS["require"],
    verbose: int = DEFAULTS["verbose"],
) -> tuple[Any, int | None]:
    """Return the backend and n_jobs that a call would have here.

    Parameters
    ----------
    prefer, require, verbose
        As for `Parallel`.

    Returns
    -------
    backend : ParallelBackendBase
    n_jobs : int or None
        None where nothing sets it.

    Raises
    ------
    ValueError
        If `prefer` or `require` is not valid.
    """
    config = active()
    prefer = resolve("prefer", prefer, config)
    require = resolve("require", require, config)
    check_hints(prefer, require)
    return choose(config, prefer, require, resolve("verbose", verbose, config))


def effective_n_jobs(n_jobs: int | None = -1) -> int:
    """Return how many tasks a call would run at the same time.

    Parameters
    ----------
    n_jobs : int or None
        As for `Parallel`; None takes the active configuration's.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    ValueError
        If `n_jobs` is 0.

    Examples
    --------
    >>> effective_n_jobs(3)
    3
    """
    if n_jobs == 1:
        return 1
    backend, configured = get_active_backend()
    workers = backend.effective_n_jobs(configured if n_jobs is None else n_jobs)
    return workers  # type: ignore[no-any-return]


def nested(backend: Any, config: Config) -> Config:
    """Return the configuration of calls made inside the tasks of a call.

    Parameters
    ----------
    backend : ParallelBackendBase
        The backend that runs the tasks.
    config : dict
        The configuration of the call.

    Returns
    -------
    dict
        Picklable if the backend's own nested backend is; shared, not to be changed.
    """
    method = getattr(type(backend), "get_nested_backend", None)
    if method is ParallelBackendBase.get_nested_backend:
        level = (backend.nesting_level or 0) + 1
        if not config:
            plain = _plain_nested.get(level)
            if plain is None:
                plain = _plain_nested[level] = {"backend": nested_name(level)}
            return plain
        result: Config = {"backend": nested_name(level)}
    else:
        below = backend.get_nested_backend()
        # Old backends return no n_jobs.
        below, n_jobs = below if isinstance(below, tuple) else (below, None)
        result = {"backend": registry.native(below), "n_jobs": n_jobs}
    for key in INHERITED:
        if key in config:
            result[key] = config[key]
    return result


def restore(snapshot: Config) -> Token[Config]:
    """Make a configuration made by `nested` the active one, in a worker.

    Returns
    -------
    contextvars.Token
        For `reset`, where the thread goes on to do something else.
    """
    return _active.set(snapshot)


def reset(token: Token[Config]) -> None:
    """Undo one `restore`."""
    _active.reset(token)


class parallel_config:
    """Set the backend, or any option, of the calls made under it.

    As a ``with`` block it holds inside the block; called plainly it stays until
    `unregister`. Blocks nest, and what one does not set it inherits. It holds in this
    thread, and follows a ``contextvars`` context into asyncio tasks; tasks of
    `Parallel` inherit the options that concern how data travels.

    Parameters
    ----------
    backend : str or ParallelBackendBase or multiprocessing context, optional
        A registered name, or a backend.
    n_jobs : int, optional
        Number of workers, as for `Parallel`.
    verbose, temp_folder, max_nbytes, mmap_mode, prefer, require
        Defaults of these arguments of `Parallel`.
    inner_max_num_threads : int, optional
        Native threads (BLAS, OpenMP, ...) that one worker may use.
    on_error, retries, progress, timeline, show_values, forward_logs
        Defaults of these arguments of `Parallel`.
    **backend_params
        Options of the backend, given by name in `backend`.

    Raises
    ------
    ValueError
        If the name is unknown, or options are given without the name of a backend.
    TypeError
        If the backend does not know an option.

    Examples
    --------
    >>> from fastjob import Parallel, delayed, parallel_config
    >>> with parallel_config(backend="threading", n_jobs=2):
    ...     Parallel()(delayed(abs)(-i) for i in range(5))
    [0, 1, 2, 3, 4]
    """

    def __init__(
        self,
        backend: Any = DEFAULTS["backend"],
        *,
        n_jobs: Any = DEFAULTS["n_jobs"],
        verbose: Any = DEFAULTS["verbose"],
        temp_folder: Any = DEFAULTS["temp_folder"],
        max_nbytes: Any = DEFAULTS["max_nbytes"],
        mmap_mode: Any = DEFAULTS["mmap_mode"],
        prefer: Any = DEFAULTS["prefer"],
        require: Any = DEFAULTS["require"],
        inner_max_num_threads: int | None = None,
        on_error: Any = DEFAULTS["on_error"],
        retries: Any = DEFAULTS["retries"],
        progress: Any = DEFAULTS["progress"],
        timeline: Any = DEFAULTS["timeline"],
        show_values: Any = DEFAULTS["show_values"],
        forward_logs: Any = DEFAULTS["forward_logs"],
        **backend_params: Any,
    ) -> None:
        self.old_parallel_config = active()
        given = {
            "n_jobs": n_jobs,
            "verbose": verbose,
            "temp_folder": temp_folder,
            "max_nbytes": max_nbytes,
            "mmap_mode": mmap_mode,
            "prefer": prefer,
            "require": require,
            "on_error": on_error,
            "retries": retries,
            "progress": progress,
            "timeline": timeline,
            "show_values": show_values,
            "forward_logs": forward_logs,
        }
        new = {k: v for k, v in given.items() if v is not DEFAULTS[k]}
        if inner_max_num_threads is not None:
            new["inner_max_num_threads"] = inner_max_num_threads
        if backend is not DEFAULTS["backend"] and backend is not None:
            new["backend"] = self._backend(backend, backend_params, new)
        elif backend_params:
            raise ValueError(
                f"{_names(backend_params)}: options of a backend are only taken "
                "together with its name in backend=."
            )
        self.parallel_config: Config = {**self.old_parallel_config, **new}
        _active.set(self.parallel_config)

    def _backend(self, given: Any, params: Mapping[str, Any], new: Config) -> Any:
        if registry.is_backend(given):
            if params:
                raise ValueError(
                    f"{_names(params)}: options of a backend are only taken when "
                    "backend= is a name; give them to the backend itself."
                )
            backend = given
        elif registry.is_context(given):
            backend = registry.create("multiprocessing", context=given, **params)
        else:
            backend = registry.create(given, **params)
        threads = new.get("inner_max_num_threads")
        if threads is not None:
            if not getattr(backend, "supports_inner_max_num_threads", False):
                raise ValueError(
                    f"{type(backend).__name__} does not accept setting the "
                    "inner_max_num_threads argument."
                )
            backend.inner_max_num_threads = threads
        if getattr(backend, "nesting_level", None) is None:
            backend.nesting_level = nesting_level_of(self.old_parallel_config)
        return backend

    def __enter__(self) -> Config:
        return self.parallel_config

    def __exit__(self, *exc_info: object) -> None:
        self.unregister()

    def unregister(self) -> None:
        """Make the configuration active that was so before this one."""
        _active.set(self.old_parallel_config)


def _names(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}=" for name in params)


class parallel_backend(parallel_config):
    """Set the backend of the calls made under it (older form of `parallel_config`).

    Parameters
    ----------
    backend : str or ParallelBackendBase
        A registered name, or a backend.
    n_jobs : int
        Number of workers; all cores by default.
    inner_max_num_threads : int, optional
        Native threads that one worker may use.
    **backend_params
        Options of the backend.

    Examples
    --------
    >>> from fastjob import Parallel, delayed, parallel_backend
    >>> with parallel_backend("threading", n_jobs=2) as (backend, n_jobs):
    ...     Parallel()(delayed(abs)(-i) for i in range(5))
    [0, 1, 2, 3, 4]
    """

    def __init__(
        self,
        backend: Any,
        n_jobs: int | None = -1,
        inner_max_num_threads: int | None = None,
        **backend_params: Any,
    ) -> None:
        super().__init__(
            backend=backend,
            n_jobs=n_jobs,
            inner_max_num_threads=inner_max_num_threads,
            **backend_params,
        )
        old = self.old_parallel_config
        self.old_backend_and_jobs = (old.get("backend"), old.get("n_jobs"))
        self.new_backend_and_jobs = (
            self.parallel_config.get("backend"),
            self.parallel_config.get("n_jobs"),
        )

    def __enter__(self) -> Any:
        return self.new_backend_and_jobs
