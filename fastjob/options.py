"""What the arguments of `Parallel` may be, and the backend that they stand for."""

from __future__ import annotations

import os

from fastjob.backends import registry
from fastjob.config import DEFAULTS, check_hints, choose, nesting_level_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
RETURN_AS = ("list", "generator", "generator_unordered")
MMAP_MODES = ("r", "r+", "w+", "c", None)


def bytes_of(size: int | float | str | None) -> int:
    """Return a size in bytes, given as a number or as ``'50K'``, ``'1M'``, ``'2G'``.

    Parameters
    ----------
    size : int, float, str or None
        None is no size at all.

    Returns
    -------
    int
        -1 for None.

    Raises
    ------
    ValueError
        If it cannot be read, or is negative.

    Examples
    --------
    >>> bytes_of("1.5K")
    1536
    """
    if size is None:
        return -1
    try:
        if isinstance(size, str):
            value = int(_UNITS[size[-1:]] * float(size[:-1]))
        else:
            value = int(size)
    except (KeyError, TypeError, ValueError, OverflowError):
        value = -1
    if value < 0:
        raise ValueError(
            f"max_nbytes={size!r} is not a size: give a number of bytes, None, or "
            "something like '10G', '500M', '50K'."
        )
    return value


def check(
    return_as: Any,
    batch_size: Any,
    timeout: Any,
    retries: Any,
    on_error: Any,
    mmap_mode: Any,
    temp_folder: Any,
    verbose: Any,
) -> None:
    """Refuse arguments of `Parallel` that have no meaning.

    Raises
    ------
    ValueError
        Naming the argument, what it may be and what it was.
    """
    if return_as not in RETURN_AS:
        raise ValueError(
            'Expected `return_as` parameter to be a string equal to "list",'
            f'"generator" or "generator_unordered", but got {return_as} instead.'
        )
    if batch_size != "auto" and not (_is_integer(batch_size) and batch_size > 0):
        raise ValueError(
            f"batch_size must be 'auto' or a positive integer, got: {batch_size!r}"
        )
    if timeout is not None and not _is_positive(timeout):
        raise ValueError(
            f"timeout must be a positive number of seconds or None, got: {timeout!r}"
        )
    if not _is_integer(retries) or retries < 0:
        raise ValueError(f"retries must be an integer of at least 0, got: {retries!r}")
    if on_error not in ("raise", "return"):
        raise ValueError(f"on_error must be 'raise' or 'return', got: {on_error!r}")
    if mmap_mode not in MMAP_MODES:
        raise ValueError(f"mmap_mode must be one of {MMAP_MODES}, got: {mmap_mode!r}")
    if temp_folder is not None and not isinstance(temp_folder, (str, os.PathLike)):
        raise ValueError(f"temp_folder must be a path or None, got: {temp_folder!r}")
    if not hasattr(type(verbose), "__float__"):
        raise ValueError(f"verbose must be a number, got: {verbose!r}")


def choose_backend(
    backend: Any,
    params: dict[str, Any],
    config: dict[str, Any],
    prefer: Any,
    require: Any,
    verbose: int,
) -> tuple[Any, Any]:
    """Return the backend of a `Parallel`, and the n_jobs that goes with it.

    Parameters
    ----------
    backend : object
        What the user said; None, or the marker of an argument not given, leaves the
        choice to `config.choose`.
    params : dict
        Options of the backend, given to `Parallel`.
    config : dict
        The active configuration.
    prefer, require, verbose
        As resolved.

    Returns
    -------
    backend : ParallelBackendBase
    n_jobs : int
        What holds where the user gives no number.

    Raises
    ------
    ValueError
        If the backend is unknown, or does not share memory where it must.
    TypeError
        If it does not know one of the options.
    """
    if prefer is not None or require is not None:
        check_hints(prefer, require)
    if backend is None or backend is DEFAULTS["backend"]:
        backend, n_jobs = choose(config, prefer, require, verbose)
    else:
        n_jobs = config.get("n_jobs")
        level = nesting_level_of(config)
        if registry.is_backend(backend):
            if backend.nesting_level is None:
                backend.nesting_level = level
        elif registry.is_context(backend):
            backend = registry.create(
                "multiprocessing", nesting_level=level, context=backend
            )
        else:
            backend = registry.create(backend, nesting_level=level)
        if require == "sharedmem" and not getattr(backend, "supports_sharedmem", False):
            raise ValueError(f"Backend {backend} does not support shared memory")
    if params:
        check_options = getattr(backend, "check_options", None)
        if check_options is not None:
            check_options(params)
    return backend, backend.default_n_jobs if n_jobs is None else n_jobs


def _is_integer(value: object) -> bool:
    return hasattr(type(value), "__index__")


def _is_positive(value: Any) -> bool:
    try:
        return bool(value > 0)
    except TypeError:
        return False
