from collections.abc import Callable
from typing import Any

class Counters:
    dispatched_tasks: int
    dispatched_batches: int
    completed_tasks: int
    failed_tasks: int
    retried_tasks: int

class Call:
    n_jobs: int
    batch_size: int
    ahead: int
    ahead_in_batches: bool
    timeout: float
    return_errors: bool
    retries: int
    ordered: bool
    max_nbytes: int
    mmap_mode: str | None
    temp_folder: str | None
    inner_max_num_threads: int | None
    nested: Any
    show_values: bool
    forward_logs: bool
    on_batch: Callable[[int], object] | None
    report_interval: float
    timeline: Any
    options: dict[str, Any]
    counters: Counters
    def __init__(
        self,
        n_jobs: int,
        *,
        batch_size: int = 0,
        ahead: int = 0,
        ahead_in_batches: bool = True,
        timeout: float = 0.0,
        return_errors: bool = False,
        retries: int = 0,
        ordered: bool = True,
        max_nbytes: int = ...,
        mmap_mode: str | None = "r",
        temp_folder: str | None = None,
        inner_max_num_threads: int | None = None,
        nested: Any = None,
        show_values: bool = True,
        forward_logs: bool = True,
        on_batch: Callable[[int], object] | None = None,
        report_interval: float = 0.0,
        timeline: Any = None,
        options: dict[str, Any] | None = None,
    ) -> None: ...
