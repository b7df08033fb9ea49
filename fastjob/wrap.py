"""Objects that travel by cloudpickle wherever they are pickled."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Wrapped:
    """Stands for an object; pickles it by value."""

    def __init__(self, wrapped: Any, keep_wrapper: bool = True) -> None:
        self._obj = wrapped
        self._keep_wrapper = keep_wrapper

    def __getattr__(self, name: str) -> Any:
        # Only called for what is not found here. While the wrapper is being rebuilt
        # it has no _obj yet, which must not be looked up in itself without end.
        if name in ("_obj", "_keep_wrapper"):
            raise AttributeError(name)
        return getattr(self._obj, name)

    def __repr__(self) -> str:
        return f"wrapped({self._obj!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        import cloudpickle

        return _rebuild, (cloudpickle.dumps(self._obj), self._keep_wrapper)


class _WrappedCallable(_Wrapped):
    """Stands for an object that can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._obj(*args, **kwargs)


def _wrap(obj: Any, keep_wrapper: bool) -> _Wrapped:
    return (_WrappedCallable if callable(obj) else _Wrapped)(obj, keep_wrapper)


def _rebuild(data: bytes, keep_wrapper: bool) -> Any:
    import cloudpickle

    obj = cloudpickle.loads(data)
    return _wrap(obj, keep_wrapper) if keep_wrapper else obj


def wrap_non_picklable_objects(obj: Any, keep_wrapper: bool = True) -> Any:
    """Return an object that behaves like `obj` and is pickled by cloudpickle.

    The process backend does this by itself where plain pickle fails; the wrapper is
    for other ways to pickle, and for objects deep inside others.

    Parameters
    ----------
    obj : object
        A function, an instance or a class. Of a class, a class is returned whose
        instances are wrapped.
    keep_wrapper : bool
        Whether what is unpickled is wrapped again.

    Returns
    -------
    object

    Examples
    --------
    >>> import pickle
    >>> double = wrap_non_picklable_objects(lambda x: 2 * x)
    >>> pickle.loads(pickle.dumps(double))(21)
    42
    """
    if not isinstance(obj, type):
        return _wrap(obj, keep_wrapper)

    class _WrappedInstance(_Wrapped):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(obj(*args, **kwargs), keep_wrapper)

        # Python looks for __call__ on the type, and callable() with it.
        if any("__call__" in vars(base) for base in obj.__mro__):

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                return self._obj(*args, **kwargs)

    _WrappedInstance.__name__ = obj.__name__
    _WrappedInstance.__qualname__ = obj.__qualname__
    _WrappedInstance.__doc__ = obj.__doc__
    return _WrappedInstance
