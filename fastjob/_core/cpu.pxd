cdef class CpuLimits:
    cdef readonly int count
    cdef readonly str bounded_by
    cdef readonly int online
    cdef readonly int affinity
    cdef readonly object quota             # float or None
    cdef readonly object quota_file        # str or None
    cdef readonly dict environment         # {variable: int}
    cdef readonly object interpreter       # int or None
    cdef readonly int physical_cores


cdef class CpuProbe:
    cdef readonly str root
    cdef object _affinity                  # frozenset, or None: ask the system
    cdef object _environment               # mapping, or None: os.environ
    cdef dict _recent                      # {"files": (deadline, what they say)}
    cdef dict _cores                       # {affinity mask: cores}

    cpdef int count(self, bint only_physical_cores=*) except -1
    cdef CpuLimits _limits(self, bint only_physical_cores)
    cdef object _mask(self)
    cdef object _variable(self, str name)
    cdef object _variables(self)
    cdef object _interpreter_limit(self)
    cdef tuple _from_files(self)
    cdef object _read(self, str path)
    cdef tuple _read_quota(self)
    cdef tuple _quota_of(self, int version, str folder)
    cdef list _cgroup_folders(self)
    cdef dict _cgroup_mounts(self)
    cdef int _physical(self, mask) except -1
    cdef object _count_cores(self, mask)
    cdef object _core_of(self, cpu)


cpdef int cpu_count(bint only_physical_cores=*) except -1
