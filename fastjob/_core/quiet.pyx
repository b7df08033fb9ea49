"""Where, between two tasks, no code of the user can have run.

An array that many tasks take is compared with its copy before each of them, since the
code that makes the tasks may have filled it again: 40 ms for 200 MB.  That code is
most often ``delayed(f)(x, a) for x in xs``, which cannot fill anything.  Here is
proved, once for each call, that an input is of that kind; then an array is compared
again only after something else has run in the call's thread.

What is proved is that *this thread* runs no code of the user.  An array that another
thread, a signal handler or a finalizer writes to while the call runs was never
promised to be seen at any moment in particular.

1. *The input.*  A list, a tuple, a range, an array of Python's own, `zip` and
   `enumerate` of such; and a generator expression over one of these of which every
   instruction is among the few that move references, or calls `delayed`, or what
   `delayed` has returned.  The names are looked up in the generator itself: what it
   calls `delayed` must be ours.  Whatever is not understood is not quiet; so a new
   version of Python costs comparisons, and nothing else.  Unpacking an item asks for
   exact tuples, since it would iterate over anything else.
2. *Pickling a task* calls what the classes of its arguments define.  It is quiet for
   numbers, texts, arrays without objects, frames of such, and containers of these.
3. *Unpickling a result* calls what its pickle names.  It is quiet if all of that
   belongs to numpy, pandas or the types of Python.
4. What shows warnings, log records and progress is never quiet, nor is a stream, whose
   reader runs at the same time.

Tracing and profiling hooks run between the instructions: where there is one, no input
is quiet.
"""

from _pickle import Unpickler

import functools
import itertools
import sys
from types import GeneratorType, ModuleType

from fastjob._core.delayed import delayed

cdef enum:
    MOST_MEMBERS = 64   # of a container that is looked into
    MOST_LABELS = 256   # of a frame's axis that is looked through

# Iterators that run no code of the user, whatever they go through.
cdef frozenset QUIET_ITERATORS = frozenset({
    type(iter([])), type(iter(())), type(reversed([])), type(iter(range(0))),
    type(iter(range(1 << 65))), type(iter({})), type(iter({}.values())),
    type(iter({}.items())), type(iter(set())), type(iter("")), type(iter(b"")),
    itertools.repeat,
})
# Of these, and of those below, the ones whose items are exact tuples.
cdef frozenset PAIRS = frozenset({zip, enumerate, type(iter({}.items()))})

# What a class of modules must not have if looking into one is to run nothing.
cdef frozenset OVERRIDES = frozenset({"__getattribute__", "__dict__"})

# Instructions of a generator expression, by what they do to the stack.
cdef frozenset NOTHING = frozenset({
    "RESUME", "GEN_START", "COPY_FREE_VARS", "NOP", "CACHE", "EXTENDED_ARG", "PRECALL",
    "KW_NAMES", "NOT_TAKEN",
})
# (popped, pushed); what is pushed may be passed on, not called.
cdef dict MOVES = {
    "LOAD_CONST": (0, 1), "LOAD_SMALL_INT": (0, 1),
    "LOAD_FAST": (0, 1), "LOAD_FAST_BORROW": (0, 1), "LOAD_FAST_CHECK": (0, 1),
    "LOAD_FAST_LOAD_FAST": (0, 2), "LOAD_FAST_BORROW_LOAD_FAST_BORROW": (0, 2),
    "STORE_FAST": (1, 0), "STORE_FAST_STORE_FAST": (2, 0),
    "STORE_FAST_LOAD_FAST": (1, 1),
    "POP_TOP": (1, 0), "RETURN_GENERATOR": (0, 1), "YIELD_VALUE": (1, 1),
}
# What follows the loop: it ends the generator, or passes an exception on.
cdef frozenset ENDINGS = frozenset({
    "END_FOR", "POP_TOP", "POP_ITER", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST",
    "CALL_INTRINSIC_1", "RERAISE",
})

# What may lie on the stack, beside names of things that could be `delayed`: tuples
# (whether it is a free variable or a global, its name, its attributes by name).
cdef object NULL_PLACE = "null"     # the interpreter's own mark of a plain call
cdef object SOURCE = "source"       # the iterator of the expression
cdef object ITEM = "item"           # what it has just given
cdef object MAKER = "maker"         # what `delayed` returns
cdef object OTHER = "other"         # anything: it may be passed on, not called

cdef set QUIET_TYPES = {
    int, float, complex, bool, str, bytes, bytearray, type(None), type(Ellipsis), range,
}
cdef frozenset CONTAINERS = frozenset({list, tuple, dict, set, frozenset})
# Where a pickle may find its functions and classes without running the user's code.
cdef frozenset QUIET_PACKAGES = frozenset({"numpy", "pandas"})
cdef frozenset QUIET_NAMES = frozenset({
    ("builtins", name) for name in (
        "bytearray", "complex", "frozenset", "object", "range", "set", "slice")
} | {
    ("fastjob._core.arrays", name) for name in (
        "file_array", "pandas_object", "result_array")
} | {("_codecs", "encode"), ("copyreg", "_reconstructor")})


