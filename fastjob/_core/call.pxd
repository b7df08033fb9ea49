# The contract between the public layer, the backends and the engines: what one
# call of Parallel asks for, and what has happened to it so far.
#
# Writer of Call: the public layer, before the call starts; read-only afterwards.
# Writer of Counters: the engine that runs the call, from one thread at a time.
# Reader of Counters: anybody, at any time (single 64-bit loads).


cdef class Counters:
    cdef public long long dispatched_tasks
    cdef public long long dispatched_batches
    cdef public long long completed_tasks
    cdef public long long failed_tasks
    cdef public long long retried_tasks


cdef class Call:
    cdef readonly int n_jobs
    cdef readonly long long batch_size
    cdef readonly long long ahead
    cdef readonly bint ahead_in_batches
    cdef readonly double timeout
    cdef readonly bint return_errors
    cdef readonly int retries
    cdef readonly bint ordered
    cdef readonly long long max_nbytes
    cdef readonly object mmap_mode
    cdef readonly object temp_folder
    cdef readonly object inner_max_num_threads
    cdef readonly object nested
    cdef readonly bint show_values
    cdef readonly bint forward_logs
    cdef readonly object on_batch
    cdef readonly double report_interval
    cdef readonly object timeline
    cdef readonly dict options
    cdef readonly Counters counters
