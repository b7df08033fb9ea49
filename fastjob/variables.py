"""Context variables of the caller, and how another process finds the same ones.

A context variable has no address of its own: two processes agree on one only if both
can reach it by name.  So a variable follows a task if it is an attribute of a module,
as the usual ``request_id = ContextVar("request_id")`` is.  Module and attribute are
looked up once a variable, over all modules, which takes some milliseconds; what was not
found is looked for again when more modules have been imported.

A variable of ``__main__`` does not exist in a worker until a function that uses it, or
its value, arrives there; whichever comes first makes it, under its name.

Values are pickled at each call: they may be objects that change.  They are set in the
thread's own context, from which the worker makes a copy for each call (``worker.pyx``).
So what tasks do to a variable ends with their call, and what an initializer sets stays.
"""

from __future__ import annotations

import sys
from contextvars import Context, ContextVar, copy_context
from importlib import import_module

from fastjob._core.pickling import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextvars import Token
    from typing import Any

    #: Module ("" is ``__main__``), attribute, name, other arguments of `ContextVar`.
    Place = tuple[str, str, str, dict[str, Any]]

#: Variable -> module and attribute, or how many modules there were without it.
_found: dict[ContextVar[Any], tuple[str, str] | int] = {}


def place_of(variable: ContextVar[Any]) -> Place | None:
    """Return where a variable is found, for `variable_at`; None if in no module."""
    found = _found.get(variable)
    if found is None or (type(found) is int and found != len(sys.modules)):
        found = _found[variable] = _search(variable) or len(sys.modules)
    if type(found) is not tuple:
        return None
    module, attribute = found
    if module != "__main__":
        return module, attribute, variable.name, {}
    try:
        # The default is seen where the variable is not set.
        options = {"default": Context().run(variable.get)}
    except LookupError:
        options = {}
    # Without the word, which would make `dumps` take the slower pickler.
    return "", attribute, variable.name, options


def _search(variable: ContextVar[Any]) -> tuple[str, str] | None:
    for module, owner in list(sys.modules.items()):
        for attribute, value in list(getattr(owner, "__dict__", {}).items()):
            if value is variable:
                return module, attribute
    return None


def variable_at(
    module: str, attribute: str, name: str, options: dict[str, Any]
) -> ContextVar[Any]:
    """Return the variable at a place; one of ``__main__`` is made if it is missing.

    Raises
    ------
    ImportError, AttributeError
        If there is none in this process.
    """
    owner = import_module(module or "__main__")
    found = getattr(owner, attribute, None)
    if type(found) is ContextVar:
        return found
    if module:
        raise AttributeError(f"module {module} has no context variable {attribute}")
    made: ContextVar[Any] = ContextVar(name, **options)
    setattr(owner, attribute, made)
    return made


def reduce_variable(variable: ContextVar[Any]) -> Any:
    """Return how to pickle a variable: by its place.

    Raises
    ------
    TypeError
        If it has none.
    """
    place = place_of(variable)
    if place is None:
        raise TypeError(
            f"The context variable {variable.name!r} is no attribute of a module, so "
            "another process cannot find it."
        )
    return variable_at, place


def capture_variables() -> tuple[bytes, ...]:
    """Pickle the variables that are set here, and their values, one by one.

    Left out are fastjob's own, those that no module has as an attribute, and those
    whose values cannot be pickled.
    """
    context = copy_context()
    if not len(context):
        return ()
    found = []
    for variable, value in context.items():
        place = place_of(variable)
        if place is None or place[0].startswith("fastjob."):
            continue
        data = _pickled((place, value))
        if data is not None:
            found.append(data)
    return tuple(found)


def _pickled(pair: tuple[Place, Any]) -> bytes | None:
    try:
        return dumps(pair)
    except Exception:
        return None  # an open file, a lock, ...: it cannot leave this process


class Variables:
    """In a worker: the variables that the caller had set."""

    def __init__(self) -> None:
        self.tokens: list[tuple[ContextVar[Any], Token[Any]]] = []

    def set(self, pickled: tuple[bytes, ...]) -> None:
        """Unset what was set before, and set these; always in the same context."""
        while self.tokens:
            variable, token = self.tokens.pop()
            variable.reset(token)
        for data in pickled:
            pair = _restored(data)
            if pair is not None:
                variable, value = pair
                self.tokens.append((variable, variable.set(value)))


def _restored(data: bytes) -> tuple[ContextVar[Any], Any] | None:
    try:
        place, value = loads(data)
        return variable_at(*place), value
    except Exception:
        return None  # what is found only in the caller cannot be used by a task
