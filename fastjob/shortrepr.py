"""Short texts of arbitrary values, for messages and tracebacks.

Guarantees: a text is at most `MAX_CHARS` long, whatever the value; nothing that a
value does (raise, recurse, loop for ever, sleep, return nonsense) gets out of here or
holds the caller up for longer than `SECONDS` a call, however many values.

Built-in scalars and containers, and their subclasses, are walked with the built-in
types' own methods, cut short at each level, so that a list of a billion items costs
nothing and no code of a subclass runs.  Any other value needs its own ``__repr__``,
which may do anything.  Those run in one daemon thread: the caller stops waiting at the
deadline, and a trace function ends the thread at its next line of Python.  A ``repr``
that sleeps in C is abandoned and ends when it ends.  (An alarm signal would need the
main thread; tracing alone cannot leave a sleep.)

One thing is not bounded: a ``repr`` that runs long in C without ever releasing the
interpreter.  Of the ones that occur, data classes are walked like containers.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from time import perf_counter
from types import BuiltinFunctionType, FunctionType, MethodType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import FrameType
    from typing import Any

MAX_CHARS = 100
MAX_ITEMS = 6
MAX_DEPTH = 3
MAX_CALL_CHARS = 300
SECONDS = 1.0

_PLAIN = frozenset({type(None), bool, complex, range, slice})
_BRACKETS: tuple[tuple[Any, str, str], ...] = (
    (list, "[", "]"),
    (tuple, "(", ")"),
    (set, "{", "}"),
    (frozenset, "{", "}"),
    (deque, "[", "]"),
)


class _TooSlow(BaseException):
    """Thrown into a repr at the deadline; not an Exception, so reprs let it pass."""


class _Foreign(Exception):
    """The value holds something with a ``__repr__`` of its own."""


def cut(text: str, limit: int = MAX_CHARS) -> str:
    """Shorten a text to ``limit`` characters, keeping both ends.

    Examples
    --------
    >>> cut("abcdefghij", 7)
    'ab...ij'
    """
    if len(text) <= limit:
        return text
    tail = (limit - 3) // 2
    return f"{text[: limit - 3 - tail]}...{text[len(text) - tail :]}"


def type_name(value: object) -> str:
    """Name of a value's type, with its module unless that is obvious."""
    cls = type(value)
    try:
        module, name = str(cls.__module__), str(cls.__qualname__)
    except Exception:  # a metaclass may define these two as it likes
        return "an unnameable type"
    return cut(name if module in ("builtins", "__main__") else f"{module}.{name}")


def short_reprs(values: Iterable[Any]) -> list[str]:
    """One short line for each value.

    Examples
    --------
    >>> short_reprs([3, "a" * 1000, list(range(1000))])[2]
    '[0, 1, 2, 3, 4, 5, ... 1000 in all]'
    """
    values = list(values)
    texts: list[str | None] = [None] * len(values)
    foreign = []
    for i, value in enumerate(values):
        try:
            texts[i] = cut(_walk(value, MAX_DEPTH, None))
        except _Foreign:
            foreign.append(i)
        except Exception as error:  # a container that another thread changes
            texts[i] = f"<{type_name(value)}, unreadable: {type_name(error)}>"
    if foreign:
        _run_aside(values, foreign, texts)
    return [
        f"<{type_name(value)} object>" if text is None else text
        for value, text in zip(values, texts, strict=True)
    ]


def short_arguments(args: Iterable[Any], kwargs: Mapping[str, Any]) -> str:
    """The arguments of a call on one line: ``3, k=2``."""
    args = tuple(args)
    shown = [*args[: 2 * MAX_ITEMS], *islice(kwargs.values(), 2 * MAX_ITEMS)]
    texts = short_reprs(shown)
    n_args = min(len(args), 2 * MAX_ITEMS)
    parts = texts[:n_args]
    if len(args) > n_args:
        parts.append(f"... {len(args)} arguments in all")
    names = list(islice(kwargs, 2 * MAX_ITEMS))
    parts += [f"{k}={v}" for k, v in zip(names, texts[n_args:], strict=True)]
    if len(kwargs) > len(names):
        parts.append(f"... {len(kwargs)} keywords in all")
    return cut(", ".join(parts), MAX_CALL_CHARS)


def function_name(func: Any) -> str:
    """Full name of a function, partial, method or callable object."""
    try:
        if isinstance(func, str):
            return func
        inner = getattr(func, "func", None)
        if type(func).__name__ == "partial" and callable(inner):
            return f"partial({function_name(inner)})"
        name = getattr(func, "__qualname__", None)
        if not isinstance(name, str):
            return cut(type_name(func))
        module = getattr(func, "__module__", None)
    except Exception:  # attributes of a callable object may be computed
        return type_name(func)
    hidden = module in (None, "builtins", "__main__") or not isinstance(module, str)
    return cut(name if hidden else f"{module}.{name}")


