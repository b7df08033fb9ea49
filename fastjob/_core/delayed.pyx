"""Tasks: how they are written down, and how they are called.

A task is ``(function, args, kwargs)``.  ``delayed(f)(x, k=2)`` makes the tuple
``(f, (x,), {"k": 2})``; users may also write it by hand.

``delayed(f)`` is written inside the loop, so it is made once for each task, and what
it costs is a part of the price of a tiny task.  It is therefore one small object that
holds ``f`` and nothing else.  What ``functools.wraps`` would copy (name, docstring,
signature, attributes) is looked up in ``f`` when somebody asks.  An ordinary
``tp_call`` is as fast as the vectorcall protocol here: the tuple of arguments that it
receives is the very one that goes into the task.
"""

cimport cython

from types import MethodType


@cython.final
@cython.freelist(16)
cdef class Delayed:
    cdef object function
    cdef object __weakref__

    def __call__(self, /, *args, **kwargs):
        return (self.function, args, kwargs)

    def __get__(self, instance, owner):
        # As a decorator of a method it must pass on `self`, as functions do.
        return self if instance is None else MethodType(self, instance)

    def __getattr__(self, name):
        if name == "__wrapped__":
            return self.function
        return getattr(self.function, name)

    @property
    def __doc__(self):
        return getattr(self.function, "__doc__", None)

    @property
    def __module__(self):
        return getattr(self.function, "__module__", None)

    def __repr__(self):
        return f"delayed({self.function!r})"

    def __reduce__(self):
        return delayed, (self.function,)


def delayed(function):
    """Make a function that records its calls as tasks instead of running them.

    Parameters
    ----------
    function : callable
        What the tasks shall call.

    Returns
    -------
    callable
        Takes any arguments and returns the task ``(function, args, kwargs)``.  It
        shows the name, the docstring, the signature and the attributes of `function`.

    Examples
    --------
    >>> delayed(max)(3, 5)
    (<built-in function max>, (3, 5), {})
    """
    cdef Delayed wrapper = Delayed.__new__(Delayed)
    wrapper.function = function
    return wrapper


def checked_task(item, index):
    """The task that an item of the input stands for; TypeError if it is none."""
    cdef tuple task = as_task(item, index)
    if not callable(task[0]):
        raise TypeError(
            f"Task {index} of the input is not a task: an object of type "
            f"{type(task[0]).__name__!r} is not callable. A task is a tuple (function, "
            f"args, kwargs), such as delayed(function)(x, k=2) makes."
        )
    return task


cdef tuple repair_task(object item, long long index):
    """Make a task of something that is not exactly (callable, tuple, dict)."""
    try:
        function, args, kwargs = item
        return (function, tuple(args), dict(**kwargs))
    except (TypeError, ValueError):
        raise TypeError(
            f"Task {index} of the input is not a task: expected a tuple (function, "
            f"args, kwargs), such as delayed(function)(x, k=2) makes, and got an "
            f"object of type {type(item).__name__!r}."
        ) from None
