"""What one call of ``Parallel`` asks for, and what has happened to it so far.

A ``Call`` is made by the public layer, handed to a backend, and never changed
afterwards.  ``Counters`` belongs to the engine that runs the call.
"""

cimport cython

cdef double LONGEST = 1e9   # seconds; what is longer is no limit, and fits no integer


@cython.final
cdef class Counters:
    """Counts of one call; written by its engine, readable at any time."""


@cython.final
cdef class Call:
    """The options of one call, checked and resolved.

    Parameters
    ----------
    n_jobs : int
        Workers to use, at least 1.
    batch_size : int
        Tasks a batch; 0 leaves the choice to the autotuner.
    ahead : int
        How far the input may be consumed ahead of completion; 0 is no limit.
    ahead_in_batches : bool
        Whether ``ahead`` counts batches (the default window) or tasks (a window
        that the user asked for).
    timeout : float
        Seconds a single task may run; 0, or more than thirty years, is no limit.
    return_errors : bool
        A failed task yields a `TaskError` in its place instead of ending the call.
    retries : int
        How many more times a failed task is run.
    ordered : bool
        Whether a stream of results keeps the order of the tasks.
    max_nbytes : int
        Size in bytes from which a buffer travels through shared memory; -1 is never.
    mmap_mode : str or None
        Mode in which a task sees a large array argument.
    temp_folder : str or None
        Folder for shared segments; None is anonymous memory.
    inner_max_num_threads : int or None
        Native threads a worker may use; None is an equal share of the cores.
    nested : object
        Picklable configuration that a nested call starts from.
    show_values : bool
        Whether tracebacks show the values of parameters.
    forward_logs : bool
        Whether warnings and log records of worker processes are shown by the caller.
    on_batch : callable or None
        Called as ``on_batch(n_tasks)`` in the thread that runs the engine each time
        some tasks have completed.  None costs nothing.
    report_interval : float
        Seconds between two of these calls; an engine that completes single tasks
        reports them together.  0 is a call for each batch, or task.
    timeline : object or None
        Recorder of what happened when.
    options : dict or None
        Options of the backend (``initializer``, ``idle_worker_timeout``, ...).
    """

    def __init__(self, int n_jobs, *, long long batch_size=0, long long ahead=0,
                 bint ahead_in_batches=True, double timeout=0.0,
                 bint return_errors=False, int retries=0, bint ordered=True,
                 long long max_nbytes=1 << 20, mmap_mode="r", temp_folder=None,
                 inner_max_num_threads=None, nested=None, bint show_values=True,
                 bint forward_logs=True, on_batch=None, double report_interval=0.0,
                 timeline=None, options=None):
        self.n_jobs = n_jobs
        self.batch_size = batch_size
        self.ahead = ahead
        self.ahead_in_batches = ahead_in_batches
        self.timeout = timeout if timeout < LONGEST else 0.0
        self.return_errors = return_errors
        self.retries = retries
        self.ordered = ordered
        self.max_nbytes = max_nbytes
        self.mmap_mode = mmap_mode
        self.temp_folder = temp_folder
        self.inner_max_num_threads = inner_max_num_threads
        self.nested = nested
        self.show_values = show_values
        self.forward_logs = forward_logs
        self.on_batch = on_batch
        self.report_interval = report_interval
        self.timeline = timeline
        self.options = {} if options is None else dict(options)
        self.counters = Counters()
