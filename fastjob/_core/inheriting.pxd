# Views that forked children of this process have too.

# Whether a fork is going on: a view that is opened now may be inherited.
cdef bint is_forking() noexcept nogil

# Whether some child may read through views that are gone here.
cdef bint has_heirs() noexcept nogil

# Release what was inherited by children that have ended; whether others may end yet.
cdef bint settle() noexcept nogil