def is_quiet_input(iterator):
    """Whether taking items from an iterator runs no code of the user in this thread.

    Parameters
    ----------
    iterator : iterator
        The input of a call.

    Returns
    -------
    bool
    """
    if is_watched():
        return False
    if type(iterator) is GeneratorType:
        return is_quiet_generator(iterator)
    return is_quiet_iterator(iterator)


cdef bint is_watched() except -1:
    """Whether hooks run between the instructions of this thread."""
    if sys.gettrace() is not None or sys.getprofile() is not None:
        return True
    monitoring = getattr(sys, "monitoring", None)
    return monitoring is not None and any(map(monitoring.get_tool, range(6)))


cdef bint is_quiet_iterator(object iterator) except -1:
    kind = type(iterator)
    if kind in QUIET_ITERATORS:
        return True
    if kind is zip:
        return all([is_quiet_iterator(inner) for inner in iterator.__reduce__()[1]])
    if kind is enumerate:
        return is_quiet_iterator(iterator.__reduce__()[1][0])
    return False


cdef bint is_quiet_generator(object generator) except -1:
    """Whether a generator is an expression that makes tasks and does nothing else."""
    frame = generator.gi_frame
    if frame is None:
        return True     # it has ended
    plan = plan_of(generator.gi_code)
    if plan is None or type(frame.f_globals) is not dict:
        return False
    unpacks, makers, paths = plan
    names = frame.f_locals
    iterator = names.get(".0")
    roots = {path: names.get(path[1]) if path[0] else frame.f_globals.get(path[1])
             for path in makers | paths}
    if type(names) is dict:
        names.clear()   # or the frame would keep the item that it has given
    for path, value in roots.items():
        for attribute in path[2:]:
            if not is_variable(value, attribute):
                return False
            value = vars(value)[attribute]
        if path in makers and value is not delayed:
            return False
    return is_quiet_iterator(iterator) and (not unpacks or type(iterator) in PAIRS)


cdef bint is_variable(object module, str name) except -1:
    """Whether a module's attribute is one of its variables, which runs nothing to read.

    A class derived from that of modules may have a property of that name.
    """
    if type(type(module)) is not type:
        return False
    for kind in type(module).__mro__:
        if kind is ModuleType:
            return name in vars(module)
        if name in vars(kind) or not OVERRIDES.isdisjoint(vars(kind)):
            return False
    return False


@functools.lru_cache(maxsize=64)
def plan_of(code):
    """What has to hold for a generator of this code to be quiet; None if it cannot be.

    Returns
    -------
    (unpacks, makers, paths) : (bool, set, set)
        Whether items are unpacked; what must be `delayed`; and what must be found in
        modules. Both as ``(is_free, name, *attributes)``.
    """
    if code.co_varnames[:1] != (".0",):
        return None     # not a generator expression
    try:
        return Plan().follow(code)
    except (Loud, IndexError):
        return None


class Loud(Exception):
    """An instruction that may run code of the user."""


