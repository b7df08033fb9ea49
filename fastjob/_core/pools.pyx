"""The native thread pools of this process: which they are, and what they say.

A pool is found by the file name of its library and by the symbols that read and set
its number of threads; `FAMILIES` is the whole list.  `loaded_pools` returns the same
tuple until the loader has added or removed a library, so "did anything change?" is an
identity test and costs about a microsecond.

Whom a setting reaches differs from library to library: the calling thread (OpenMP,
MKL's local setting, Accelerate), the whole process (OpenBLAS with its own threads,
TBB), or either, by version and by what it delegates to (BLIS, FlexiBLAS).  A `Pool`
says which; `threadpools` makes limits of it that can be undone.

A library that was recognised is never unloaded, see `libraries`; so a `Pool` lives
for ever, and there is one for each library.  Finding happens under ``_lock``, which is
renewed in a forked child, where the thread that held it does not exist.  It is
reentrant since the results of a call may be collected at an allocation made under it,
which undoes the limits of that call.
"""

import os
from _thread import RLock

from fastjob._core.forks import register_at_fork

from libc.stdint cimport intptr_t
from libc.stdlib cimport calloc, free

cimport cython
from fastjob._core.cpu cimport cpu_count
from fastjob._core.libraries cimport Loaded, open_loaded, scan, symbol

#: OpenBLAS is built with many decorations of its symbols: scipy's prefix, and suffixes
#: that tell 64-bit integers apart.
cdef tuple OPENBLAS_AFFIXES = tuple([
    (prefix, suffix)
    for prefix in ("", "scipy_")
    for suffix in ("", "64_", "_64", "64", "_64_", "_")
])

# oneTBB has no C interface; these names are its binary interface, which is fixed
# since compiled programs hold calls to them.
cdef str TBB_ACTIVE = "_ZN3tbb6detail2r127global_control_active_valueEi"
cdef str TBB_CREATE = "_ZN3tbb6detail2r16createERNS0_2d114global_controlE"
cdef str TBB_DESTROY = "_ZN3tbb6detail2r17destroyERNS0_2d114global_controlE"

#: internal_api, user_api, beginnings of file names, getter, setter, setter that
#: reaches all threads ("" where that is the setter), per thread, process-wide.
cdef tuple FAMILIES = (
    ("openblas", "blas", ("libopenblas", "libscipy_openblas", "openblas"),
     "openblas_get_num_threads", "openblas_set_num_threads", "", False, True),
    ("blis", "blas", ("libblis",),
     "bli_thread_get_num_threads", "bli_thread_set_num_threads", "", True, True),
    ("mkl", "blas", ("libmkl_rt", "mkl_rt"),
     "MKL_Get_Max_Threads", "MKL_Set_Num_Threads_Local", "MKL_Set_Num_Threads",
     True, False),
    ("openmp", "openmp", ("libiomp", "libgomp", "libomp", "vcomp"),
     "omp_get_max_threads", "omp_set_num_threads", "", True, False),
    ("flexiblas", "blas", ("libflexiblas",),
     "flexiblas_get_num_threads", "flexiblas_set_num_threads", "", True, True),
    ("accelerate", "blas", ("accelerate", "libblas.dylib"),
     "BLASGetThreading", "BLASSetThreading", "", True, False),
    ("tbb", "tbb", ("libtbb",), TBB_ACTIVE, TBB_CREATE, TBB_DESTROY, False, True),
)

cdef dict MKL_LAYERS = {0: "intel", 1: "sequential", 2: "pgi", 3: "gnu", 4: "tbb"}

