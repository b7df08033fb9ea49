cpdef double recalled(object f) except? -1
cpdef int remember(object f, double task_ns) except -1
