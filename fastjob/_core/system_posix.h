/* `system.h` for Linux and macOS. */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_REMOVE
#define MADV_REMOVE -1          /* refused by the kernel: memory is not given back */
#endif
#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif
#ifndef MFD_ALLOW_SEALING
#define MFD_ALLOW_SEALING 0
#endif
#ifndef MSG_CMSG_CLOEXEC
#define MSG_CMSG_CLOEXEC 0
#endif
#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0          /* Python ignores SIGPIPE */
#endif

/* ---- clocks, in ns */

static inline int64_t clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
static inline int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }
/* Processor time of all threads of this process. */
static inline int64_t cpu_ns(void) { return clock_ns(CLOCK_PROCESS_CPUTIME_ID); }
/* Cheaper than now_ns, and moves in steps of some milliseconds. */
static inline int64_t coarse_ns(void) {
#ifdef CLOCK_MONOTONIC_COARSE
    return clock_ns(CLOCK_MONOTONIC_COARSE);
#else
    return clock_ns(CLOCK_MONOTONIC);
#endif
}

/* ---- sockets */

/* A poll with a time in ns, rounded up to ms where the system has no finer one; -1 is
   for ever. */
static int fj_poll(struct pollfd *fds, unsigned long n, int64_t ns) {
#ifdef __linux__
    struct timespec left = { ns / 1000000000, ns % 1000000000 };
    return ppoll(fds, n, ns < 0 ? NULL : &left, NULL);
#else
    return poll(fds, n, ns < 0 ? -1 : (int)((ns + 999999) / 1000000));
#endif
}

/* Whether descriptors travel with the bytes of a stream; else see `system_windows.h`. */
#define DESCRIPTORS_TRAVEL 1
#define FJ_MAX_FDS 64

static inline int fj_prepare(int sock) { (void)sock; return 0; }
static inline void fj_close(int sock) { close(sock); }
static inline int fj_fetch(int64_t process, int fd) {
    (void)process; (void)fd;
    errno = ENOSYS;
    return -1;
}

/* Send bytes, and descriptors with the first of them, as far as that goes at once.
   -1 and errno. */
static ssize_t fj_send(int sock, const void *data, size_t size,
                       const int *fds, int n_fds) {
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
    return sendmsg(sock, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Receive bytes and the descriptors that came with them (close-on-exec).
   -2: descriptors were cut off, since this process has no more to spare. */
static ssize_t fj_recv(int sock, void *data, size_t size,
                       int *fds, int *n_fds, int wait) {
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
    got = recvmsg(sock, &message, (wait ? 0 : MSG_DONTWAIT) | MSG_CMSG_CLOEXEC);
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

/* Make a descriptor of `Wake` readable.  Eight bytes: what an eventfd takes.  A full
   pipe is as good as rung. */
static void fj_ring(int fd) {
    uint64_t one = 1;
    ssize_t done = write(fd, &one, sizeof one);
    (void)done;
}
static void fj_silence(int fd) {
    char bytes[64];
    while (read(fd, bytes, sizeof bytes) == (ssize_t)sizeof bytes) {}
}

/* ---- shared memory */

typedef pthread_mutex_t shm_mutex;
static inline void shm_init(shm_mutex *mutex) { pthread_mutex_init(mutex, NULL); }
static inline void shm_lock(shm_mutex *mutex) { pthread_mutex_lock(mutex); }
static inline void shm_unlock(shm_mutex *mutex) { pthread_mutex_unlock(mutex); }

/* An anonymous file of zeros; takes memory where something is written. */
static int shm_create(const char *name, size_t size) {
    int fd = -1;
#ifdef MFD_CLOEXEC
    const char *wanted = getenv("FASTJOB_MEMFD");
    if (wanted == NULL || strcmp(wanted, "0") != 0) {
        fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (fd < 0)
            return -1;
        /* Nobody else can reach it; were it reached, it would still be ours. */
        fchmod(fd, 0600);
        if (ftruncate(fd, (off_t)size) < 0) {
            int error = errno;
            close(fd);
            errno = error;
            return -1;
        }
#ifdef F_SEAL_SHRINK
        /* Whoever has it mapped can rely on its size: no SIGBUS. */
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
#endif
        return fd;
    }
#endif
    (void)name; (void)size;
    errno = ENOSYS;
    return fd;
}

/* -1 and errno where it is none. */
static int64_t shm_size(int fd) {
    struct stat state;
    return fstat(fd, &state) < 0 ? -1 : (int64_t)state.st_size;
}

static inline void shm_close(int fd) { close(fd); }

/* A mapping of a file, for reading and writing; private: what is written stays here.
   NULL and errno. */
static void *shm_map(int fd, size_t offset, size_t size, int private_) {
    int flags = (private_ ? MAP_PRIVATE : MAP_SHARED) | MAP_NORESERVE;
    void *address = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, (off_t)offset);
    return address == MAP_FAILED ? NULL : address;
}

/* Whether any process has a file of `shm_create` mapped for writing; -1 where the system
   does not say.  Once it is 0, none can have it again: an answer is a seal, which the
   kernel refuses as long as there is such a mapping.  A fork copies the mapping; exec and
   the end of the process end it; closing descriptors does not. */
static int shm_mapped(int fd) {
#ifdef F_SEAL_WRITE
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0)
        return 0;
    if (errno == EBUSY)
        return 1;
#endif
    (void)fd;
    return -1;
}

/* Memory of this process alone, zeroed, which is there once it is touched. */
static void *shm_zeros(size_t size) {
    void *address = mmap(NULL, size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return address == MAP_FAILED ? NULL : address;
}

static inline void shm_unmap(void *address, size_t size) { munmap(address, size); }

/* Reserve a part of a file and fill it; bytes done, or -1 and errno. */
static ssize_t shm_fill(int fd, size_t offset, void *address, const void *source,
                        size_t size) {
    (void)address;
    return pwrite(fd, source, size, (off_t)offset);
}

/* Advice: these pages are about to be written. */
static inline void shm_populate(void *address, size_t size) {
    madvise(address, size, MADV_POPULATE_READ);
}

/* Give the memory behind a part of a mapped file back.  A file system that cannot
   keeps it until it is overwritten or the file goes. */
static inline void shm_remove(void *address, size_t size) {
    madvise(address, size, MADV_REMOVE);
}

/* Bytes of the machine's memory, and those that can be had now; 0 where the system does
   not say it here. */
static void shm_machine(unsigned long long *total, unsigned long long *available) {
    *total = (unsigned long long)sysconf(_SC_PHYS_PAGES)
             * (unsigned long long)sysconf(_SC_PAGE_SIZE);
    *available = 0;
}