ctypedef int (*get_int)() noexcept nogil
ctypedef int (*get_of_int)(int) noexcept nogil
ctypedef void (*set_int)(int) noexcept nogil
ctypedef void (*set_long)(long long) noexcept nogil
ctypedef const char *(*get_text)() noexcept nogil
ctypedef const char *(*get_text_of_int)(int) noexcept nogil
ctypedef void (*fill_text)(char *, int) noexcept nogil
ctypedef int (*fill_text_at)(char *, size_t, int) noexcept nogil
ctypedef int (*fill_text_size)(char *, size_t) noexcept nogil
ctypedef void (*get_version)(int *, int *, int *) noexcept nogil
ctypedef size_t (*tbb_active)(int) noexcept nogil
ctypedef void (*tbb_control)(TbbControl *) noexcept nogil

cdef struct TbbControl:                    # tbb::global_control
    size_t value
    intptr_t reserved
    int parameter                          # 0: max_allowed_parallelism

_lock = RLock()
_pools = {}                                # loader's name -> Pool, or None: not one
_recent = {}                               # "loaded" -> (Loaded, tuple of pools)


def _renew_lock():
    global _lock
    _lock = RLock()


register_at_fork(after_in_child=_renew_lock)


@cython.final
cdef class Pool:
    """One native thread pool.

    Attributes
    ----------
    user_api : str
        ``"blas"``, ``"openmp"`` or ``"tbb"``.
    internal_api : str
        The library: ``"openblas"``, ``"mkl"``, ``"blis"``, ...
    prefix : str
        The beginning of the file name that it was recognised by.
    filepath : str
        The file of the library, symbolic links resolved.
    version : str or None
        Its version, where the library tells it.
    threading_layer, architecture : str or None
        What the library runs its threads with and was compiled for; None for
        libraries that have no such notion.
    per_thread, process_wide : bool
        Whether setting the number reaches the calling thread or all threads. Both
        are true where that depends on the version of the library.
    """

    def __cinit__(self):
        self.claims = {}

    cdef void *find(self, str name) noexcept:
        cdef bytes encoded = name.encode()
        return symbol(self.handle, encoded)

    cdef str text(self, str name):
        """What a function without arguments says, or None."""
        cdef void *function = self.find(name)
        cdef const char *said = NULL
        if function != NULL:
            said = (<get_text>function)()
        return None if said == NULL else (<bytes>said).decode("utf-8", "replace")

    cdef int flag(self, str name):
        cdef void *function = self.find(name)
        return 0 if function == NULL else (<get_int>function)()

    # ------------------------------------------------------------- threads

    @property
    def num_threads(self):
        """The threads it would use for a call from this thread."""
        return self.read()

    cdef int read(self) except -1:
        cdef int threads
        cdef size_t active
        if self.internal_api == "tbb":
            active = (<tbb_active>self.getter)(0)
            return max(<int>active, 1)
        with nogil:
            threads = (<get_int>self.getter)()
        if self.internal_api == "accelerate":
            return 1 if threads == 1 else cpu_count()
        # BLIS and FlexiBLAS say -1 where nothing was set, and then run one thread.
        return max(threads, 1)

    cdef int write(self, int threads) except -1:
        """Set the number for this thread, or for all where it is process-wide."""
        if self.internal_api == "tbb":
            return self.write_tbb(threads)
        if self.internal_api == "accelerate":
            threads = 1 if threads == 1 else 0     # the names of its two modes
        with nogil:
            if self.takes_long:
                (<set_long>self.setter)(threads)
            else:
                (<set_int>self.setter)(threads)
        return 0

    cdef int write_tbb(self, int threads) except -1:
        cdef TbbControl *control
        cdef TbbControl *before
        with _lock:
            control = <TbbControl *>calloc(1, sizeof(TbbControl))
            if control == NULL:
                raise MemoryError("no memory for a limit of TBB")
            control.value = threads
            before = <TbbControl *>self.tbb
            with nogil:
                # The least of the controls that exist holds: the new one first, so
                # that there is no moment without.
                (<tbb_control>self.setter)(control)
                if before != NULL:
                    (<tbb_control>self.set_all)(before)
            self.tbb = control
            free(before)
        return 0

    def set_num_threads(self, int threads):
        """Set the number for this thread, or for all where it is process-wide.

        Parameters
        ----------
        threads : int
            At least 1.
        """
        self.write(threads)

    def set_everywhere(self, int threads):
        """Set the number for this thread and, where possible, all others.

        Parameters
        ----------
        threads : int
            At least 1.
        """
        if self.internal_api == "mkl" and self.set_all != NULL:
            (<set_int>self.set_all)(threads)
            # A thread's own number would hide the common one; 0 takes it away.
            self.write(0)
        else:
            self.write(threads)

    # ---------------------------------------------------------------- info

    def info(self):
        """Return what is known about the pool as a dict, as threadpoolctl does."""
        cdef dict found = {
            "user_api": self.user_api,
            "internal_api": self.internal_api,
            "num_threads": self.read(),
            "prefix": self.prefix,
            "filepath": self.filepath,
            "version": self.version,
        }
        if self.internal_api in ("openblas", "blis", "mkl"):
            found["threading_layer"] = self.threading_layer
        if self.internal_api in ("openblas", "blis"):
            found["architecture"] = self.architecture
        if self.internal_api == "flexiblas":
            found["available_backends"] = self.flexiblas_list("flexiblas_list")
            found["loaded_backends"] = self.flexiblas_list("flexiblas_list_loaded")
            found["current_backend"] = self.flexiblas_current()
        return found

    cdef int describe(self) except -1:
        """Find out what the library tells about itself; called once."""
        if self.internal_api == "openblas":
            self.describe_openblas()
        elif self.internal_api == "blis":
            self.describe_blis()
        elif self.internal_api == "mkl":
            self.describe_mkl()
        elif self.internal_api == "flexiblas":
            self.version = self.flexiblas_version()
        elif self.internal_api == "tbb":
            self.version = self.text("TBB_runtime_version")
        return 0

    cdef int describe_openblas(self) except -1:
        cdef void *function
        for prefix, suffix in OPENBLAS_AFFIXES:
            if self.find(f"{prefix}openblas_get_num_threads{suffix}") != NULL:
                break
        config = (self.text(f"{prefix}openblas_get_config{suffix}") or "").split()
        if len(config) > 1 and config[0] == "OpenBLAS":
            self.version = config[1]           # older than 0.3.4 do not tell it
        self.architecture = self.text(f"{prefix}openblas_get_corename{suffix}")
        self.threading_layer = "unknown"
        function = self.find(f"{prefix}openblas_get_parallel{suffix}")
        if function != NULL:
            layer = (<get_int>function)()
            self.threading_layer = {1: "pthreads", 2: "openmp"}.get(layer, "disabled")
        if self.threading_layer == "openmp":
            # Each thread that calls it has an OpenMP team of its own, and its own
            # setter is ignored by many versions: OpenMP's is the one that counts.
            self.use("omp_get_max_threads", "omp_set_num_threads")
        return 0

    cdef int use(self, str getter, str setter) except -1:
        """Prefer OpenMP's functions, if the library is linked to them."""
        cdef void *read = self.find(getter)
        cdef void *write = self.find(setter)
        if read != NULL and write != NULL:
            self.getter, self.setter = read, write
            self.per_thread, self.process_wide = True, False
        return 0

    cdef int describe_blis(self) except -1:
        cdef void *query = self.find("bli_arch_query_id")
        cdef void *name = self.find("bli_arch_string")
        cdef const char *said
        self.takes_long = True                 # its dim_t
        self.version = self.text("bli_info_get_version_str")
        if self.flag("bli_info_get_enable_openmp"):
            self.threading_layer = "openmp"
        elif self.flag("bli_info_get_enable_pthreads"):
            self.threading_layer = "pthreads"
        else:
            self.threading_layer = "disabled"
        if query != NULL and name != NULL:
            said = (<get_text_of_int>name)((<get_int>query)())
            if said != NULL:
                self.architecture = (<bytes>said).decode("utf-8", "replace")
        return 0

    cdef int describe_mkl(self) except -1:
        cdef char buffer[256]
        cdef void *fill = self.find("MKL_Get_Version_String")
        cdef void *layer = self.find("MKL_Set_Threading_Layer")
        if fill != NULL:
            buffer[0] = buffer[255] = 0
            (<fill_text>fill)(buffer, 255)
            said = (<bytes>buffer).decode("utf-8", "replace").strip()
            _, found, rest = said.partition("Version ")
            self.version = rest.split(" ")[0] if found else said
        self.threading_layer = "not specified"
        if layer != NULL:
            # A layer that does not exist leaves it as it is, and returns it.
            self.threading_layer = MKL_LAYERS.get(
                (<get_of_int>layer)(-1), "not specified"
            )
        return 0

    cdef str flexiblas_version(self):
        cdef void *function = self.find("flexiblas_get_version")
        cdef int major = 0, minor = 0, patch = 0
        if function == NULL:
            return None
        (<get_version>function)(&major, &minor, &patch)
        return f"{major}.{minor}.{patch}"

    cdef list flexiblas_list(self, str name):
        cdef void *function = self.find(name)
        cdef char buffer[1024]
        cdef int position, count
        cdef list found = []
        if function == NULL:
            return None
        count = (<fill_text_at>function)(NULL, 0, 0)
        for position in range(count):
            buffer[0] = buffer[1023] = 0
            (<fill_text_at>function)(buffer, 1023, position)
            backend = (<bytes>buffer).decode("utf-8", "replace")
            if backend != "__FALLBACK__":      # an entry that is no backend
                found.append(backend)
        return found

    cdef str flexiblas_current(self):
        cdef void *function = self.find("flexiblas_current_backend")
        cdef char buffer[1024]
        if function == NULL:
            return None
        buffer[0] = buffer[1023] = 0
        (<fill_text_size>function)(buffer, 1023)
        return (<bytes>buffer).decode("utf-8", "replace")


