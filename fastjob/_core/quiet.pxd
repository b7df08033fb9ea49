# Where, between two tasks, no code of the user can have run.

# Whether pickling a value runs no code of the user.
cdef bint pickles_quietly(object value, int depth) except -1
