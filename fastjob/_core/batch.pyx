"""Some tasks of a call, in the form in which they are sent.

A batch belongs to the one thread that runs the call.  It is in one place at a time:
being filled from the input, waiting to be sent, or with a worker.  It can be cut at any
task, since any task may have to go elsewhere: taken back for an idle worker, or run
again because its worker died.
"""

cimport cython
from cpython.list cimport PyList_GET_SIZE
from libc.stdint cimport int64_t

from fastjob._core.capture cimport Constant, Copied


@cython.final
cdef class Batch:
    cdef Py_ssize_t size(self) noexcept:
        return PyList_GET_SIZE(self.items)

    cdef int64_t index(self, Py_ssize_t at) except -1:
        return self.first + at if self.indices is None else self.indices[at]

    cdef Batch tail(self, Py_ssize_t start):
        """Cut off the tasks from `start` on, as a batch of their own."""
        cdef Batch other = Batch.__new__(Batch)
        other.items = self.items[start:]
        del self.items[start:]
        other.function = self.function
        other.column = self.column
        other.first = self.first + start
        other.deaths = self.deaths
        other.avoid = self.avoid
        if self.functions is not None:
            other.functions = self.functions[start:]
            del self.functions[start:]
        if self.indices is not None:
            other.indices = self.indices[start:]
            del self.indices[start:]
        if self.refs is not None:
            other.refs = self.refs[start:]
            del self.refs[start:]
        if self.blocks is not None:
            other.blocks = self.blocks[start:]
            del self.blocks[start:]
        return other

    cdef Batch only(self, Py_ssize_t at):
        """One task as a batch of its own: what kills a worker takes nobody along."""
        cdef Batch one = Batch.__new__(Batch)
        one.items = [self.items[at]]
        one.column = self.column
        one.function = self.function
        one.first = self.index(at)
        if self.functions is not None:
            one.functions = [self.functions[at]]
        if self.refs is not None:
            one.refs = [self.refs[at]]
        if self.blocks is not None:
            one.blocks = [self.blocks[at]]
        return one

    cdef int separate(self) except -1:
        """Give each task a function of its own: they are about to differ."""
        if self.functions is None:
            self.functions = [self.function] * self.size()
            self.function = None
        if self.column:
            self.items = [(item,) for item in self.items]
            self.column = False
        return 0

    cdef int take_refs(self, list refs, list blocks) except -1:
        """Note what the task just appended refers to."""
        cdef Py_ssize_t before = self.size() - 1
        if refs or self.refs is not None:
            if self.refs is None:
                self.refs = [None] * before
            self.refs.append(refs or None)
        if blocks or self.blocks is not None:
            if self.blocks is None:
                self.blocks = [None] * before
            self.blocks.append(blocks)
        return 0

    cdef tuple described(self, Py_ssize_t at, bint show_values):
        """Function and arguments of a task, shortened, for an error to name it."""
        from fastjob import failure, peek

        cdef Constant c = (
            self.function if self.functions is None else self.functions[at])
        f = None if c is None else c.value
        item = self.items[at]
        kwargs = {}
        if self.column:
            args = (item,)
        elif type(item) is tuple:
            args = tuple([(<Copied>x).value if type(x) is Copied else x for x in item])
        else:
            refs = {}
            for c in (self.refs[at] if self.refs is not None else None) or ():
                refs[c.number] = c.value
            f, args, kwargs = peek.task(item, f, refs)
        return failure.shorten_parts(f, args, kwargs, show_values)
