"""One row of the tables: what is run, how often, and what is expected of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """A workload that every side runs in the same way.

    Parameters
    ----------
    name : str
        Short name, used by ``--rows`` and as the key in JSON.
    title : str
        What it does, as the table prints it.
    kind : str
        Kind of workers: ``processes``, ``threads``, ``sequential``, ``dask``,
        ``ray``, ``sklearn``; or ``cold`` (every sample is a new interpreter).
    prepare : callable
        ``prepare(size)`` makes the data, outside of the measured time.
    work : callable or None
        ``work(session, data)``, the measured part.  None in cold rows.
    size, quick_size : int
        Size of the workload, in full and with ``--quick``.
    n_jobs : int
        Number of workers.
    quick_jobs : int or None
        Number of workers with ``--quick``, where starting them is most of the cost.
    calls : int
        Calls a sample; for work too short to be measured once.
    needs : frozenset of str
        What a side must be able to do: ``closure``, ``stream``, ``batch_size``.
    requires : str or None
        A module without which the row is left out.
    target : float or None
        Wanted ratio of joblib's time to fastjob's.
    share : float or None
        Wanted share of the ideal time.
    ideal : callable or None
        ``ideal(data, n_jobs)``, seconds of a schedule without any overhead.
    limit : callable or None
        ``limit(data, n_jobs)``, work that takes as long as physics asks for; run as
        one more side.
    limit_title : str
        What the limit is.
    versus : dict
        Wanted ratios to other sides than joblib, by name.
    close : bool
        Whether results are compared to 9 digits rather than exactly.
    fresh : bool
        Whether every sample needs a host process of its own.
    unit : str
        ``s`` for a time; ``MB`` where ``work`` returns (result, megabytes).
    observe : bool
        Whether context switches and busy threads are recorded, in a run of its own.
    script : str or None
        Which cold script of the side is run.
    """

    name: str
    title: str
    kind: str
    prepare: Callable[[int], Any]
    work: Callable[[Any, Any], Any] | None
    size: int
    quick_size: int
    n_jobs: int = 2
    calls: int = 1
    needs: frozenset[str] = frozenset()
    requires: str | None = None
    target: float | None = None
    share: float | None = None
    ideal: Callable[[Any, int], float] | None = None
    limit: Callable[[Any, int], Any] | None = None
    limit_title: str = ""
    versus: dict[str, float] = field(default_factory=dict)
    close: bool = False
    fresh: bool = False
    unit: str = "s"
    observe: bool = False
    script: str | None = None
    quick_jobs: int | None = None

    def scale(self, quick: bool) -> tuple[Any, int]:
        """Return the size of the workload and the number of workers."""
        if quick:
            return self.quick_size, self.quick_jobs or self.n_jobs
        return self.size, self.n_jobs
