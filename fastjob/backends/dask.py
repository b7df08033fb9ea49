"""Tasks on a dask cluster, through the public interface of ``distributed``."""

from __future__ import annotations

from concurrent.futures import CancelledError
from contextlib import contextmanager

import distributed

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
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any, ClassVar

    from fastjob._core.call import Call

# From this size on a payload goes to a worker directly and not through the scheduler.
DIRECT_BYTES = 1 << 20
# Seconds to wait for a first worker.
WORKERS_TIMEOUT = 10.0

NO_CLIENT = (
    "backend='dask' needs a client, and none is active. Make one first:\n"
    "    from distributed import Client\n"
    "    client = Client()                      # workers on this machine\n"
    "    client = Client('tcp://address:8786')  # a cluster's scheduler\n"
    "or pass one: Parallel(backend='dask', client=client)."
)


def inside_worker() -> bool:
    """Tell whether this thread runs a task of dask's."""
    try:
        distributed.get_worker()
    except ValueError:
        return False
    return True


def check_client(client: Any) -> None:
    """Raise `ClusterError` if a client has no scheduler.

    A call is not continued when the client finds its scheduler again: by then dask has
    forgotten the call's futures.
    """
    if client.status != "running":
        raise ClusterError(
            f"The dask client is {client.status!r}: it has lost its scheduler, or has "
            "been closed. Make a new one."
        )


