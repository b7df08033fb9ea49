"""The tasks of a batch on their way to a cluster, and what they have in common.

Tasks are pickled one by one when they are taken from the input, callables once a call:
a batch that is sent again, or in parts, is not captured again, and the scheduler only
sees bytes.  A large argument that is met for the second time, by its content, goes to
the cluster once, and the tasks refer to it.  By content, and not by identity: a buffer
that is filled again between two tasks is another value.
"""

from __future__ import annotations

from fastjob import __version__, failure
from fastjob._core.pickling import dumps, loads
from fastjob.backends.batch import GuardedCalls
from fastjob.errors import ClusterError, ResultPicklingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from fastjob._core.call import Call

_SMALL = (int, float, bool, complex, type(None), str, range)


class Shared:
    """Stands for a large argument in a pickled task."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return Shared, (self.number,)


class ClusterCalls(GuardedCalls):
    """A batch whose tasks and results are pickled one by one.

    An item is a tuple: number of the function, pickled arguments, numbers of the
    shared objects that they refer to.
    """

    functions: dict[int, bytes]
    shared: list[Any]

    @classmethod
    def of(
        cls, first: int, tasks: Iterable[Any], call: Call, parts: Parts
    ) -> ClusterCalls:
        """Capture tasks."""
        calls = cls(first, (), call, True)
        calls.functions = parts.functions
        for index, (function, args, kwargs) in enumerate(tasks, first):
            try:
                number = parts.number_of(function)
                args, kwargs, used = parts.share(args, kwargs)
                item = number, dumps((args, kwargs)), used
            except Exception as error:
                if isinstance(error, (ClusterError, OSError, MemoryError)):
                    raise
                blamed = failure.blame(error, index, function, args, kwargs)
                if not call.return_errors:
                    raise blamed from error
                packed = failure.pack(blamed, str(blamed))
                item = parts.number_of(_raise), dumps(((packed,), {})), ()
            calls.items.append(item)
        return calls

    def part(self, start: int, stop: int) -> ClusterCalls:
        """Return a batch of some of the tasks, as they were captured."""
        part = self.only(start)
        part.items = self.items[start:stop]
        return part  # type: ignore[return-value]

    def payload(self) -> tuple[bytes, list[int]]:
        """Return what is sent, and the numbers of the shared objects it needs."""
        used = sorted({number for item in self.items for number in item[2]})
        numbers = {item[0] for item in self.items}
        functions = {number: self.functions[number] for number in numbers}
        state = (functions, used, self.items, self.first, self.go_on)
        return dumps((__version__, dumps((state, self.show_values, self.nested)))), used

    @classmethod
    def arrived(cls, payload: bytes, shared: tuple[Any, ...]) -> ClusterCalls:
        """Return the batch again, on the worker."""
        version, packed = loads(payload)
        if version != __version__:
            raise ClusterError(
                f"The worker has fastjob {__version__} and the caller {version}: "
                "install the same version on both."
            )
        state, show_values, nested = loads(packed)
        calls = cls.__new__(cls)
        functions, used, calls.items, calls.first, calls.go_on = state
        calls.show_values = show_values
        calls.nested = nested
        calls.packed = True
        calls.loaded = {n: loads(data) for n, data in functions.items()}
        calls.objects = dict(zip(used, shared, strict=True))
        return calls

    loaded: dict[int, Any]
    objects: dict[int, Any]

    def load(self, item: Any) -> Any:
        number, data, used = item
        args, kwargs = loads(data)
        if used:
            args = tuple(self._found(arg) for arg in args)
            kwargs = {name: self._found(arg) for name, arg in kwargs.items()}
        return self.loaded[number], args, kwargs

    def _found(self, arg: Any) -> Any:
        return self.objects[arg.number] if type(arg) is Shared else arg

    def dump(self, result: Any, offset: int, task: Any) -> bytes:
        try:
            return dumps(result)
        except Exception as error:
            function, args, kwargs = task
            name, arguments = failure.shorten_parts(
                function, args, kwargs, self.show_values
            )
            raise ResultPicklingError(
                self.first + offset, name, arguments, type(result).__name__, str(error)
            ) from error


def _raise(packed: bytes) -> None:
    """Stands for a task that could not be sent; fails like it."""
    raise failure.unpack(packed)


def run_batch(payload: bytes, *shared: Any) -> Any:
    """On a worker: run a batch; what `GuardedCalls.run` returns."""
    return ClusterCalls.arrived(payload, shared)()


class Parts:
    """What several tasks of a call have in common: callables and large arguments.

    Parameters
    ----------
    put : callable
        Gives a value to the cluster.
    large : int
        Size in bytes from which an argument is shared; -1 is never.
    scatter : iterable
        Arguments that are shared by identity, from the beginning.
    """

    def __init__(
        self, put: Callable[[Any], Any], large: int, scatter: Iterable[Any] = ()
    ) -> None:
        self.put = put
        self.large = large
        self.functions: dict[int, bytes] = {}
        # With the callable itself, which keeps its id from being used again.
        self.known: dict[int, tuple[Any, int]] = {}
        self.refs: list[Any] = []
        self.by_id: dict[int, tuple[Any, int]] = {}
        self.by_content: dict[Any, int | None] = {}
        for value in scatter:
            self.by_id[id(value)] = (value, len(self.refs))
            self.refs.append(put(value))

    def number_of(self, function: Any) -> int:
        """Return the number of a callable; it is pickled when it is first met."""
        known = self.known.get(id(function))
        if known is None:
            known = self.known[id(function)] = (function, len(self.functions))
            self.functions[known[1]] = dumps(function)
        return known[1]

    def share(self, args: Any, kwargs: Any) -> tuple[Any, Any, tuple[int, ...]]:
        """Replace large arguments that were met before; the numbers of what stands in.

        Parameters
        ----------
        args, kwargs : sequence, mapping
            Of a task; not changed.
        """
        found = [(at, self._number(arg)) for at, arg in enumerate(args)]
        named = [(name, self._number(arg)) for name, arg in kwargs.items()]
        numbers = [n for _, n in (*found, *named) if n is not None]
        if not numbers:
            return args, kwargs, ()
        args = tuple(
            arg if n is None else Shared(n)
            for arg, (_, n) in zip(args, found, strict=True)
        )
        kwargs = {
            name: kwargs[name] if n is None else Shared(n)  # in the order of kwargs
            for name, n in named
        }
        return args, kwargs, tuple(numbers)

    def _number(self, arg: Any) -> int | None:
        if type(arg) in _SMALL:
            return None
        if self.by_id:
            known = self.by_id.get(id(arg))
            if known is not None:
                return known[1]
        size = getattr(arg, "nbytes", None)
        if size is None and isinstance(arg, (bytes, bytearray)):
            size = len(arg)
        if self.large < 0 or not isinstance(size, int) or size < self.large:
            return None
        content = fingerprint(arg)
        if content not in self.by_content:
            # An argument of one task only would lie on the cluster for nothing.
            self.by_content[content] = None
            return None
        number = self.by_content[content]
        if number is None:
            number = self.by_content[content] = len(self.refs)
            self.refs.append(self.put(arg))
        return number


def fingerprint(value: Any) -> tuple[type, bytes]:
    """Return what two equal values have in common and no two others.

    Costs about a second for each gigabyte, a tenth of what sending it would.
    """
    import pickle
    from hashlib import blake2b

    digest = blake2b(digest_size=16)
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    digest.update(stream)
    for buffer in buffers:
        digest.update(buffer.raw())
    return type(value), digest.digest()
