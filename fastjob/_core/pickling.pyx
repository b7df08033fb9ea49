"""Pickling, as both ends of a wire do it.

Plain pickle first: it is an order of magnitude faster.  cloudpickle takes over for
what plain pickle cannot carry, and for whatever refers to ``__main__``, which another
process does not have.

Two forms on the wire.  A plain pickle starts with the PROTO opcode.  A cloudpickled
one starts with ``C`` and holds two pickles of one pickler: the value, and the classes
and functions of ``__main__`` that it was made with.  A worker puts those into its own
``__main__``: a result that refers to such a class is then pickled *by name*, and
arrives in the caller as an instance of the caller's own class.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport PyObject

import io
import pickle
import sys
from contextvars import ContextVar
from types import FunctionType

cdef extern from *:
    """
    #define _GNU_SOURCE
    #include <string.h>
    static int fj_has_main(const char *data, size_t size)
    {
    #ifdef __linux__
        extern void *memmem(const void *, size_t, const void *, size_t);
        return memmem(data, size, "__main__", 8) != NULL;
    #else
        for (; size >= 8; data++, size--)
            if (*data == '_' && memcmp(data, "__main__", 8) == 0)
                return 1;
        return 0;
    #endif
    }
    """
    bint fj_has_main(const char *data, size_t size) nogil

cdef object pickle_loads = pickle.loads
cdef object pickle_dumps = pickle.dumps
cdef object PlainPickler = pickle.Pickler
cdef object Unpickler = pickle.Unpickler

#: Made when cloudpickle is first needed.
cdef object CloudPickler = None


cdef bint mentions_main(bytes data) noexcept:
    return fj_has_main(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef bint is_cloud(object data) except -1:
    if type(data) is bytes:
        return PyBytes_GET_SIZE(data) > 0 and PyBytes_AS_STRING(data)[0] == c"C"
    return memoryview(data)[0] == c"C"


cdef object load(object data):
    """Unpickle bytes, or a pair of bytes and out-of-band buffers."""
    cdef object buffers = None
    if type(data) is tuple:
        data, buffers = data
    if is_cloud(data):
        stream = io.BytesIO(data)
        stream.read(1)
        unpickler = Unpickler(stream, buffers=buffers)
        value = unpickler.load()
        vars(sys.modules["__main__"]).update(unpickler.load())
        return value
    return pickle_loads(data, buffers=buffers)


cdef bytes dump_plain(object value, object keep, object reducers):
    """Plain pickle.

    `keep` is the ``buffer_callback``; `reducers` a dispatch table, or None.
    """
    if reducers is None:
        return pickle_dumps(value, 5, buffer_callback=keep)
    stream = io.BytesIO()
    pickler = PlainPickler(stream, 5, buffer_callback=keep)
    pickler.dispatch_table = reducers
    pickler.dump(value)
    return stream.getvalue()


cdef bytes dump_apart(list values, object keep, object reducers):
    """Pickle values one behind the other, so that they share no object."""
    stream = io.BytesIO()
    pickler = PlainPickler(stream, 5, buffer_callback=keep)
    if reducers is not None:
        pickler.dispatch_table = reducers
    for value in values:
        pickler.dump(value)
        pickler.clear_memo()
    return stream.getvalue()


cdef list load_apart(object data, Py_ssize_t n):
    """Unpickle what `dump_apart` made of `n` values."""
    cdef object buffers = None
    if type(data) is tuple:
        data, buffers = data
    unpickler = Unpickler(io.BytesIO(data), buffers=buffers)
    return [unpickler.load() for _ in range(n)]


def main_attribute(name):
    """What ``__main__`` calls by a name."""
    return vars(sys.modules["__main__"])[name]


def by_name(obj):
    """Reduce value of what the caller's ``__main__`` has too: just its name."""
    return main_attribute, (obj.__qualname__,)


def dumps(value):
    """Pickle with plain pickle if it can, and with cloudpickle if not."""
    try:
        data = dump_plain(value, None, None)
    except Exception:
        data = None     # cloudpickle's own error is the one that is reported
    if data is None or mentions_main(data):
        data = dump_cloud(value, None, None, None)
    return data


def loads(data):
    """Unpickle what `dumps` made."""
    return load(data)


cdef object cloud_class():
    global CloudPickler
    if CloudPickler is not None:
        return CloudPickler
    import cloudpickle

    class Pickler(cloudpickle.Pickler):
        """cloudpickle, noting or replacing what belongs to ``__main__``."""

        refer = None
        own_reducers = {}

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.names = {}

        def reducer_override(self, obj):
            if isinstance(obj, (type, FunctionType)) and (
                    obj.__module__ == "__main__" and "." not in obj.__qualname__
                    and sys.modules["__main__"].__dict__.get(obj.__qualname__) is obj):
                if self.refer is not None:
                    return self.refer(obj)
                self.names[obj.__qualname__] = obj
            if type(obj) is ContextVar:
                from fastjob.variables import reduce_variable

                return reduce_variable(obj)
            own = self.own_reducers.get(type(obj))
            if own is not None:
                return own(obj)
            return super().reducer_override(obj)

    CloudPickler = Pickler
    return Pickler


cdef bytes dump_cloud(object value, object keep, object reducers, object refer):
    """Pickle with cloudpickle.

    With `refer`, a class or function of ``__main__`` is replaced by what
    ``refer(obj)`` returns (a reduce value); without, it is pickled by value.
    """
    stream = io.BytesIO()
    stream.write(b"C")
    pickler = cloud_class()(stream, 5, buffer_callback=keep)
    pickler.refer = refer
    if reducers is not None:
        pickler.own_reducers = reducers
    pickler.dump(value)
    pickler.dump(pickler.names)
    return stream.getvalue()
