"""Which shared libraries this process has loaded, and the symbols in them.

`scan` asks the dynamic loader itself.  The loader counts the libraries that it has
added and removed, and gives the counts with the first library of an iteration; so
whether anything was loaded since the last scan is known after one step of it, in less
than a microsecond, without a look at ``/proc/self/maps``.

No deadlock.  The loader holds a lock of its own while it iterates, and while it runs
the constructors of a library being loaded, and a constructor may want the GIL:

1. thread A is in ``dlopen``, holds the loader's lock and waits for the GIL;
2. thread B holds the GIL, calls the loader and waits for the loader's lock.

So every call into the loader here is made without the GIL, and the callback touches
nothing but memory of its own.

Lifetime.  `open_loaded` never loads anything, but keeps what it opens from being
unloaded: function pointers into the library stay valid for the life of the process.
"""

from libc.stdlib cimport free
cimport cython


cdef extern from *:
    """
    #include <stdlib.h>
    #include <string.h>

    typedef struct {
        unsigned long long added, removed;
        int counters_only, failed;
        char *names;            /* NUL-terminated, one after the other */
        size_t used, size;
    } fastjob_loaded;

    static int fastjob_append(fastjob_loaded *out, const char *name) {
        size_t length = strlen(name) + 1;
        if (out->used + length > out->size) {
            size_t size = 2 * (out->used + length);
            char *grown = (char *) realloc(out->names, size);
            if (grown == NULL) {
                out->failed = 1;
                return 1;
            }
            out->names = grown;
            out->size = size;
        }
        memcpy(out->names + out->used, name, length);
        out->used += length;
        return 0;
    }

    #if defined(__APPLE__)
    #include <mach-o/dyld.h>
    static void fastjob_iterate(fastjob_loaded *out) {
        uint32_t i, n = _dyld_image_count();
        out->added = n;
        for (i = 0; i < n && !out->counters_only; i++) {
            const char *name = _dyld_get_image_name(i);
            if (name != NULL && fastjob_append(out, name))
                return;
        }
    }
    #elif defined(__linux__)
    #include <link.h>
    #include <stddef.h>
    static int fastjob_see(struct dl_phdr_info *info, size_t size, void *data) {
        fastjob_loaded *out = (fastjob_loaded *) data;
        if (size >= offsetof(struct dl_phdr_info, dlpi_subs)
                    + sizeof(info->dlpi_subs)) {
            out->added = info->dlpi_adds;
            out->removed = info->dlpi_subs;
        }
        if (out->counters_only)
            return 1;
        return fastjob_append(out, info->dlpi_name ? info->dlpi_name : "");
    }
    static void fastjob_iterate(fastjob_loaded *out) {
        dl_iterate_phdr(fastjob_see, out);
    }
    #elif defined(_WIN32)
    #define WIN32_LEAN_AND_MEAN
    #include <windows.h>
    #include <psapi.h>
    /* Windows counts nothing; that other libraries lie at the same places after as many
       were added as removed is not to be expected. */
    static void fastjob_iterate(fastjob_loaded *out) {
        HMODULE modules[1024];
        DWORD size = 0, i;
        if (!K32EnumProcessModules(GetCurrentProcess(), modules, sizeof modules, &size))
            return;
        if (size > sizeof modules)
            size = sizeof modules;
        for (i = 0; i < size / sizeof *modules; i++) {
            wchar_t wide[1024];
            char name[3072];
            out->added++;
            out->removed = out->removed * 31 + (uintptr_t) modules[i];
            if (out->counters_only)
                continue;
            if (GetModuleFileNameW(modules[i], wide, 1024)
                    && WideCharToMultiByte(CP_UTF8, 0, wide, -1, name, sizeof name,
                                           NULL, NULL)
                    && fastjob_append(out, name))
                return;
        }
    }
    static void *fastjob_open(const char *name) {
        wchar_t wide[1024];
        HMODULE module = NULL;
        if (MultiByteToWideChar(CP_UTF8, 0, name, -1, wide, 1024))
            GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_PIN, wide, &module);
        return (void *) module;
    }
    static void *fastjob_symbol(void *handle, const char *name) {
        return (void *) GetProcAddress((HMODULE) handle, name);
    }
    #else
    static void fastjob_iterate(fastjob_loaded *out) { (void) out; }
    #endif

    #ifndef _WIN32
    #include <dlfcn.h>
    static void *fastjob_open(const char *name) {
        return dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    }
    static void *fastjob_symbol(void *handle, const char *name) {
        return dlsym(handle, name);
    }
    #endif
    """
    ctypedef struct fastjob_loaded:
        unsigned long long added
        unsigned long long removed
        int counters_only
        int failed
        char *names
        size_t used
        size_t size

    void fastjob_iterate(fastjob_loaded *out) noexcept nogil
    void *fastjob_open(const char *name) noexcept nogil
    void *fastjob_symbol(void *handle, const char *name) noexcept nogil


@cython.final
cdef class Loaded:
    """The libraries that were loaded at one moment."""

    cdef bint is_current(self) noexcept:
        """Whether the loader has added and removed nothing since."""
        cdef fastjob_loaded now
        now.added = now.removed = 0
        now.counters_only = 1
        with nogil:
            fastjob_iterate(&now)
        return now.added == self.added and now.removed == self.removed


cdef Loaded scan():
    """Ask the loader what is loaded; names in the order of loading."""
    cdef fastjob_loaded out
    cdef Loaded found = Loaded()
    cdef bytes names
    out.added = out.removed = out.used = out.size = 0
    out.counters_only = out.failed = 0
    out.names = NULL
    with nogil:
        fastjob_iterate(&out)
    try:
        if out.failed:
            raise MemoryError("no memory for the names of the loaded libraries")
        names = out.names[:out.used] if out.used else b""
    finally:
        free(out.names)
    found.added = out.added
    found.removed = out.removed
    found.names = tuple([
        # Not a path: the program itself, or a library of the kernel.
        name.decode("utf-8", "surrogateescape")
        for name in names.split(b"\0") if b"/" in name or b"\\" in name
    ])
    return found


cdef void *open_loaded(bytes name) noexcept:
    """A handle of a loaded library, which then stays loaded; NULL if it is not."""
    cdef const char *path = name
    cdef void *handle
    with nogil:
        handle = fastjob_open(path)
    return handle


cdef void *symbol(void *handle, const char *name) noexcept:
    """The address of a symbol of a library or of those it needs; NULL if none."""
    cdef void *address
    with nogil:
        address = fastjob_symbol(handle, name)
    return address
