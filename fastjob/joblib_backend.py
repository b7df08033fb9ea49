"""fastjob's worker processes as a backend of joblib.

joblib keeps its own front end: it takes tasks from the input, makes batches and calls
`submit` for each; this class answers with fastjob's pool.  Everything here is joblib's
documented protocol of backends.  Imported by `register_joblib` only: nothing else in
fastjob needs joblib.
"""

from __future__ import annotations

from joblib.parallel import (
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)

from fastjob._core.autobatch import AutoBatch
from fastjob._core.call import Call
from fastjob._pool.service import Service
from fastjob.backends.base import count_workers
from fastjob.backends.batch import size_within
from fastjob.backends.process_engine import ProcessEngine
from fastjob.backends.processes import ProcessBackend
from fastjob.options import bytes_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from typing import Any

# A batch costs joblib some 0.3 ms of the caller's time (locks, a future, a slice of the
# input), ten times what it costs fastjob, so batches are this much longer than the
# tuner's: 100 ms, which is 0.3 %.
LONGER = 10
# These 100 ms as the tuner is told them. It lets batches grow with the call, since idle
# workers take the tails of fastjob's batches; a batch of joblib's is one task here.
TUNER_NS = 10_000_000

# What joblib hands to `configure` for its own backends beside the options.
JOBLIB_OPTIONS = {"context", "prefer", "require", "verbose"}


class FastjobBackend(ParallelBackendBase):  # type: ignore[misc]
    """Worker processes of fastjob, behind joblib's `Parallel`.

    Parameters
    ----------
    nesting_level, inner_max_num_threads
        As joblib gives them.
    **backend_kwargs
        The options of fastjob's process backend.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **backend_kwargs: Any,
    ) -> None:
        super().__init__(nesting_level, inner_max_num_threads, **backend_kwargs)
        ProcessBackend.check_options(backend_kwargs)
        self._service: Service | None = None
        self._call_options: dict[str, Any] = {}

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many workers a call would use."""
        return count_workers(n_jobs)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        max_nbytes: Any = "1M",
        mmap_mode: str | None = "r",
        temp_folder: str | None = None,
        **options: Any,
    ) -> int:
        """Get ready for calls of a joblib `Parallel`; the number of workers."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        options = {k: v for k, v in options.items() if k not in JOBLIB_OPTIONS}
        ProcessBackend.check_options(options)
        self.parallel = parallel
        self._tuner = AutoBatch(n_jobs)
        self._call_options = {
            "n_jobs": n_jobs,
            "max_nbytes": bytes_of(max_nbytes),
            "mmap_mode": mmap_mode,
            "temp_folder": temp_folder,
            "inner_max_num_threads": self.inner_max_num_threads,
            "options": {**self.backend_kwargs, **options},
        }
        return n_jobs

    def submit(
        self,
        func: Callable[[], Any],
        callback: Callable[[Future[Any]], Any] | None = None,
    ) -> Future[Any]:
        """Start a batch; the callback gets the future when it has ended."""
        service = self._service
        if service is None:
            # joblib limits how far the input is consumed ahead, so this call does not.
            call = Call(
                batch_size=1,
                ahead=1 << 40,
                return_errors=True,
                ordered=False,
                **self._call_options,
            )
            service = self._service = Service(ProcessEngine(call).feeder, self._learn)
        future = service.submit(func)
        future.n_tasks = len(func) if hasattr(func, "__len__") else 1  # type: ignore[attr-defined]
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def _learn(self, future: Future[Any], busy_ns: int) -> None:
        self._tuner.record(getattr(future, "n_tasks", 1), busy_ns // LONGER)

    def compute_batch_size(self) -> int:
        """Return how many tasks the next batch should hold."""
        return size_within(self._tuner, TUNER_NS)

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return what a batch returned, or raise its error."""
        return out.result()

    def stop_call(self) -> None:
        """Give the workers back; all batches have ended, or have been aborted."""
        service, self._service = self._service, None
        if service is not None:
            service.finish()

    def terminate(self) -> None:
        """End the calls; the workers stay warm for the next ones."""
        self.stop_call()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End the batches that run; a batch submitted later starts a new call.

        Parameters
        ----------
        ensure_ready : bool
            Whether further calls will follow; makes no difference.
        """
        service, self._service = self._service, None
        if service is not None:
            service.abort()
