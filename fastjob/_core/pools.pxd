cdef class Pool:
    cdef readonly str user_api
    cdef readonly str internal_api
    cdef readonly str prefix
    cdef readonly str filepath
    cdef readonly str version
    cdef readonly str threading_layer
    cdef readonly str architecture
    cdef readonly bint per_thread
    cdef readonly bint process_wide
    cdef bint takes_long                   # the setter's argument is 64 bits wide
    cdef void *handle                      # kept open: the pointers stay valid
    cdef void *getter
    cdef void *setter
    cdef void *set_all                     # or NULL; TBB: ends a control
    cdef void *tbb                         # the control of TBB that holds now
    cdef dict claims                       # owner -> threads; under _lock
    cdef int base                          # threads before the first claim; _lock

    cdef void *find(self, str name) noexcept
    cdef str text(self, str name)
    cdef int flag(self, str name)
    cdef int read(self) except -1
    cdef int write(self, int threads) except -1
    cdef int write_tbb(self, int threads) except -1
    cdef int describe(self) except -1
    cdef int describe_openblas(self) except -1
    cdef int use(self, str getter, str setter) except -1
    cdef int describe_blis(self) except -1
    cdef int describe_mkl(self) except -1
    cdef str flexiblas_version(self)
    cdef list flexiblas_list(self, str name)
    cdef str flexiblas_current(self)
