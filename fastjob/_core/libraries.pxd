cdef class Loaded:
    cdef readonly tuple names              # str, as the loader knows the libraries
    cdef unsigned long long added          # the loader's counters when it was taken
    cdef unsigned long long removed

    cdef bint is_current(self) noexcept


cdef Loaded scan()
cdef void *open_loaded(bytes name) noexcept
cdef void *symbol(void *handle, const char *name) noexcept
