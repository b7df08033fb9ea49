"""What a pickled task looks like, without running any code of its classes.

An error message names the arguments of a task whose worker died.  The caller has them
only as a pickle, made when the task was taken; rebuilding them could do to the caller
what it did to the worker.  So every class and function that the pickle names is
replaced by a stand-in, which takes whatever it is given and shows its name.
"""

from __future__ import annotations

import io
import pickle

from fastjob._core.pickling import main_attribute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: Containers that can be made without running code of anybody.
SAFE = {
    ("builtins", name): kind
    for name, kind in (
        ("set", set),
        ("frozenset", frozenset),
        ("bytearray", bytearray),
        ("complex", complex),
        ("range", range),
        ("slice", slice),
    )
}


class StandIn:
    """Takes the place of an object that is not rebuilt; shows its type's name."""

    def __new__(cls, *args: object, **kwargs: object) -> StandIn:
        return super().__new__(cls)

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__} object>"

    def __setstate__(self, state: object) -> None:
        """Do without the state."""

    def __setitem__(self, key: object, value: object) -> None:
        """Do without the item."""

    def append(self, item: object) -> None:
        """Do without the item."""

    def extend(self, items: object) -> None:
        """Do without the items."""


class Array(StandIn):
    """Stands for an array, and shows its shape."""

    shape: object = "?"

    def __repr__(self) -> str:
        return f"<array of shape {self.shape}>"

    def __setstate__(self, state: object) -> None:
        """Find the shape in the state of an ndarray."""
        if isinstance(state, tuple) and len(state) == 5:
            self.shape = state[1]


def make_array(*args: object) -> Array:
    """Stand for the functions that rebuild arrays: ``(buffer, dtype, shape, ...)``."""
    made = Array()
    assert isinstance(made, Array)
    if len(args) > 2 and isinstance(args[2], tuple):
        made.shape = args[2]
    return made


class _Unpickler(pickle.Unpickler):
    constants: dict[int, Any]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in SAFE:
            return SAFE[module, name]
        if module == "fastjob._core.constants" and name == "constant":
            return self.constants.__getitem__
        if module == "fastjob._core.constants" and name == "member":
            return lambda _, name: main_attribute(name)
        if module == "fastjob._core.pickling" and name == "loads":
            return lambda data: load(data, self.constants)
        if module == "fastjob._core.arrays" or name in ("_reconstruct", "_frombuffer"):
            return make_array
        return type(name, (StandIn,), {"__module__": module, "__qualname__": name})


def load(data: bytes, constants: dict[int, Any]) -> Any:
    """Make what a pickle looks like; what it holds as a pickle of its own, too."""
    stream = io.BytesIO(data)
    if data[:1] == b"C":
        stream.read(1)
    # More buffers than any pickle asks for: arrays are not rebuilt.
    unpickler = _Unpickler(stream, buffers=iter(lambda: b"", None))
    unpickler.constants = constants
    return unpickler.load()


def task(
    data: Any, function: Callable[..., Any] | None, constants: dict[int, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return function, arguments and keywords of a pickled task, as far as possible.

    Parameters
    ----------
    data : bytes
        Pickle of ``(args, kwargs)``, or of ``(function, args, kwargs)``.
    function : callable or None
        None if the pickle holds it.
    constants : dict
        The live objects that the pickle refers to by number.
    """
    try:
        *own, args, kwargs = load(data, constants)
        return (own[0] if own else function), tuple(args), dict(kwargs)
    except Exception:  # a pickle that needs the real classes
        return function, (...,), {}
