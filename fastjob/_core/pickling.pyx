"""Pickling, as both ends of a wire do it.

Plain pickle first: it is an order of magnitude faster.  cloudpickle takes over for
what plain pickle cannot carry, and for whatever refers to ``__main__``, which another
process does not have; and for everything while cloudpickle has been told of a module
to pickle by value (``register_pickle_by_value``), since plain pickle names it.

All of it by ``_pickle``: the module ``pickle`` around it, which offers the same, needs
regular expressions and takes some milliseconds in every interpreter that begins.

Two forms on the wire.  A plain pickle starts with the PROTO opcode.  A cloudpickled
one starts with ``C`` and holds two pickles of one pickler: the value, and the classes
and functions of ``__main__`` that it was made with.  A worker puts those into its own
``__main__``: a result that refers to such a class is then pickled *by name*, and
arrives in the caller as an instance of the caller's own class.
"""

from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
from libc.stdint cimport int64_t
from libc.string cimport memcpy

import io
import sys
from _pickle import Pickler as PicklerOfC
from _pickle import Unpickler as UnpicklerOfC
from _pickle import dumps as dumps_of_c
from _pickle import loads as loads_of_c
from contextvars import ContextVar
from types import FunctionType

cdef extern from *:
    """
    #define _GNU_SOURCE
    #include <stdint.h>
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

    /* Whether a pickle of protocol 4 or 5 takes something out of the module __main__.
       The text alone says little: it stands in the usual list of warning filters.

       A pickler writes a global as its module's name, its own name and STACK_GLOBAL;
       each name is a string or a reference to one that came before.  So it is enough
       to know of the last two strings or references whether they are "__main__".
       What is not understood counts as yes. */
    static int fj_refers_to_main(const unsigned char *p, size_t size)
    {
        const unsigned char *end = p + size;
        uint32_t memo = 0;              /* objects memoized so far */
        uint32_t mains[8];              /* which of them are the string "__main__" */
        int n_mains = 0, i;
        int module = 0, name = 0;       /* of the last two: is it "__main__"? */
        int fresh = 0;                  /* the object just pushed is that string */
        while (p < end) {
            uint64_t n = 0;
            int width = 0, is_text = 0, was = fresh;
            fresh = 0;
            switch (*p++) {
            case '(': case '0': case '1': case '2': case 'N': case 'R':
            case 'a': case 'b': case 'd': case '}': case 'e': case 'l': case ']':
            case 'o': case 's': case 't': case ')': case 'u': case 0x81: case 0x85:
            case 0x86: case 0x87: case 0x88: case 0x89: case 0x8f: case 0x90:
            case 0x91: case 0x92: case 0x97: case 0x98:
                continue;
            case '.':
                return 0;
            case 0x93:                                  /* STACK_GLOBAL */
                if (module)
                    return 1;
                continue;
            case 0x94:                                  /* MEMOIZE */
                if (was) {
                    if (n_mains == 8)
                        return 1;
                    mains[n_mains++] = memo;
                }
                memo++;
                continue;
            case 'K': case 0x80: case 0x82: p += 1; continue;
            case 'M': case 0x83: p += 2; continue;
            case 'J': case 0x84: p += 4; continue;
            case 'G': case 0x95: p += 8; continue;
            case 'h': case 'j': {                       /* BINGET, LONG_BINGET */
                width = p[-1] == 'h' ? 1 : 4;
                if (end - p < width)
                    return 1;
                for (i = 0; i < width; i++)
                    n |= (uint64_t)*p++ << (8 * i);
                module = name;
                name = 0;
                for (i = 0; i < n_mains; i++)
                    name |= mains[i] == n;
                continue;
            }
            case 0x8c: width = 1; is_text = 1; break;   /* strings */
            case 'X': width = 4; is_text = 1; break;
            case 0x8d: width = 8; is_text = 1; break;
            case 'C': case 'U': case 0x8a: width = 1; break;    /* bytes, long ints */
            case 'B': case 'T': case 0x8b: width = 4; break;
            case 0x8e: case 0x96: width = 8; break;
            default:
                return 1;
            }
            if (end - p < width)
                return 1;
            for (i = 0; i < width; i++)
                n |= (uint64_t)*p++ << (8 * i);
            if (n > (uint64_t)(end - p))
                return 1;
            if (is_text) {
                fresh = n == 8 && memcmp(p, "__main__", 8) == 0;
                module = name;
                name = fresh;
            }
            p += n;
        }
        return 1;
    }
    """
    bint fj_has_main(const char *data, size_t size) nogil
    bint fj_refers_to_main(const unsigned char *data, size_t size) nogil

cdef object pickle_loads = loads_of_c
cdef object pickle_dumps = dumps_of_c
cdef object PlainPickler = PicklerOfC
cdef object Unpickler = UnpicklerOfC

