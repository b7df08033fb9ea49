"""The sides of the comparison: one file a library, with identical rows.

A peer module defines

- ``REQUIRES``: the module that must be importable;
- ``KINDS``: the kinds of workers it has;
- ``ABILITIES``: ``closure`` (functions that plain pickle cannot carry), ``stream``
  (results as an iterator), ``batch_size`` (accepts it);
- ``open_session(kind, n_jobs)``: a `Session`;
- ``COLD``: program texts for a new interpreter, by name.

Libraries whose batches have a fixed size get the size that `multiprocessing.Pool`
computes from the length of the input, a quarter of a worker's share: they are told
the length, which the others have to do without.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, Protocol

from benchmarks.row import Row

#: In the order of the columns.  ``limit`` is no library: it runs the row's limit.
NAMES = ("fastjob", "joblib", "mp_pool", "futures", "mpire", "dask", "ray")


class Session(Protocol):
    """A warm pool of workers of one library."""

    def run(
        self, function: Callable[[Any], Any], items: Iterable[Any], **options: Any
    ) -> Sequence[Any]:
        """Return ``function(item)`` for each item, in order."""

    def stream(
        self, function: Callable[[Any], Any], items: Iterable[Any]
    ) -> Iterator[Any]:
        """Yield the same."""

    def close(self) -> None:
        """Stop the workers."""


def load(name: str) -> ModuleType:
    """Import the module of one peer, which imports its library when it is used."""
    if name not in (*NAMES, "limit"):
        raise ValueError(f"no peer is named {name!r}; there are {', '.join(NAMES)}")
    return importlib.import_module(f"benchmarks.peers.{name}")


def installed() -> list[str]:
    """Return the peers whose library is installed."""
    return [
        name
        for name in NAMES
        if importlib.util.find_spec(load(name).REQUIRES) is not None
    ]


def can_run(name: str, row: Row) -> bool:
    """Tell whether a peer has what a row needs."""
    peer = load(name)
    if row.kind == "cold":
        return row.script in peer.COLD
    if name == "limit":
        return row.limit is not None
    return row.kind in peer.KINDS and row.needs <= peer.ABILITIES


def chunk_size(length: int, n_jobs: int) -> int:
    """Return the batch size of `multiprocessing.Pool.map`: a quarter of a share."""
    return max(1, -(-length // (4 * n_jobs)))


def cold(importing: str, call: str) -> dict[str, str]:
    """Return the cold program texts of a peer.

    Parameters
    ----------
    importing : str
        The import that a user of the library writes.
    call : str
        Statements that run ``function`` on four numbers with two workers, and leave
        what came out in ``result``.
    """
    function = "from benchmarks.{} import {} as function"
    return {
        "first call": f"{importing}\n{function.format('tasks', 'tiny')}\n{call}",
        "first numpy call": (
            f"{importing}\n{function.format('array_tasks', 'root')}\n{call}"
        ),
        "import": f"{importing}\nresult = None",
    }
