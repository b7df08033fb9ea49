/* `system.h` for Windows.

   Shared memory is a section of the paging file: reserved as a whole, and committed
   where something is written, which fails with an error where there is no room.  Its
   memory goes with its last handle and mapping.

   Descriptors do not travel over a socket.  A message carries the sender's own handle
   values instead, and the receiver, which has a handle of the sending process, fetches
   copies (`fj_fetch`).  The sender keeps its handles at least as long as the link is
   open (``lending.pyx``).  If it dies first, nothing is fetched, and the message counts
   as one of a dead process.

   Ctrl-C does not end a wait for a socket: whoever waits in the user's process does so
   in pieces. */

#define WIN32_LEAN_AND_MEAN
#include <winsock2.h>
#include <windows.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static inline HANDLE fj_handle(int fd) { return (HANDLE)(intptr_t)fd; }

/* errno for what Windows says, as far as the engine tells errors apart. */
static int fj_errno(DWORD code) {
    switch (code) {
    case ERROR_NOT_ENOUGH_MEMORY: case ERROR_OUTOFMEMORY:
    case ERROR_COMMITMENT_LIMIT: case ERROR_NO_SYSTEM_RESOURCES:
        return ENOMEM;
    case ERROR_DISK_FULL:
        return ENOSPC;
    case ERROR_INVALID_HANDLE:
        return EBADF;
    case ERROR_ACCESS_DENIED:
        return EACCES;
    case WSAEWOULDBLOCK:
        return EAGAIN;
    case WSAEINTR:
        return EINTR;
    case WSAECONNRESET: case WSAECONNABORTED:
        return ECONNRESET;
    case WSAENOTSOCK:
        return EBADF;
    case WSAENOTCONN: case WSAESHUTDOWN:
        return EPIPE;
    default:
        return 100000 + (int)code;
    }
}

/* ---- clocks, in ns */

static inline int64_t now_ns(void) {
    static LARGE_INTEGER rate;      /* fixed at boot: writing it twice is harmless */
    LARGE_INTEGER ticks;
    if (rate.QuadPart == 0)
        QueryPerformanceFrequency(&rate);
    QueryPerformanceCounter(&ticks);
    return ticks.QuadPart / rate.QuadPart * 1000000000
         + ticks.QuadPart % rate.QuadPart * 1000000000 / rate.QuadPart;
}
static inline int64_t cpu_ns(void) {
    FILETIME begun, ended, kernel, user;
    if (!GetProcessTimes(GetCurrentProcess(), &begun, &ended, &kernel, &user))
        return 0;
    return 100 * ((((int64_t)kernel.dwHighDateTime << 32) | kernel.dwLowDateTime)
                  + (((int64_t)user.dwHighDateTime << 32) | user.dwLowDateTime));
}
/* The coarse clock of Windows does not start where the fine one does. */
static inline int64_t coarse_ns(void) { return now_ns(); }

/* ---- sockets: never blocking, see fj_prepare */

#define DESCRIPTORS_TRAVEL 0
#define FJ_MAX_FDS 64

static int fj_poll(struct pollfd *fds, unsigned long n, int64_t ns) {
    struct pollfd few[64], *asked = few;
    int timeout = ns < 0 ? -1 : (int)((ns + 999999) / 1000000);
    unsigned long i, used = 0;
    int ready;
    if (n > 64 && (asked = (struct pollfd *)malloc(n * sizeof *asked)) == NULL) {
        errno = ENOMEM;
        return -1;
    }
    for (i = 0; i < n; i++) {       /* negative ones are passed over */
        fds[i].revents = 0;
        if ((int)fds[i].fd >= 0)
            asked[used++] = fds[i];
    }
    if (used == 0) {                /* refused by WSAPoll */
        Sleep(timeout < 0 ? INFINITE : (DWORD)timeout);
        ready = 0;
    } else {
        ready = WSAPoll(asked, used, timeout);
        if (ready < 0)
            errno = fj_errno(WSAGetLastError());
        for (i = used = 0; i < n; i++)
            if ((int)fds[i].fd >= 0)
                fds[i].revents = asked[used++].revents;
    }
    if (asked != few)
        free(asked);
    return ready;
}
static inline int poll(struct pollfd *fds, unsigned long n, int ms) {
    return fj_poll(fds, n, ms < 0 ? -1 : (int64_t)ms * 1000000);
}

static int fj_prepare(int sock) {
    u_long on = 1;
    if (ioctlsocket((SOCKET)sock, FIONBIO, &on) == 0)
        return 0;
    errno = fj_errno(WSAGetLastError());
    return -1;
}
static inline void fj_close(int sock) { closesocket((SOCKET)sock); }

/* A copy of a handle that another process has; -1 and errno. */
static int fj_fetch(int64_t process, int fd) {
    HANDLE copy;
    if (DuplicateHandle((HANDLE)(intptr_t)process, fj_handle(fd), GetCurrentProcess(),
                        &copy, 0, FALSE, DUPLICATE_SAME_ACCESS))
        return (int)(intptr_t)copy;
    errno = fj_errno(GetLastError());
    return -1;
}

