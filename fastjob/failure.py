"""The way of a failed task's exception from where it happened to the caller.

Guarantees: nothing here costs anything until a task has failed; nothing here raises
(except KeyboardInterrupt in the caller), whatever the exception does when it is
shown, pickled or rebuilt; the caller gets an exception of the same type with the same
``args``, attributes, notes and chain, or an `UnpicklableExceptionError` that tells
what it was.

An exception is packed as a list of nodes, one for each exception that it leads to
(cause, context, members of a group), because pickle forgets the links, and so that
one that cannot be pickled does not take the others with it.  A class that leaves
``__reduce__`` alone is rebuilt without running its ``__init__`` (`errors.rebuild`),
which pickle would call with the wrong arguments; one that defines it is taken at its
word, and the word is checked once, here in the worker.
"""

from __future__ import annotations

import builtins
import pickle
import sys

from fastjob.errors import (
    RemoteTraceback,
    TaskPicklingError,
    UnpicklableExceptionError,
    builtin_base,
    rebuild,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    Links = tuple[int, int, bool, list[int]]  # cause, context, suppress, members
    # Pickle or None, why there is none, type, message, notes, links.
    Node = tuple[bytes | None, str, str, str, list[str], Links]

__all__ = [
    "RemoteTraceback",
    "attach",
    "blame",
    "describe",
    "drop_frames",
    "pack",
    "shorten",
    "shorten_parts",
    "unpack",
]

MAX_NODES = 200
GROUP_TYPES: tuple[Any, ...] = (
    (builtins.BaseExceptionGroup,) if hasattr(builtins, "BaseExceptionGroup") else ()
)
_NO_LINKS: Links = (-1, -1, False, [])


def describe(
    exc: BaseException,
    index: int,
    func: Any,
    args: Iterable[Any],
    kwargs: Mapping[str, Any],
    show_values: bool = True,
) -> str:
    """Format the failure of a task as text for a person.

    Parameters
    ----------
    exc : BaseException
        What the task raised, with its traceback.
    index : int
        Place of the task in the input.
    func, args, kwargs : callable, iterable, mapping
        The task.
    show_values : bool
        Whether values of arguments and parameters are shown.

    Returns
    -------
    str
        Lines that end with a newline.
    """
    try:
        from fastjob.tracetext import describe_failure

        return describe_failure(exc, index, func, args, kwargs, show_values)
    except Exception as error:  # no memory left, no stack left, a file that vanished
        return (
            f"{type(exc).__name__} in task {index} "
            f"(no traceback could be made: {type(error).__name__})\n"
        )


def shorten(
    func: Any,
    args: Iterable[Any],
    kwargs: Mapping[str, Any],
    show_values: bool = True,
) -> str:
    """Write a task on one line.

    Examples
    --------
    >>> shorten(len, ([1, 2],), {})
    'len([1, 2])'
    """
    name, arguments = shorten_parts(func, args, kwargs, show_values)
    return f"{name}({arguments})"


def shorten_parts(
    func: Any,
    args: Iterable[Any],
    kwargs: Mapping[str, Any],
    show_values: bool = True,
) -> tuple[str, str]:
    """Name of a task's function, and its arguments on one line.

    Examples
    --------
    >>> shorten_parts(len, ([1, 2],), {}, show_values=False)
    ('len', '...')
    """
    from fastjob.shortrepr import function_name, short_arguments

    return function_name(func), short_arguments(args, kwargs) if show_values else "..."


def attach(
    exc: BaseException,
    index: int,
    func: Any,
    args: Iterable[Any],
    kwargs: Mapping[str, Any],
    show_values: bool = True,
) -> str:
    """Give the exception of a task that ran in this process its traceback as cause.

    Returns
    -------
    str
        The text of the traceback.
    """
    text = describe(exc, index, func, args, kwargs, show_values)
    _set_cause(exc, text)
    return text


def drop_frames(exc: BaseException) -> None:
    """Let go of the frames of a failed task whose exception is kept.

    From there each frame leads to its caller: to the call, the `Parallel` and all that
    its user holds. What is to be seen in them is in the text.
    """
    # A caller that makes the call while it handles an error has its own in the chain.
    frame: Any = sys._getframe()
    running = set()
    while frame is not None:
        running.add(frame)
        frame = frame.f_back
    seen = set()
    ahead: list[BaseException | None] = [exc]
    while ahead:
        one = ahead.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        frames = one.__traceback__
        if one is exc or frames is None or frames.tb_frame not in running:
            one.__traceback__ = None
            ahead += [one.__cause__, one.__context__, *_members(one)]


def blame(
    exc: BaseException,
    index: int | None,
    func: Any,
    args: Iterable[Any],
    kwargs: Mapping[str, Any],
) -> TaskPicklingError:
    """Find out which part of a task could not be pickled.

    Parameters
    ----------
    exc : BaseException
        What was raised when the whole task was pickled; it becomes the cause.
    index : int or None
        Place of the task in the input.
    func, args, kwargs : callable, iterable, mapping
        The task.
    """
    from fastjob.shortrepr import function_name, type_name

    parts: list[tuple[int | str | None, Any]] = [(None, func)]
    parts += enumerate(args)
    parts += kwargs.items()
    part: int | str | None = None
    value, reason = func, exc
    for name, one in parts:
        try:
            _dumps(one)
        except Exception as error:
            part, value, reason = name, one, error
            break
    said = _message(reason) or _type_name(reason)
    blamed = TaskPicklingError(index, function_name(func), part, type_name(value), said)
    blamed.__cause__ = exc
    return blamed


def pack(exc: BaseException, text: str) -> bytes:
    """Pickle an exception, with those that it leads to, and the text of its traceback.

    Parameters
    ----------
    exc : BaseException
        What the task raised.
    text : str
        What `describe` made of it.
    """
    try:
        nodes = _pack_nodes(exc)
    except Exception as error:  # an exception whose attributes raise when read
        reason = f"{_type_name(error)}: {_message(error)}"
        nodes = [(None, reason, _type_name(exc), _message(exc), [], _NO_LINKS)]
    return pickle.dumps((text, nodes), protocol=pickle.HIGHEST_PROTOCOL)


def unpack(data: bytes) -> BaseException:
    """Rebuild what `pack` made; its cause is a `RemoteTraceback`.

    The exception's own cause is the cause of the `RemoteTraceback`.
    """
    from fastjob.tracetext import fill_sources

    text, nodes = pickle.loads(data)
    text = fill_sources(text)
    made: dict[int, BaseException] = {}

    def make(number: int) -> BaseException:
        if number in made:
            return made[number]
        packed, reason, name, message, notes, links = nodes[number]
        error = None
        if packed is not None:
            error, reason = _unpack_one(packed, [make(i) for i in links[3]])
        if error is None:
            error = UnpicklableExceptionError(name, message, text, reason)
        if notes and not hasattr(error, "__notes__"):
            error.__notes__ = notes  # type: ignore[attr-defined]
        made[number] = error
        return error

    for number, (*_, links) in enumerate(nodes):
        cause, context, suppress, _ = links
        error = make(number)
        error.__cause__ = make(cause) if cause >= 0 else None
        error.__context__ = make(context) if context >= 0 else None
        error.__suppress_context__ = suppress
    _set_cause(made[0], text)
    return made[0]


def _pack_nodes(exc: BaseException) -> list[Node]:
    found = [exc]
    places = {id(exc): 0}

    def place(other: BaseException | None) -> int:
        if isinstance(other, RemoteTraceback):
            # Its text is part of this one's; what it stands before is the real cause.
            other = other.__cause__
        if other is None:
            return -1
        if id(other) not in places:
            if len(found) >= MAX_NODES:
                return -1
            places[id(other)] = len(found)
            found.append(other)
        return places[id(other)]

    nodes: list[Node] = []
    for one in found:  # grows while it runs
        cause, context = place(one.__cause__), place(one.__context__)
        members = [place(member) for member in _members(one)]
        links = (cause, context, one.__suppress_context__, members)
        if -1 in members:
            data, reason = None, "it is part of too large a group"
        else:
            data, reason = _pack_one(one)
        notes = getattr(one, "__notes__", None)
        notes = [n for n in notes if type(n) is str] if type(notes) is list else []
        nodes.append((data, reason, _type_name(one), _message(one), notes, links))
    return nodes


def _set_cause(exc: BaseException, text: str) -> None:
    """Put a `RemoteTraceback` between an exception and its own cause."""
    own = exc.__cause__
    if isinstance(own, RemoteTraceback):  # of an inner call, whose text is in ours
        own = own.__cause__
    remote = RemoteTraceback(text)
    remote.__cause__ = own
    if own is None and not exc.__suppress_context__:
        remote.__context__ = exc.__context__
    exc.__cause__ = remote


def _members(exc: BaseException) -> list[BaseException]:
    """Members of a group, which are nodes of their own."""
    return list(exc.exceptions) if isinstance(exc, GROUP_TYPES) else []


def _pack_one(exc: BaseException) -> tuple[bytes | None, str]:
    """Pickle of one exception that has been seen to load, or why there is none."""
    try:
        data = _pack_parts(exc) if _reduces_by_default(type(exc)) else _dumps(exc)
    except Exception as error:
        return None, f"{_type_name(error)}: {_message(error)}"
    back, reason = _unpack_one(data, _members(exc))
    if back is None:
        return None, reason
    if type(back) is not type(exc):
        return None, f"it became {_type_name(back)} when unpickled"
    return data, ""


def _reduces_by_default(cls: type[BaseException]) -> bool:
    """Whether pickle would be told by built-in code how to rebuild it."""
    own: Any = cls
    base = builtin_base(cls)
    return all(
        getattr(own, name) is getattr(base, name)
        for name in ("__reduce__", "__reduce_ex__", "__setstate__")
    )


def _pack_parts(exc: BaseException) -> bytes:
    """Pickle of the arguments of `rebuild`, without the members of a group.

    Attributes that cannot be pickled are left out, and a note says so: the type of
    the exception matters more to who catches it.
    """
    reduced: Any = exc.__reduce__()
    fields, state = reduced[1], reduced[2] if len(reduced) > 2 else {}
    args = exc.args
    if isinstance(exc, GROUP_TYPES):
        fields, args = (exc.message,), (exc.message, *args[2:])
    try:
        return _dumps((type(exc), fields, args, state))
    except Exception:
        kept, left_out = _picklable_part(state)
        if left_out:
            note = f"(attributes that could not be pickled: {', '.join(left_out)})"
            kept["__notes__"] = [*kept.get("__notes__", []), note]
        return _dumps((type(exc), fields, args, kept))


def _unpack_one(
    data: bytes, members: list[BaseException]
) -> tuple[BaseException | None, str]:
    """One exception, or None and the reason."""
    try:
        made = pickle.loads(data)
        if type(made) is tuple:
            cls, fields, args, state = made
            if issubclass(cls, GROUP_TYPES):
                fields, args = (*fields, members), (args[0], members, *args[1:])
            made = rebuild(cls, fields, args, state)
        if isinstance(made, BaseException):
            return made, ""
    except KeyboardInterrupt:  # the user's, in the caller
        raise
    except BaseException as error:  # a rebuilding that exits, for one
        return None, f"{_type_name(error)}: {_message(error)}"
    return None, f"it became an object of type {_type_name(made)} when unpickled"


def _picklable_part(state: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The attributes that can be pickled, and the names of the others."""
    kept, left_out = {}, []
    for name, value in state.items():
        try:
            pickle.loads(_dumps(value))
            kept[name] = value
        except Exception:
            left_out.append(name)
    return kept, left_out


def _dumps(obj: object) -> bytes:
    """Pickle; with cloudpickle what pickle cannot find by name (``__main__``)."""
    try:
        return pickle.dumps(obj, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:
        import cloudpickle

        data: bytes = cloudpickle.dumps(obj, protocol=pickle.HIGHEST_PROTOCOL)
        return data


def _type_name(obj: object) -> str:
    from fastjob.shortrepr import type_name

    return type_name(obj)


def _message(exc: BaseException) -> str:
    """``str(exc)``, cut if huge; what is wrong with it if it cannot be had."""
    from fastjob.shortrepr import cut
    from fastjob.tracetext import MAX_MESSAGE

    try:
        return cut(str(exc), MAX_MESSAGE)
    except Exception as error:
        return f"<its str raised {_type_name(error)}>"
