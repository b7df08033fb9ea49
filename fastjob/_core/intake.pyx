"""Take tasks from the input of a call and put them into batches."""

cimport cython
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport int64_t

from fastjob._core.autobatch cimport AutoBatch
from fastjob._core.batch cimport Batch
from fastjob._core.capture cimport Capture, Constant
from fastjob._core.libc cimport now_ns
from fastjob._core.parts cimport plain
from fastjob._core.wire cimport LONG_BODY

from types import MethodType, ModuleType

from fastjob._core.capture import function_name, lacks_room, type_name
from fastjob._core.quiet import is_quiet_input
from fastjob.errors import TaskPicklingError

cdef extern from "Python.h":
    PyObject *PyIter_Next(object iterator)
    PyObject *PyErr_Occurred()
    void Py_DECREF(PyObject *o)

cdef enum:
    # What a batch may hold in newly copied buffers; in its stream, a `LONG_BODY`.
    COPIED_BYTES = 16 << 20

#: What an input gives that has no task at the moment and will have more: the loop
#: goes on to wait, and asks again when its `wake` has been called.
NOTHING_YET = object()
cdef object nothing_yet = NOTHING_YET


@cython.final
cdef class Intake:
    """The input of a call.

    Parameters
    ----------
    capture : Capture
    tuner : AutoBatch
        Is told what taking tasks costs.
    return_errors : bool
        What cannot be pickled is an error of its task alone, and left in `refused`.
    """

    def __init__(self, Capture capture, AutoBatch tuner, bint return_errors):
        self.capture = capture
        self.tuner = tuner
        self.return_errors = return_errors

    cdef int open(self, object tasks, bint streaming) except -1:
        self.tasks = tasks
        self.streaming = streaming
        return 0

    cdef int close(self) except -1:
        """Let go of the iterator; what it holds ends with it."""
        self.tasks = None
        return 0

    cdef Batch begin(self):
        """An empty batch for the next tasks."""
        cdef Batch batch = Batch.__new__(Batch)
        batch.items = []
        batch.first = self.taken
        batch.column = True
        return batch

    cdef bint fill(self, Batch batch, Py_ssize_t n, int64_t patience) except -1:
        """Add tasks to a batch until it has `n`, one is refused, or the input ends.

        False if it stopped before, because `patience` ns have passed.
        """
        cdef Py_ssize_t i = 0, last = 0
        cdef int64_t began = now_ns()
        cdef PyObject *raw
        cdef object task
        cdef Py_ssize_t stride = 8 if self.tuner.produce_ns < 20000 else 1
        cdef long long pickled = self.capture.bytes_pickled
        cdef long long copied = self.capture.sharer.store.copied_bytes
        cdef bint whole = True, accepted
        while batch.size() < n:
            if not self.capture.quiet:
                self.capture.next_epoch()
            raw = PyIter_Next(self.tasks)
            if raw is NULL:
                if PyErr_Occurred() is not NULL:
                    raise_pending()
                self.exhausted = True
                break
            task = <object>raw
            Py_DECREF(raw)
            if task is nothing_yet:
                break
            accepted = self.add(batch, task)
            task = None
            i += 1
            self.taken += 1
            if (not accepted or self.capture.bytes_pickled - pickled > LONG_BODY
                    or self.capture.sharer.store.copied_bytes - copied > COPIED_BYTES):
                break
            if i - last >= stride:
                last = i
                if now_ns() - began > patience:
                    whole = False
                    break
        if i:
            began = now_ns() - began
            batch.input_ns += began
            self.tuner.produced(i, began)
        return whole

    cdef bint add(self, Batch batch, object task) except -1:
        """Capture one task into a batch, in the cheapest form that holds it.

        False if it was refused; then the batch is as it was.
        """
        cdef object f, kwargs, item = None
        cdef tuple args
        cdef Constant constant
        cdef bint eager = False
        if type(task) is not tuple or PyTuple_GET_SIZE(task) != 3:
            task = checked_task(task, self.taken)
        f = <object>PyTuple_GET_ITEM(task, 0)
        item = <object>PyTuple_GET_ITEM(task, 1)
        args = item if type(item) is tuple else tuple(item)
        kwargs = <object>PyTuple_GET_ITEM(task, 2)
        if f is self.last_f:
            constant = self.last_constant
        else:
            if type(f) is MethodType and not isinstance(f.__self__, (type, ModuleType)):
                # The object may change between tasks, as an argument may.
                args = (f.__self__, *args)
                f = f.__func__
            if not callable(f):
                raise TypeError(
                    f"task {self.taken}: {type_name(f)} is not callable. A task is "
                    "delayed(function)(arguments) or a tuple (function, args, kwargs)")
            try:
                constant = self.function(f)
            except (TaskPicklingError, MemoryError, OSError) as error:
                return self.refuse(error)
            if self.taken > 0 and constant is not self.last_constant:
                self.several = True
            if constant is not None:
                self.last_f = f
                self.last_constant = constant
        if constant is None or kwargs or not plain_args(args):
            if not self.examined:
                self.examined = True
                self.capture.quiet = not self.streaming and is_quiet_input(self.tasks)
            item = None
            try:
                if constant is not None and not kwargs:
                    item = self.capture.with_copy(args)
                if item is None:
                    item = self.capture.arguments(
                        self.taken, f, f if constant is None else None, args, kwargs)
            except (TaskPicklingError, MemoryError, OSError) as error:
                return self.refuse(error)
            eager = True
        else:
            item = args

        if not batch.items:
            batch.function = constant
            if constant is None:
                batch.functions = []
        elif batch.functions is None and constant is not batch.function:
            batch.separate()
        if batch.column and (eager or PyTuple_GET_SIZE(args) != 1
                             or batch.functions is not None):
            batch.column = False
            batch.items = [(x,) for x in batch.items]
        if batch.functions is not None:
            batch.functions.append(constant)
        if batch.column:
            batch.items.append(<object>PyTuple_GET_ITEM(args, 0))
        else:
            batch.items.append(item)
        if eager:
            batch.take_refs(self.capture.refs, self.capture.blocks)
            self.capture.refs = None
            self.capture.blocks = None
        elif batch.refs is not None or batch.blocks is not None:
            batch.take_refs(None, None)
        return True

    cdef bint refuse(self, object error) except -1:
        """A task cannot be sent: end the call with the error, or keep it."""
        if not self.return_errors or not (
                isinstance(error, TaskPicklingError) or lacks_room(error)):
            raise error
        self.refused = error
        return False

    def function(self, f):
        """The constant of a callable, or None if it must travel with its tasks."""
        try:
            return self.capture.function(f)
        except Exception as error:
            if lacks_room(error):
                raise
            raise TaskPicklingError(self.taken, function_name(f), None,
                                    type_name(f), str(error)) from error


cdef int raise_pending() except -1:
    """Let an exception that a C call has set propagate."""
    return -1


cdef inline bint plain_args(tuple args) noexcept:
    cdef Py_ssize_t i
    for i in range(PyTuple_GET_SIZE(args)):
        if not plain(<object>PyTuple_GET_ITEM(args, i), 4):
            return False
    return True


def checked_task(task, index):
    """A task from whatever the input gave, or a TypeError that says what is wrong."""
    try:
        f, args, kwargs = task
    except (TypeError, ValueError):
        raise TypeError(
            f"task {index} is {type_name(task)}, not a task. Write "
            "delayed(function)(arguments) or a tuple (function, args, kwargs)"
        ) from None
    return f, tuple(args), kwargs
