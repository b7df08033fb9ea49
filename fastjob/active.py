"""Where the active configuration lies: for `fastjob.config`, and for worker processes.

A worker is told the configuration of nested calls before its first task. Most tasks
make none: they shall not pay for the import of all that such a call needs.
"""

from contextvars import ContextVar

configuration: ContextVar[dict[str, object]] = ContextVar("fastjob_config", default={})  # noqa: B039 - never changed in place
