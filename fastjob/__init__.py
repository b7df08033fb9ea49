"""Parallel loops for scientific Python with a compiled core."""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastjob._core.cpu import cpu_count
    from fastjob._core.delayed import delayed
    from fastjob._core.threadpools import threadpool_info, threadpool_limits
    from fastjob.backends.base import ParallelBackendBase
    from fastjob.backends.registry import available, register_parallel_backend
    from fastjob.config import effective_n_jobs, parallel_backend, parallel_config
    from fastjob.errors import TaskError, TaskTimeoutError, TerminatedWorkerError
    from fastjob.interop import install_as_joblib, register_joblib, register_ray
    from fastjob.parallel import Parallel
    from fastjob.recording import timeline
    from fastjob.sharing import share
    from fastjob.warm import shutdown
    from fastjob.wrap import wrap_non_picklable_objects

# Where each public name is; it is imported when it is first used, so that
# `import fastjob` costs next to nothing to those who may never make a call.
_HOMES = {
    "Parallel": "fastjob.parallel",
    "ParallelBackendBase": "fastjob.backends.base",
    "TaskError": "fastjob.errors",
    "TaskTimeoutError": "fastjob.errors",
    "TerminatedWorkerError": "fastjob.errors",
    "available": "fastjob.backends.registry",
    "cpu_count": "fastjob._core.cpu",
    "delayed": "fastjob._core.delayed",
    "effective_n_jobs": "fastjob.config",
    "install_as_joblib": "fastjob.interop",
    "parallel_backend": "fastjob.config",
    "parallel_config": "fastjob.config",
    "register_joblib": "fastjob.interop",
    "register_parallel_backend": "fastjob.backends.registry",
    "register_ray": "fastjob.interop",
    "share": "fastjob.sharing",
    "shutdown": "fastjob.warm",
    "threadpool_info": "fastjob._core.threadpools",
    "threadpool_limits": "fastjob._core.threadpools",
    "timeline": "fastjob.recording",
    "wrap_non_picklable_objects": "fastjob.wrap",
}

__all__ = [
    "Parallel",
    "ParallelBackendBase",
    "TaskError",
    "TaskTimeoutError",
    "TerminatedWorkerError",
    "__version__",
    "available",
    "cpu_count",
    "delayed",
    "effective_n_jobs",
    "install_as_joblib",
    "parallel_backend",
    "parallel_config",
    "register_joblib",
    "register_parallel_backend",
    "register_ray",
    "share",
    "shutdown",
    "threadpool_info",
    "threadpool_limits",
    "timeline",
    "wrap_non_picklable_objects",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sys import modules

    __import__(home)
    value = globals()[name] = getattr(modules[home], name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
