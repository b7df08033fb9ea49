from libc.stdint cimport int64_t


cdef class AutoBatch:
    cdef readonly long long size            # tasks the next batch should have
    cdef readonly double task_ns            # recent mean duration of a task
    cdef readonly double produce_ns         # recent mean cost of taking one task
    cdef readonly double task_bytes         # recent mean size of arguments plus result
    cdef readonly long long seen            # tasks recorded so far
    cdef readonly long long fixed           # the user's own batch size; 0 is automatic
    cdef readonly long long probe           # tasks sent one by one before any guess
    cdef void ran(self, long long n, int64_t busy_ns, long long n_bytes) noexcept
    cdef void produced(self, long long n, int64_t spent_ns) noexcept
    cdef readonly double busy_ns            # of all workers, so far
    cdef int n_jobs
    cdef void expect(self, double each_ns) noexcept
    cdef void _choose(self) noexcept
