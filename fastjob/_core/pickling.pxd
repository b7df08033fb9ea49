cdef object load(object data, object listen=*, dict names=*)
cdef bytes dump_plain(object value, object keep, object reducers)
cdef bytes dump_cloud(object value, object keep, object reducers, object refer,
                      dict names=*)
cdef bytes dump_apart(list values, object keep, object reducers)
cdef list load_apart(object data, Py_ssize_t n, object listen=*)
cdef object cloud_class()
cdef bint mentions_main(bytes data) noexcept
cdef bint names_suffice() except -1
