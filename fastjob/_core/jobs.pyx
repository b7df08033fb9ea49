"""Job objects of Windows: a process, with all that it starts, that ends as one.

A job is killed when its last handle is closed.  The caller alone has one, so a worker
and the programs of its tasks end when the caller kills the job, and when the caller
itself has ended, in whatever way.
"""

cimport cython
from libc.stdint cimport intptr_t

cdef extern from *:
    """
    #define WIN32_LEAN_AND_MEAN
    #include <windows.h>
    #include <psapi.h>

    static HANDLE fj_job(void) {
        JOBOBJECT_EXTENDED_LIMIT_INFORMATION limits;
        HANDLE job = CreateJobObjectW(NULL, NULL);
        if (job == NULL)
            return NULL;
        ZeroMemory(&limits, sizeof limits);
        limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
        SetInformationJobObject(job, JobObjectExtendedLimitInformation,
                                &limits, sizeof limits);
        return job;
    }

    /* Bytes; 0 if it cannot be told. */
    static long long fj_peak(HANDLE process) {
        PROCESS_MEMORY_COUNTERS found;
        if (!K32GetProcessMemoryInfo(process, &found, sizeof found))
            return 0;
        return (long long)found.PeakWorkingSetSize;
    }
    """
    ctypedef void *HANDLE
    ctypedef int BOOL
    HANDLE fj_job() noexcept nogil
    long long fj_peak(HANDLE process) noexcept nogil
    BOOL AssignProcessToJobObject(HANDLE job, HANDLE process) noexcept nogil
    BOOL TerminateJobObject(HANDLE job, unsigned int code) noexcept nogil
    unsigned long ResumeThread(HANDLE thread) noexcept nogil
    BOOL CloseHandle(HANDLE handle) noexcept nogil
    object PyErr_SetFromWindowsErr(int code)


@cython.final
cdef class Job:
    """A new job, without a process.

    Raises
    ------
    OSError
        If the system has no more.
    """

    cdef HANDLE handle

    def __cinit__(self):
        self.handle = fj_job()
        if self.handle == NULL:
            PyErr_SetFromWindowsErr(0)

    def __dealloc__(self):
        if self.handle != NULL:
            CloseHandle(self.handle)

    def begin(self, intptr_t process, intptr_t thread):
        """Take a process in that was started suspended, and let it run.

        Parameters
        ----------
        process, thread : int
            Handles of it and of its first thread.
        """
        # Refused within a job that allows none; then the worker has to end by itself.
        AssignProcessToJobObject(self.handle, <HANDLE>process)
        ResumeThread(<HANDLE>thread)

    def kill(self, int code):
        """End all of its processes now."""
        TerminateJobObject(self.handle, code)


def peak_memory(intptr_t process):
    """Bytes of memory that a process has had at most, even after its end."""
    return fj_peak(<HANDLE>process)
