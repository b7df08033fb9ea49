"""Tasks on a ray cluster, through ray's public interface."""

from __future__ import annotations

import os
import socket

import ray

from fastjob.backends.base import ParallelBackendBase
from fastjob.backends.cluster import (
    ClusterEngine,
    Killed,
    Lost,
    Watch,
    count_cluster,
    no_context,
)
from fastjob.backends.cluster_calls import run_batch
from fastjob.errors import ClusterError, FastjobError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future
    from contextlib import AbstractContextManager
    from typing import Any, ClassVar

    from fastjob._core.call import Call


# Seconds that the head of the cluster may be away, as when it is started again. Ray
# ends the program after 60 (RAY_gcs_rpc_server_reconnect_timeout_s), without an error.
HEAD_SECONDS = 20.0
# Seconds that its answer may take.
ANSWER_SECONDS = 5.0

# Heads that have answered this process. One that never has may be out of reach for it,
# as through ray's client server.
_heads: set[str] = set()


def ask_head() -> str:
    """Return why the head of the cluster does not answer, or an empty text.

    Asked are its address and port alone: what ray offers waits for it without an end.
    """
    address = getattr(ray.get_runtime_context(), "gcs_address", None)
    if address is None:
        return ""
    host, _, port = address.rpartition(":")
    try:
        place = host.strip("[]"), int(port)
        socket.create_connection(place, timeout=ANSWER_SECONDS).close()
    except OSError as error:
        return f"{address}: {error}" if address in _heads else ""
    _heads.add(address)
    return ""


def no_head(reason: str) -> ClusterError:
    """Return the error of a cluster that has lost its head."""
    return ClusterError(
        f"The head of the ray cluster does not answer ({reason}). Call ray.shutdown() "
        "and connect again; ray ends a program that does not."
    )


def connect() -> None:
    """Connect to the cluster that ``RAY_ADDRESS`` names, or start a local one.

    Raises
    ------
    ClusterError
        If neither can be done.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address)
        else:
            ray.init(include_dashboard=False, log_to_driver=False)
    except Exception as error:  # ray raises nearly anything here
        where = f"no ray cluster answers at RAY_ADDRESS={address!r}"
        raise ClusterError(
            f"{where if address else 'a local ray cluster cannot be started'}: "
            f"{type(error).__name__}: {error}"
        ) from error


class RayTransport:
    """The ray cluster, for one call.

    Parameters
    ----------
    n_workers : int
        CPUs of the cluster.
    nested : bool
        Whether the call is made by a task of ray's.
    remote_args : dict
        Keywords of ``ray.remote`` (``num_cpus``, ``resources``, ...).
    """

    def __init__(
        self, n_workers: int, nested: bool, remote_args: dict[str, Any]
    ) -> None:
        self.n_workers = n_workers
        self.nested = nested
        self.remote = ray.remote(run_batch)
        if remote_args:
            self.remote = self.remote.options(**remote_args)
        self.references: dict[Future[Any], Any] = {}
        self.head = Watch(ask_head, HEAD_SECONDS)
        self.gone = False

    def submit(
        self, payload: bytes, shared: list[Any], done: Callable[[Any], object]
    ) -> Future[Any]:
        """Submit a batch as one ray task."""
        try:
            reference = self.remote.remote(payload, *shared)
        except Exception as error:
            raise ClusterError(f"ray refuses a batch of tasks: {error}") from error
        job: Future[Any] = reference.future()
        self.references[job] = reference
        job.add_done_callback(done)
        return job

    def fetch(self, job: Future[Any]) -> Any:
        """Return the outcome of a batch that is done."""
        try:
            return job.result()
        except (
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.OutOfMemoryError,
        ) as e:
            raise Killed(certain=True) from e  # a worker of ray's has one task
        except (
            ray.exceptions.ObjectLostError,
            ray.exceptions.TaskCancelledError,
            ray.exceptions.NodeDiedError,
        ) as e:
            raise Lost(f"{type(e).__name__}: {e}") from e
        except ray.exceptions.LocalRayletDiedError as e:
            self.gone = True
            raise ClusterError(
                "The ray node of this program has died, and with it its connection to "
                "the cluster. Call ray.shutdown() and connect again."
            ) from e
        except FastjobError:
            raise
        except Exception as error:
            raise ClusterError(
                "A ray worker could not run a batch of tasks: "
                f"{type(error).__name__}: {error}. The packages of the workers, "
                "fastjob among them, must be those of the caller."
            ) from error

    def put(self, value: Any) -> Any:
        """Put a value into the object store."""
        try:
            return ray.put(value)
        except Exception as error:
            raise ClusterError(
                f"ray could not take a {type(value).__name__}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def cancel(self, jobs: list[Future[Any]]) -> None:
        """End the workers that run these batches."""
        for job in jobs:
            reference = self.references.pop(job, None)
            if reference is not None and ray.is_initialized() and not self.gone:
                ray.cancel(reference, force=True)

    def check(self) -> None:
        """Raise `ClusterError` if the cluster cannot be reached any more."""
        if not ray.is_initialized():
            raise ClusterError("The connection to the ray cluster has been shut down.")
        reason = self.head.wrong()
        if reason:
            self.gone = True
            raise no_head(reason)

    def block(self, jobs: Iterable[Any], timeout: float | None) -> None:
        """Wait in ray's own way inside a task: others may use its CPU meanwhile."""
        if not self.nested:
            return
        waiting = [self.references[job] for job in jobs if job in self.references]
        if waiting:
            ray.wait(waiting, num_returns=1, timeout=timeout, fetch_local=False)

    def waiting(self) -> AbstractContextManager[Any]:
        """Return a context manager that does nothing."""
        return no_context()

    def close(self) -> None:
        """Let go of what is in the object store."""
        self.references.clear()