static ssize_t fj_send(int sock, const void *data, size_t size,
                       const int *fds, int n_fds) {
    int done = send((SOCKET)sock, (const char *)data,
                    size > 1 << 20 ? 1 << 20 : (int)size, 0);
    (void)fds; (void)n_fds;
    if (done < 0) {
        errno = fj_errno(WSAGetLastError());
        if (errno != EAGAIN && errno != EINTR)
            errno = EPIPE;
    }
    return done;
}

static ssize_t fj_recv(int sock, void *data, size_t size,
                       int *fds, int *n_fds, int wait) {
    int got;
    (void)fds;
    *n_fds = 0;
    for (;;) {
        struct pollfd waiter = { (SOCKET)sock, POLLIN, 0 };
        got = recv((SOCKET)sock, (char *)data,
                   size > 1 << 30 ? 1 << 30 : (int)size, 0);
        if (got >= 0)
            return got;
        errno = fj_errno(WSAGetLastError());
        if (errno != EAGAIN || !wait)
            return -1;
        if (fj_poll(&waiter, 1, -1) < 0)
            return -1;
    }
}

static void fj_ring(int fd) {
    char one = 1;
    send((SOCKET)fd, &one, 1, 0);
}
static void fj_silence(int fd) {
    char bytes[64];
    while (recv((SOCKET)fd, bytes, sizeof bytes, 0) == (int)sizeof bytes) {}
}

/* ---- shared memory */

typedef SRWLOCK shm_mutex;
static inline void shm_init(shm_mutex *mutex) { InitializeSRWLock(mutex); }
static inline void shm_lock(shm_mutex *mutex) { AcquireSRWLockExclusive(mutex); }
static inline void shm_unlock(shm_mutex *mutex) { ReleaseSRWLockExclusive(mutex); }

static int shm_create(const char *name, size_t size) {
    HANDLE section = CreateFileMappingA(
        INVALID_HANDLE_VALUE, NULL, PAGE_READWRITE | SEC_RESERVE,
        (DWORD)((uint64_t)size >> 32), (DWORD)size, NULL);
    (void)name;
    if (section != NULL)
        return (int)(intptr_t)section;
    errno = fj_errno(GetLastError());
    return -1;
}

/* Nothing but a mapping knows it: the run of regions that belong to one. */
static int64_t shm_size(int fd) {
    MEMORY_BASIC_INFORMATION part;
    int64_t size = 0;
    char *start = (char *)MapViewOfFile(fj_handle(fd), FILE_MAP_WRITE, 0, 0, 0);
    if (start == NULL) {
        errno = fj_errno(GetLastError());
        return -1;
    }
    while (VirtualQuery(start + size, &part, sizeof part)
           && part.AllocationBase == (void *)start)
        size += part.RegionSize;
    UnmapViewOfFile(start);
    return size;
}

static inline void shm_close(int fd) { CloseHandle(fj_handle(fd)); }

static void *shm_map(int fd, size_t offset, size_t size, int private_) {
    void *address = MapViewOfFile(
        fj_handle(fd), private_ ? FILE_MAP_COPY : FILE_MAP_WRITE,
        (DWORD)((uint64_t)offset >> 32), (DWORD)offset, size);
    if (address == NULL)
        errno = fj_errno(GetLastError());
    return address;
}

/* Asked about forks alone. */
static inline int shm_mapped(int fd) { (void)fd; return -1; }

static void *shm_zeros(size_t size) {
    void *address = VirtualAlloc(NULL, size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    if (address == NULL)
        errno = fj_errno(GetLastError());
    return address;
}

static void shm_unmap(void *address, size_t size) {
    (void)size;
    if (!UnmapViewOfFile(address))
        VirtualFree(address, 0, MEM_RELEASE);
}

static ssize_t shm_fill(int fd, size_t offset, void *address, const void *source,
                        size_t size) {
    (void)fd; (void)offset;
    if (VirtualAlloc(address, size, MEM_COMMIT, PAGE_READWRITE) == NULL) {
        errno = fj_errno(GetLastError());
        return -1;
    }
    memcpy(address, source, size);
    return (ssize_t)size;
}

static inline void shm_populate(void *address, size_t size) {
    (void)address; (void)size;
}
/* A section keeps what has been committed. */
static inline void shm_remove(void *address, size_t size) {
    (void)address; (void)size;
}

static void shm_machine(unsigned long long *total, unsigned long long *available) {
    MEMORYSTATUSEX state;
    state.dwLength = sizeof state;
    if (!GlobalMemoryStatusEx(&state)) {
        *total = *available = 0;
        return;
    }
    *total = state.ullTotalPhys;
    *available = state.ullAvailPageFile;
}