#: Made when cloudpickle is first needed.
cdef object CloudPickler = None

#: cloudpickle's list of the modules that go by value, once somebody has imported it.
cdef object by_value = None


cdef bint mentions_main(bytes data) noexcept:
    """Whether a pickle takes something out of ``__main__``."""
    cdef const char *start = PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    return (fj_has_main(start, size)
            and fj_refers_to_main(<const unsigned char *>start, size))


cdef bint names_suffice() except -1:
    """Whether what plain pickle names is to be named: no module goes by value."""
    global by_value
    if by_value is None:
        module = sys.modules.get("cloudpickle")
        by_value = getattr(module, "list_registry_pickle_by_value", None)
        if by_value is None:
            return True
    return not by_value()


cdef bint is_cloud(object data) except -1:
    if type(data) is bytes:
        return PyBytes_GET_SIZE(data) > 0 and PyBytes_AS_STRING(data)[0] == c"C"
    return memoryview(data)[0] == c"C"


cdef object load(object data, object listen=None, dict names=None):
    """Unpickle bytes, or a pair of bytes and out-of-band buffers.

    With `listen`, by an unpickler that it makes. To `names` is added what came along
    of the sender's ``__main__``.
    """
    cdef object buffers = None
    if type(data) is tuple:
        data, buffers = data
    if is_cloud(data):
        stream = io.BytesIO(data)
        stream.read(1)
        unpickler = (listen or Unpickler)(stream, buffers=buffers)
        value = unpickler.load()
        found = unpickler.load()
        vars(sys.modules["__main__"]).update(found)
        if names is not None:
            names.update(found)
        return value
    if listen is not None:
        return listen(io.BytesIO(data), buffers=buffers).load()
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
    """Pickle values one behind the other, so that they share no object.

    Behind them is where each ends. They are unpickled one by one: an unpickler keeps
    its memo from one value to the next, though the pickler's was cleared, and would
    put an object of the first one wherever a later one repeats an object of its own.
    """
    cdef bytes ends = PyBytes_FromStringAndSize(NULL, len(values) * sizeof(int64_t))
    cdef char *place = PyBytes_AS_STRING(ends)
    cdef int64_t end
    stream = io.BytesIO()
    pickler = PlainPickler(stream, 5, buffer_callback=keep)
    if reducers is not None:
        pickler.dispatch_table = reducers
    for value in values:
        pickler.dump(value)
        pickler.clear_memo()
        end = stream.tell()
        memcpy(place, &end, sizeof(int64_t))
        place += sizeof(int64_t)
    stream.write(ends)
    return stream.getvalue()


cdef list load_apart(object data, Py_ssize_t n, object listen=None):
    """Unpickle what `dump_apart` made of `n` values."""
    cdef object buffers = None
    cdef int64_t start = 0, end
    cdef bytes ends
    cdef Py_ssize_t i
    cdef list values = []
    if type(data) is tuple:
        data, buffers = data
        buffers = iter(buffers)     # each value takes on where the last one stopped
    view = memoryview(data)
    if len(view) < n * <Py_ssize_t>sizeof(int64_t):
        raise ValueError("the ends of some pickles are missing")
    ends = bytes(view[len(view) - n * sizeof(int64_t):])
    for i in range(n):
        memcpy(&end, PyBytes_AS_STRING(ends) + i * sizeof(int64_t), sizeof(int64_t))
        if listen is None:
            values.append(pickle_loads(view[start:end], buffers=buffers))
        else:
            values.append(listen(io.BytesIO(view[start:end]), buffers=buffers).load())
        start = end
    return values


def main_attribute(name):
    """What ``__main__`` calls by a name."""
    return vars(sys.modules["__main__"])[name]


def by_name(obj):
    """Reduce value of what the caller's ``__main__`` has too: just its name."""
    return main_attribute, (obj.__qualname__,)


def dumps(value):
    """Pickle with plain pickle if it can, and with cloudpickle if not."""
    data = None
    try:
        if names_suffice():
            data = dump_plain(value, None, None)
    except Exception:
        pass            # cloudpickle's own error is the one that is reported
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

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.refer = None
            self.own_reducers = {}
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


cdef bytes dump_cloud(object value, object keep, object reducers, object refer,
                      dict names=None):
    """Pickle with cloudpickle.

    With `refer`, a class or function of ``__main__`` is replaced by what
    ``refer(obj)`` returns (a reduce value); without, it is pickled by value, and added
    to `names`.
    """
    stream = io.BytesIO()
    stream.write(b"C")
    pickler = cloud_class()(stream, 5, buffer_callback=keep)
    pickler.refer = refer
    if reducers is not None:
        pickler.own_reducers = reducers
    pickler.dump(value)
    pickler.dump(pickler.names)
    if names is not None:
        names.update(pickler.names)
    return stream.getvalue()