class Plan:
    """Follows the instructions of a generator expression with kinds of values.

    There is one loop and no branch, so each instruction is met once.  Only free
    variables and globals can be `delayed`: a local is another item each time.
    """

    def __init__(self):
        self.stack = []
        self.unpacks = False
        self.makers = set()
        self.paths = set()

    def follow(self, code):
        import dis   # only for an input that has something to compare

        loop = None
        ended = False
        for step in dis.get_instructions(code):
            name = step.opname
            if name in NOTHING:
                continue
            if ended:
                if name not in ENDINGS:
                    raise Loud
            elif name == "FOR_ITER":
                if loop is not None or self.stack != [SOURCE]:
                    raise Loud
                loop = step.offset
                self.stack.append(ITEM)
            elif name in ("JUMP_BACKWARD", "JUMP_ABSOLUTE"):
                if step.argval != loop or self.stack != [SOURCE]:
                    raise Loud
                ended = True
            else:
                self.step(name, step.arg or 0, step.argval)
        if not ended:
            raise Loud
        return self.unpacks, self.makers, self.paths

    def step(self, name, arg, value):
        """One instruction inside the loop, or before it."""
        stack = self.stack
        if name in MOVES:
            if name == "LOAD_FAST" and value == ".0":
                stack.append(SOURCE)
            else:
                self.move(*MOVES[name])
        elif name == "LOAD_DEREF":
            stack.append((True, value))
        elif name == "LOAD_GLOBAL":
            self.push((False, value), sys.version_info >= (3, 11) and arg & 1)
        elif name in ("LOAD_ATTR", "LOAD_METHOD"):
            self.attribute(name, arg, value)
        elif name == "PUSH_NULL":
            stack.append(NULL_PLACE)
        elif name == "UNPACK_SEQUENCE":
            if not stack or stack[len(stack) - 1] is not ITEM:
                raise Loud
            self.unpacks = True
            self.move(1, arg)
        elif name in ("BUILD_TUPLE", "BUILD_LIST"):
            self.move(arg, 1)
        elif name == "BUILD_CONST_KEY_MAP":
            self.move(arg + 1, 1)
        elif name == "BUILD_MAP" and arg == 0:
            self.move(0, 1)
        else:
            self.call(name, arg)

    def pop(self, count):
        """Take values off the stack that are passed on."""
        at = len(self.stack) - count
        values = self.stack[max(at, 0):]
        if at < 0 or NULL_PLACE in values:
            raise Loud
        del self.stack[at:]

    def move(self, popped, pushed):
        self.pop(popped)
        self.stack += [OTHER] * pushed

    def push(self, value, null):
        """A value to be called, with the interpreter's mark on its side."""
        if not null:
            self.stack.append(value)
        elif sys.version_info >= (3, 13):
            self.stack += [value, NULL_PLACE]
        else:
            self.stack += [NULL_PLACE, value]

    def attribute(self, name, arg, value):
        """``fastjob.delayed``, ``numpy.linalg.norm``: attributes of modules."""
        owner = self.stack.pop()
        if type(owner) is not tuple:
            raise Loud
        path = (*owner, value)
        self.paths.add(path)
        self.push(path, name == "LOAD_METHOD"
                  or (sys.version_info >= (3, 12) and arg & 1))

    def call(self, name, arg):
        if name in ("CALL_KW", "CALL_FUNCTION_KW"):
            arg += 1    # the names
        elif name not in ("CALL", "CALL_FUNCTION", "CALL_METHOD"):
            raise Loud
        self.pop(arg)
        called = self.stack.pop()
        if not name.startswith("CALL_FUNCTION"):
            mark = self.stack.pop()
            if called is NULL_PLACE:
                called, mark = mark, called
            if mark is not NULL_PLACE:
                raise Loud
        if called is MAKER:
            self.stack.append(OTHER)
        elif type(called) is tuple and arg == 1:
            self.makers.add(called)
            self.stack.append(MAKER)
        else:
            raise Loud


def register_quiet(*kinds):
    """Say that pickling instances of these classes runs no code of the user."""
    QUIET_TYPES.update(kinds)


def is_quiet_value(value):
    """Whether pickling a value runs no code of the user.

    Parameters
    ----------
    value : object

    Returns
    -------
    bool
    """
    return pickles_quietly(value, 4)


cdef bint pickles_quietly(object value, int depth) except -1:
    cdef object kind = type(value)
    if kind in QUIET_TYPES:
        return True
    if kind in CONTAINERS:
        if depth == 0 or len(value) > MOST_MEMBERS:
            return False
        if kind is dict:
            for member in (<dict>value).values():
                if not pickles_quietly(member, depth - 1):
                    return False
        for member in value:
            if not pickles_quietly(member, depth - 1):
                return False
        return True
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return False
    if kind is numpy.ndarray or kind is numpy.memmap:
        return not value.dtype.hasobject
    if kind.__module__ == "numpy" and issubclass(kind, numpy.generic):
        return kind is not numpy.object_ and not value.dtype.hasobject
    pandas = sys.modules.get("pandas")
    if hasattr(pandas, "Series") and hasattr(pandas, "DataFrame"):
        if kind is pandas.DataFrame:
            return not value.attrs and all(
                [is_plain_dtype(numpy, dtype) for dtype in set(value.dtypes)]
                + [is_plain_axis(numpy, axis) for axis in value.axes])
        if kind is pandas.Series:
            return (not value.attrs and type(value.name) in QUIET_TYPES
                    and is_plain_dtype(numpy, value.dtype)
                    and is_plain_axis(numpy, value.index))
    return False


cdef bint is_plain_dtype(object numpy, object dtype) except -1:
    return isinstance(dtype, numpy.dtype) and not dtype.hasobject


cdef bint is_plain_axis(object numpy, object axis) except -1:
    if is_plain_dtype(numpy, axis.dtype):
        return True
    if len(axis) > MOST_LABELS:
        return False
    for label in axis:
        if type(label) not in QUIET_TYPES:
            return False
    return True


class Overhearing(Unpickler):
    """An unpickler that tells when code of the user is about to run.

    Parameters
    ----------
    tell : callable
    file, buffers
        As for `pickle.Unpickler`.
    """

    def __init__(self, tell, file, *, buffers=None):
        super().__init__(file, buffers=buffers)
        self.tell = tell

    def find_class(self, module, name):
        if (module.partition(".")[0] not in QUIET_PACKAGES
                and (module, name) not in QUIET_NAMES):
            self.tell()
        return super().find_class(module, name)
