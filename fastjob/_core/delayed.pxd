# A task is the tuple (function, args, kwargs).  Engines take whatever the user's
# iterable yields through as_task, and run it with run_task.

from cpython.dict cimport PyDict_CheckExact, PyDict_Size
from cpython.object cimport PyObject, PyObject_Call
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_CheckExact, PyTuple_GET_ITEM, PyTuple_GET_SIZE


cdef extern from "Python.h":
    object call_no_keywords "PyObject_Call"(object function, object args, void *null)


cdef tuple repair_task(object item, long long index)


# The task that `item` stands for: itself in the common case.
cdef inline tuple as_task(object item, long long index):
    if (PyTuple_CheckExact(item) and PyTuple_GET_SIZE(item) == 3
            and PyTuple_CheckExact(<object>PyTuple_GET_ITEM(item, 1))
            and PyDict_CheckExact(<object>PyTuple_GET_ITEM(item, 2))):
        return <tuple>item
    return repair_task(item, index)


# Call the task's function.  An empty dict of keywords is not passed on: callees
# need not look into it.
cdef inline object run_task(tuple task):
    cdef object function = <object>PyTuple_GET_ITEM(task, 0)
    cdef object args = <object>PyTuple_GET_ITEM(task, 1)
    cdef object kwargs = <object>PyTuple_GET_ITEM(task, 2)
    if PyDict_Size(kwargs) == 0:
        return call_no_keywords(function, args, NULL)
    return PyObject_Call(function, args, kwargs)