def _walk(value: Any, depth: int, foreign: Callable[[Any], str] | None) -> str:
    """Text of a value; ``foreign`` gives it for a value with its own ``__repr__``."""
    cls = type(value)
    if cls in _PLAIN:
        return repr(value)
    if value is ...:  # as it is written, and as what is left out is shown
        return "..."
    if issubclass(cls, float):  # numpy's are too
        return float.__repr__(value)
    if issubclass(cls, int) and cls.__repr__ is int.__repr__:
        bits = int.bit_length(value)
        # Writing out a long number takes quadratic time.
        return int.__repr__(value) if bits < 1000 else f"<int of {bits} bits>"
    for text_type in (str, bytes, bytearray):
        if issubclass(cls, text_type):
            return _walk_text(value, text_type)
    for base, left, right in _BRACKETS:
        if issubclass(cls, base):
            n = base.__len__(value)
            items = _walk_items(base.__iter__(value), n, depth, foreign)
            if base is tuple and n == 1:
                items += ","
            return _named(cls, base, f"{left}{items}{right}")
    if issubclass(cls, dict):
        n = dict.__len__(value)
        pairs = islice(dict.items(value), MAX_ITEMS)
        if depth == 0:
            return _named(cls, dict, "{...}" if n else "{}")
        parts = [
            f"{_walk(k, depth - 1, foreign)}: {_walk(v, depth - 1, foreign)}"
            for k, v in pairs
        ]
        if n > MAX_ITEMS:
            parts.append(f"... {n} in all")
        return _named(cls, dict, "{" + ", ".join(parts) + "}")
    if cls.__module__ == "numpy" and cls.__name__ == "ndarray":
        return _walk_array(value)
    own: Any = cls.__repr__
    if own is object.__repr__:
        return f"<{type_name(value)} object>"
    if cls in (FunctionType, BuiltinFunctionType, MethodType, type):
        return f"<{'class' if cls is type else 'function'} {function_name(value)}>"
    fields = cls.__dict__.get("__dataclass_fields__")
    if fields is not None and hasattr(cls.__repr__, "__wrapped__"):
        state = getattr(value, "__dict__", None)  # none in a class with slots
        if type(state) is dict:
            shown = {k: v for k, v in state.items() if k in fields and fields[k].repr}
            if depth == 0:
                return f"{type_name(value)}(...)"
            parts = [
                f"{k}={_walk(v, depth - 1, foreign)}"
                for k, v in islice(shown.items(), MAX_ITEMS)
            ]
            if len(shown) > MAX_ITEMS:
                parts.append("...")
            return f"{type_name(value)}({', '.join(parts)})"
    if foreign is None:
        raise _Foreign
    return foreign(value)


def _walk_text(value: Any, base: Any) -> str:
    """Repr of a str or bytes, of which only both ends are ever written out."""
    n = base.__len__(value)
    if n <= MAX_CHARS:
        return cut(str(base.__repr__(base.__getitem__(value, slice(None)))))
    ends = base.__getitem__(value, slice(MAX_CHARS)) + base.__getitem__(
        value, slice(n - MAX_CHARS, None)
    )
    return cut(base.__repr__(ends))


def _walk_items(
    items: Any, n: int, depth: int, foreign: Callable[[Any], str] | None
) -> str:
    if depth == 0:
        return "..." if n else ""
    parts = [_walk(item, depth - 1, foreign) for item in islice(items, MAX_ITEMS)]
    if n > MAX_ITEMS:
        parts.append(f"... {n} in all")
    return ", ".join(parts)


def _walk_array(value: Any) -> str:
    """Shape and type of an array; the numbers too while they are few."""
    if value.size <= MAX_ITEMS and value.dtype.kind in "biufc":
        return f"array({value.tolist()!r})"
    return f"<array of shape {value.shape}, {value.dtype}>"


def _named(cls: type, base: type, text: str) -> str:
    """``text``, with the type's name if brackets alone do not tell it."""
    if cls in (list, tuple, set, dict):
        return "set()" if cls is set and text == "{}" else text
    return f"{cls.__name__}({text[1:-1] if base is tuple else text})"


def _run_aside(values: list[Any], which: list[int], texts: list[str | None]) -> None:
    """Fill in ``texts`` of values that have a ``__repr__`` of their own."""
    import contextvars
    import sys
    import threading

    from fastjob._core.starting import start_thread

    deadline = perf_counter() + SECONDS
    done = threading.Event()

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if perf_counter() > deadline:
            raise _TooSlow
        return trace

    def own_repr(value: Any) -> str:
        try:
            text = repr(value)
            return cut(" ".join(text.split()) if len(text) < 10_000 else text)
        except _TooSlow:
            return f"<{type_name(value)}, its repr is slow>"
        except BaseException as error:
            return f"<{type_name(value)}, its repr raised {type_name(error)}>"

    def run() -> None:
        sys.settrace(trace)
        try:
            for i in which:
                if perf_counter() > deadline:
                    break
                try:
                    texts[i] = cut(_walk(values[i], MAX_DEPTH, own_repr))
                except BaseException as error:  # nothing may leave this thread
                    texts[i] = f"<{type_name(values[i])}, {type_name(error)}>"
        except _TooSlow:
            return
        finally:
            sys.settrace(None)
            done.set()

    # The values' own reprs may read context variables (numpy's print options do).
    context = contextvars.copy_context()
    try:
        thread = start_thread(context.run, "fastjob-repr", (run,))
    except RuntimeError:  # no more threads can be had: show types only
        return
    if done.wait(SECONDS + 0.1):
        thread.join()
