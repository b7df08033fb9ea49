class AutoBatch:
    size: int
    task_ns: float
    produce_ns: float
    task_bytes: float
    seen: int
    fixed: int
    probe: int
    def __init__(self, n_jobs: int, fixed: int = 0) -> None: ...
    def record(self, n: int, busy_ns: int, n_bytes: int = 0) -> None: ...
    def record_input(self, n: int, spent_ns: int) -> None: ...
