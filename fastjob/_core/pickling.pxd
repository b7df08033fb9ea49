cdef object load(object data)
cdef bytes dump_plain(object value, object keep, object reducers)
cdef bytes dump_cloud(object value, object keep, object reducers, object refer)
cdef object cloud_class()
cdef bint mentions_main(bytes data) noexcept
