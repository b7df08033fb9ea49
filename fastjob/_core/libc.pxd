# C declarations of the engine: the kernel and libc calls, in one place.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long nfds, int timeout)
    short POLLIN
    short POLLOUT
    short POLLERR
    short POLLHUP
    short POLLNVAL


cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *result)
    int CLOCK_MONOTONIC
    int CLOCK_PROCESS_CPUTIME_ID


cdef extern from "<sys/socket.h>" nogil:
    int SHUT_RDWR
    int MSG_DONTWAIT
    int shutdown(int fd, int how)


cdef extern from "<unistd.h>" nogil:
    int close(int fd)


cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    #define FJ_MAX_FDS 64

    /* poll with a time in ns, rounded up to ms where the system has no finer one;
       -1 is for ever. */
    static int fj_poll(struct pollfd *fds, unsigned long n, int64_t ns)
    {
    #ifdef __linux__
        struct timespec left = { ns / 1000000000, ns % 1000000000 };
        return ppoll(fds, n, ns < 0 ? NULL : &left, NULL);
    #else
        return poll(fds, n, ns < 0 ? -1 : (int)((ns + 999999) / 1000000));
    #endif
    }

    #ifndef MSG_CMSG_CLOEXEC
    #define MSG_CMSG_CLOEXEC 0
    #endif
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0      /* Python ignores SIGPIPE */
    #endif

    /* Send bytes, and descriptors with the first of them.  -1 and errno. */
    static ssize_t fj_send(int sock, const void *data, size_t size,
                           const int *fds, int n_fds, int flags)
    {
        union { struct cmsghdr align;
                char space[CMSG_SPACE(FJ_MAX_FDS * sizeof(int))]; } control;
        struct iovec part = { (void *)data, size };
        struct msghdr message;
        memset(&message, 0, sizeof message);
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        if (n_fds > 0) {
            struct cmsghdr *head;
            memset(&control, 0, sizeof control);
            message.msg_control = control.space;
            message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
            head = CMSG_FIRSTHDR(&message);
            head->cmsg_level = SOL_SOCKET;
            head->cmsg_type = SCM_RIGHTS;
            head->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
            memcpy(CMSG_DATA(head), fds, n_fds * sizeof(int));
        }
        return sendmsg(sock, &message, flags);
    }

    /* Receive bytes and the descriptors that came with them (close-on-exec).
       -2: descriptors were cut off, since this process has no more to spare. */
    static ssize_t fj_recv(int sock, void *data, size_t size,
                           int *fds, int *n_fds, int flags)
    {
        union { struct cmsghdr align;
                char space[CMSG_SPACE(FJ_MAX_FDS * sizeof(int))]; } control;
        struct iovec part = { data, size };
        struct msghdr message;
        struct cmsghdr *head;
        ssize_t got;
        memset(&message, 0, sizeof message);
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control.space;
        message.msg_controllen = sizeof control.space;
        *n_fds = 0;
        got = recvmsg(sock, &message, flags | MSG_CMSG_CLOEXEC);
        if (got < 0)
            return -1;
        for (head = CMSG_FIRSTHDR(&message); head != NULL;
             head = CMSG_NXTHDR(&message, head))
            if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
                int n = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
                if (n > FJ_MAX_FDS - *n_fds)
                    n = FJ_MAX_FDS - *n_fds;
                memcpy(fds + *n_fds, CMSG_DATA(head), n * sizeof(int));
                *n_fds += n;
            }
        if (message.msg_flags & MSG_CTRUNC) {
            while (*n_fds > 0)
                close(fds[--*n_fds]);
            return -2;
        }
        if (!MSG_CMSG_CLOEXEC) {
            int i;
            for (i = 0; i < *n_fds; i++)
                fcntl(fds[i], F_SETFD, FD_CLOEXEC);
        }
        return got;
    }
    """
    enum:
        FJ_MAX_FDS
    int MSG_NOSIGNAL
    int fj_poll(pollfd *fds, unsigned long nfds, int64_t ns) noexcept nogil
    ssize_t fj_send(int sock, const void *data, size_t size,
                    const int *fds, int n_fds, int flags) nogil
    ssize_t fj_recv(int sock, void *data, size_t size,
                    int *fds, int *n_fds, int flags) nogil


cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


# Processor time of all threads of this process.
cdef inline int64_t cpu_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec
