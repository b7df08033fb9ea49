# What the engine asks of the system for shared memory; see `system.h`.

from libc.stdint cimport int64_t


cdef extern from "fastjob/_core/system.h" nogil:
    ctypedef struct shm_mutex:
        pass
    int errno
    int EINTR, ENOSPC, ENOMEM

    void shm_init(shm_mutex *mutex) noexcept
    void shm_lock(shm_mutex *mutex) noexcept
    void shm_unlock(shm_mutex *mutex) noexcept

    int shm_create(const char *name, size_t size) noexcept
    int64_t shm_size(int fd) noexcept
    void shm_close(int fd) noexcept
    void *shm_map(int fd, size_t offset, size_t size, bint private_) noexcept
    int shm_mapped(int fd) noexcept
    void *shm_zeros(size_t size) noexcept
    void shm_unmap(void *address, size_t size) noexcept
    Py_ssize_t shm_fill(int fd, size_t offset, void *address, const void *source,
                        size_t size) noexcept
    void shm_populate(void *address, size_t size) noexcept
    void shm_remove(void *address, size_t size) noexcept
    void shm_machine(unsigned long long *total, unsigned long long *available) noexcept

    unsigned char shm_load(unsigned char *p) noexcept
    void shm_store(unsigned char *p, unsigned char value) noexcept
    # true if *p was `old` and is now `value`
    bint shm_swap(unsigned char *p, unsigned char old, unsigned char value) noexcept
    # the value after the addition
    unsigned int shm_add(unsigned int *p, int value) noexcept
    unsigned int shm_count(unsigned int *p) noexcept
    unsigned long long shm_load64(unsigned long long *p) noexcept
    void shm_store64(unsigned long long *p, unsigned long long value) noexcept
    void *shm_exchange(void **p, void *value) noexcept
    bint shm_swap_pointer(void **p, void *old, void *value) noexcept
