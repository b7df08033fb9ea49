# What the shared-memory modules need of the C library and the kernel, in one place.

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <pthread.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/stat.h>
    #include <sys/types.h>
    #include <time.h>
    #include <unistd.h>

    #ifndef MADV_POPULATE_READ
    #define MADV_POPULATE_READ 22
    #endif
    #ifndef MADV_REMOVE
    #define MADV_REMOVE -1      /* refused by the kernel: memory is not given back */
    #endif

    static inline int shm_memfd(const char *name) {
    #ifdef MFD_CLOEXEC
        const char *wanted = getenv("FASTJOB_MEMFD");
        if (wanted == NULL || strcmp(wanted, "0") != 0) {
            int fd = memfd_create(name, MFD_CLOEXEC);
            /* Nobody else can reach it; were it reached, it would still be ours. */
            if (fd >= 0)
                fchmod(fd, 0600);
            return fd;
        }
    #endif
        (void)name;
        errno = ENOSYS;
        return -1;
    }

    static inline unsigned char shm_load(unsigned char *p) {
        return __atomic_load_n(p, __ATOMIC_ACQUIRE);
    }
    static inline void shm_store(unsigned char *p, unsigned char value) {
        __atomic_store_n(p, value, __ATOMIC_SEQ_CST);
    }
    static inline int shm_swap(unsigned char *p, unsigned char old,
                               unsigned char value) {
        return __atomic_compare_exchange_n(p, &old, value, 0, __ATOMIC_SEQ_CST,
                                           __ATOMIC_ACQUIRE);
    }
    static inline unsigned int shm_add(unsigned int *p, int value) {
        return __atomic_add_fetch(p, value, __ATOMIC_SEQ_CST);
    }
    static inline unsigned int shm_count(unsigned int *p) {
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);
    }
    static inline unsigned long long shm_load64(unsigned long long *p) {
        return __atomic_load_n(p, __ATOMIC_ACQUIRE);
    }
    static inline void shm_store64(unsigned long long *p, unsigned long long value) {
        __atomic_store_n(p, value, __ATOMIC_RELEASE);
    }
    static inline void *shm_exchange(void **p, void *value) {
        return __atomic_exchange_n(p, value, __ATOMIC_ACQ_REL);
    }
    static inline int shm_swap_pointer(void **p, void *old, void *value) {
        return __atomic_compare_exchange_n(p, &old, value, 0, __ATOMIC_RELEASE,
                                           __ATOMIC_RELAXED);
    }
    static inline double shm_clock(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
    }
    """
    ctypedef long off_t
    ctypedef struct pthread_mutex_t:
        pass
    cdef struct pollfd:
        int fd
        short events
        short revents

    int errno
    int EINTR, ENOSPC, ENOMEM, EFBIG, EDQUOT
    int POLLHUP, POLLIN
    int PROT_READ, PROT_WRITE
    int MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    void *MAP_FAILED
    int MADV_POPULATE_READ, MADV_REMOVE

    int poll(pollfd *fds, unsigned long count, int timeout) noexcept nogil
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes) noexcept nogil
    int pthread_mutex_lock(pthread_mutex_t *mutex) noexcept nogil
    int pthread_mutex_unlock(pthread_mutex_t *mutex) noexcept nogil
    int ftruncate(int fd, off_t size) noexcept nogil
    Py_ssize_t pwrite(int fd, const void *source, size_t size,
                      off_t offset) noexcept nogil
    int close(int fd) noexcept nogil
    void *mmap(void *address, size_t size, int protection, int flags, int fd,
               off_t offset) noexcept nogil
    int munmap(void *address, size_t size) noexcept nogil
    int madvise(void *address, size_t size, int advice) noexcept nogil

    int shm_memfd(const char *name) noexcept nogil
    unsigned char shm_load(unsigned char *p) noexcept nogil
    void shm_store(unsigned char *p, unsigned char value) noexcept nogil
    # true if *p was `old` and is now `value`
    bint shm_swap(unsigned char *p, unsigned char old,
                  unsigned char value) noexcept nogil
    # the value after the addition
    unsigned int shm_add(unsigned int *p, int value) noexcept nogil
    unsigned int shm_count(unsigned int *p) noexcept nogil
    unsigned long long shm_load64(unsigned long long *p) noexcept nogil
    void shm_store64(unsigned long long *p, unsigned long long value) noexcept nogil
    void *shm_exchange(void **p, void *value) noexcept nogil
    bint shm_swap_pointer(void **p, void *old, void *value) noexcept nogil
    double shm_clock() noexcept nogil  # seconds, monotonic