class RayBackend(ParallelBackendBase):
    """A ray cluster: the one in use, that of ``RAY_ADDRESS``, or a local one.

    ``n_jobs=-1`` is the number of the cluster's CPUs. Options:

    ray_remote_args : dict, optional
        Keywords of ``ray.remote``, such as ``num_cpus`` or ``resources``, for each
        batch of tasks.
    scatter : iterable, optional
        Arguments to put into the object store before the first task. They are
        recognised by identity and must not change during the call. A large argument
        that several tasks have in common is found and put once without this.
    """

    default_n_jobs = -1
    supports_retrieve_callback = True
    valid_options: ClassVar[frozenset[str] | None] = frozenset(
        {"ray_remote_args", "scatter"}
    )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.nesting_level, None)

    def _count(self) -> int:
        connect()
        reason = ask_head()
        if reason:
            raise no_head(reason)
        try:
            return int(ray.cluster_resources().get("CPU", 0))
        except Exception as error:
            raise ClusterError(
                f"The ray cluster does not answer: {type(error).__name__}: {error}"
            ) from error

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many tasks would run at the same time.

        Parameters
        ----------
        n_jobs : int or None
            -1 is all CPUs of the cluster.

        Raises
        ------
        ValueError
            If `n_jobs` is 0.
        """
        if n_jobs is not None and n_jobs >= 0:
            return count_cluster(n_jobs, 0)
        return count_cluster(n_jobs, self._count())

    def get_nested_backend(self) -> tuple[ParallelBackendBase, int | None]:
        """Return the same cluster, for calls inside tasks."""
        return RayBackend((self.nesting_level or 0) + 1), -1

    def open_call(self, call: Call) -> ClusterEngine:
        """Return an engine for one call."""
        total = self._count()
        arguments = dict(call.options.get("ray_remote_args") or {})
        nested = bool(self.nesting_level)
        try:
            transport = RayTransport(total, nested, arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"ray_remote_args={arguments!r}: {error}") from error
        return ClusterEngine(transport, call)
