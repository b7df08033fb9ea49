# What the engine asks of the system for sockets and time; see `system.h`.

from libc.stdint cimport int64_t


cdef extern from "fastjob/_core/system.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    short POLLIN
    short POLLOUT
    short POLLHUP
    enum:
        FJ_MAX_FDS
        DESCRIPTORS_TRAVEL

    int64_t now_ns() noexcept
    int64_t cpu_ns() noexcept
    int64_t coarse_ns() noexcept

    int poll(pollfd *fds, unsigned long n, int ms) noexcept
    int fj_poll(pollfd *fds, unsigned long n, int64_t ns) noexcept
    int fj_prepare(int sock) noexcept
    void fj_close(int sock) noexcept
    int fj_fetch(int64_t process, int fd) noexcept
    ssize_t fj_send(int sock, const void *data, size_t size,
                    const int *fds, int n_fds) noexcept
    ssize_t fj_recv(int sock, void *data, size_t size,
                    int *fds, int *n_fds, bint wait) noexcept
    void fj_ring(int fd) noexcept
    void fj_silence(int fd) noexcept