class DaskTransport:
    """One dask cluster, for one call.

    Parameters
    ----------
    client : distributed.Client
    n_workers : int
        Threads of all its workers.
    submit_options : dict
        Keywords of `Client.submit` (``resources``, ``priority``, ``workers``, ...).
    patience : float
        Seconds that there may be no worker at all.
    """

    def __init__(
        self,
        client: Any,
        n_workers: int,
        submit_options: dict[str, Any],
        patience: float,
    ) -> None:
        self.client = client
        self.n_workers = n_workers
        self.submit_options = submit_options
        self.workers = Watch(self._ask_workers, patience)

    def submit(
        self, payload: bytes, shared: list[Any], done: Callable[[Any], object]
    ) -> Any:
        """Submit a batch as one dask task."""
        check_client(self.client)
        argument: Any = payload
        if len(payload) > DIRECT_BYTES:
            argument = self._scatter(payload, broadcast=False)
        try:
            future = self.client.submit(
                run_batch, argument, *shared, pure=False, **self.submit_options
            )
        except Exception as error:
            raise ClusterError(f"dask refuses a batch of tasks: {error}") from error
        future.add_done_callback(done)
        return future

    def fetch(self, job: Any) -> Any:
        """Return the outcome of a batch that is done."""
        if job.status == "finished":
            try:
                return job.result()
            except (CancelledError, OSError) as error:
                raise Lost(f"its result could not be fetched: {error}") from error
        if job.status != "error":
            check_client(self.client)
            raise Lost(
                f"dask says {job.status!r}, as when a worker that held its arguments "
                "has ended"
            )
        failed = job.exception()
        if isinstance(failed, distributed.KilledWorker):
            # It counts whatever the worker had been given, not only what it ran.
            raise Killed(certain=False) from failed
        if isinstance(failed, FastjobError):
            raise failed
        raise ClusterError(
            "A dask worker could not run a batch of tasks: "
            f"{type(failed).__name__}: {failed}. The packages of the workers, fastjob "
            "among them, must be those of the caller: client.get_versions(check=True)."
        ) from failed

    def put(self, value: Any) -> Any:
        """Scatter a value over the workers."""
        return self._scatter(value, broadcast=True)

    def _scatter(self, value: Any, broadcast: bool) -> Any:
        # In a list: a dict or a list of its own would be scattered item by item.
        try:
            return self.client.scatter([value], broadcast=broadcast, hash=False)[0]
        except Exception as error:
            raise ClusterError(
                f"dask could not take a {type(value).__name__}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def cancel(self, jobs: list[Any]) -> None:
        """Cancel futures; tasks that run go on until they return."""
        if self.client.status != "running":
            return  # they are gone with the scheduler
        try:
            self.client.cancel(jobs, force=True)
        except (OSError, CancelledError, TimeoutError) as error:
            if self.client.status == "running":
                raise ClusterError(f"dask could not cancel tasks: {error}") from error

    def check(self) -> None:
        """Raise `ClusterError` without a scheduler, a client, or any worker."""
        check_client(self.client)
        if self.workers.wrong():
            raise ClusterError(
                "The dask cluster has lost all its workers, and none came in "
                f"{self.workers.patience:g} seconds (wait_for_workers_timeout)."
            )

    def _ask_workers(self) -> str:
        try:
            return "" if self.client.nthreads() else "no worker"
        except (TimeoutError, OSError) as error:
            check_client(self.client)
            return str(error) or "no answer"

    def block(self, jobs: Iterable[Any], timeout: float | None) -> None:
        """Nothing: `waiting` has told dask already."""

    def waiting(self) -> AbstractContextManager[Any]:
        """Give up the worker's thread to other tasks meanwhile."""
        return _seceded() if inside_worker() else no_context()

    def close(self) -> None:
        """Nothing: what was scattered is gone with its futures."""


@contextmanager
def _seceded() -> Iterator[None]:
    distributed.secede()
    try:
        yield
    finally:
        distributed.rejoin()


class DaskBackend(ParallelBackendBase):
    """A dask cluster: the active client's, or that of ``client``.

    A task that runs cannot be stopped; when a call ends early, it goes on until it
    returns, and what it returns is dropped. Options:

    client : distributed.Client, optional
        By default the active one.
    scatter : iterable, optional
        Arguments to send to all workers before the first task. They are recognised by
        identity and must not change during the call. A large argument that several
        tasks have in common is found and sent once without this.
    wait_for_workers_timeout : float, default 10
        Seconds to wait for a first worker, or for another one when all are gone.
    submit_options : dict, optional
        Keywords of ``Client.submit``, such as ``resources`` or ``priority``.
    """

    default_n_jobs = -1
    supports_retrieve_callback = True
    valid_options: ClassVar[frozenset[str] | None] = frozenset(
        {"client", "scatter", "submit_options", "wait_for_workers_timeout"}
    )

    def __init__(self, nesting_level: int | None = None, **options: Any) -> None:
        super().__init__(nesting_level, **options)
        self._given: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Clients cannot be pickled; in a task of dask's there is one.
        return type(self), (self.nesting_level,)

    def _option(self, name: str, default: Any = None) -> Any:
        value = self._given.get(name, self.backend_kwargs.get(name))
        return default if value is None else value

    def _client(self) -> Any:
        client = self._option("client")
        if client is None:
            try:
                client = distributed.get_client()
            except ValueError:
                raise ValueError(NO_CLIENT) from None
        if getattr(client, "asynchronous", False):
            raise ValueError(
                "backend='dask' needs a synchronous client, and this one is "
                "asynchronous. Make one with Client(..., asynchronous=False)."
            )
        check_client(client)
        return client

    def _patience(self) -> float:
        return float(self._option("wait_for_workers_timeout", WORKERS_TIMEOUT))

    def _count(self, client: Any) -> int:
        timeout = self._patience()
        try:
            total: int = sum(client.nthreads().values())
            if total == 0:
                client.wait_for_workers(1, timeout=timeout)
                total = sum(client.nthreads().values())
        except (TimeoutError, OSError) as error:
            raise ClusterError(
                f"The dask cluster has no worker, and none came in {timeout:g} seconds "
                "(wait_for_workers_timeout)."
            ) from error
        return total

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many tasks would run at the same time.

        Parameters
        ----------
        n_jobs : int or None
            -1 is all threads of all workers.

        Raises
        ------
        ValueError
            If `n_jobs` is 0, or there is no client.
        """
        if n_jobs is not None and n_jobs >= 0:
            return count_cluster(n_jobs, 0)
        return count_cluster(n_jobs, self._count(self._client()))

    def configure(  # type: ignore[override]
        self, n_jobs: int = 1, parallel: Any = None, **backend_kwargs: Any
    ) -> int:
        """Get ready for a call; the number of workers."""
        self._given = backend_kwargs
        return self.effective_n_jobs(n_jobs)

    def get_nested_backend(self) -> tuple[ParallelBackendBase, int | None]:
        """Return the same cluster, for calls inside tasks."""
        return DaskBackend((self.nesting_level or 0) + 1), -1

    def open_call(self, call: Call) -> ClusterEngine:
        """Return an engine for one call."""
        client = self._client()
        options = self._option("submit_options", {})
        transport = DaskTransport(
            client, self._count(client), dict(options), self._patience()
        )
        return ClusterEngine(transport, call)