# -------------------------------------------------------------------- finding

cdef Pool recognise(str name):
    """The pool of the library that the loader calls ``name``, or None."""
    cdef Pool pool
    filepath = os.path.realpath(name)
    filename = os.path.basename(filepath).lower()
    for (internal_api, user_api, prefixes, getter, setter, set_all,
         per_thread, process_wide) in FAMILIES:
        for prefix in prefixes:
            if not filename.startswith(prefix):
                continue
            pool = Pool()
            pool.handle = open_loaded(os.fsencode(name))
            if pool.handle == NULL:            # unloaded in the meantime
                return None
            pool.user_api, pool.internal_api = user_api, internal_api
            pool.prefix, pool.filepath = prefix, filepath
            pool.per_thread, pool.process_wide = per_thread, process_wide
            affixes = OPENBLAS_AFFIXES if internal_api == "openblas" else (("", ""),)
            for before, after in affixes:
                pool.getter = pool.find(before + getter + after)
                pool.setter = pool.find(before + setter + after)
                if pool.getter != NULL and pool.setter != NULL:
                    pool.set_all = pool.find(set_all) if set_all else NULL
                    pool.describe()
                    return pool
    return None


def loaded_pools():
    """Return the thread pools that are loaded now, as a tuple of `Pool`.

    The same tuple is returned as long as no library is loaded or unloaded.
    """
    cdef Loaded seen
    entry = _recent.get("loaded")
    if entry is not None:
        seen = entry[0]
        if seen.is_current():
            return entry[1]
    with _lock:
        seen = scan()
        for name in seen.names:
            if name not in _pools:
                _pools.setdefault(name, recognise(name))
        found = tuple([_pools[name] for name in seen.names
                       if _pools[name] is not None])
        if entry is not None and entry[1] == found:
            found = entry[1]
        _recent["loaded"] = (seen, found)
    return found
