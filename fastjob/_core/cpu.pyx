"""How many CPUs this process may use, and what says so.

The answer is the least of all the limits that hold: the CPUs that are online, the
affinity mask, the CPU quota of every control group from the process's own one up to
the root, the interpreter's own setting, and two environment variables.  It is at
least 1.

Why the group of *this* process.  A quota is set where the service manager or the
container runtime put it: on ``user.slice/user-1000.slice``, on a pod, on a nested
container.  The file at the root of ``/sys/fs/cgroup`` tells none of that outside a
container.  So ``/proc/self/cgroup`` gives the group, ``/proc/self/mountinfo`` tells
where its hierarchy is mounted and which part of it, and every folder on the way up is
asked.  Both versions of control groups are asked, since hybrid hosts mount both.
CPU sets need no reading: the kernel applies them to the affinity mask.

What it survives.  Files are read as they are found: one that is missing, unreadable,
or holds something else than the kernel writes sets no limit and never raises.  Only an
environment variable that is not a number raises, since only its author can mend it.

What is cached.  Reading the files takes some 100 microseconds, so the quota is kept
for ``FILES_SECONDS``; a quota that is changed under a running process is seen after
that.  The affinity mask and the environment cost about a microsecond and are asked
each time.  The topology is kept for each set of CPUs it was asked for.  Caches are
plain dicts: two threads that fill one at the same time store the same thing.
"""

import math
import os
import sys
import time

cimport cython

from fastjob._core.environment import variable

#: Lifetime of what was read from files.  One second is far below the time in which an
#: orchestrator resizes a container and someone notices, and makes reading it cost
#: less than a thousandth of one core.
FILES_SECONDS = 1.0

#: The environment variables that bound the count.  The second is loky's, which
#: deployments of joblib already set.
COUNT_VARIABLES = ("FASTJOB_MAX_CPU_COUNT", "LOKY_MAX_CPU_COUNT")

#: What the kernel uses where a period is not written.
cdef long long DEFAULT_PERIOD = 100_000


@cython.final
cdef class CpuLimits:
    """What bounds the number of CPUs, one attribute for each limit.

    Attributes
    ----------
    count : int
        CPUs that this process may use: the least of the limits.
    bounded_by : str
        The limit that set ``count``: ``"machine"``, ``"affinity"``,
        ``"cgroup quota"``, ``"interpreter"`` or the name of an environment variable.
    online : int
        CPUs of the machine that are switched on.
    affinity : int
        CPUs in the affinity mask of the calling thread.
    quota : float or None
        CPUs' worth of time that the control groups grant; None is no limit.
    quota_file : str or None
        The file that set the quota.
    environment : dict
        The environment variables that are set, and their values.
    interpreter : int or None
        The interpreter's own count (``PYTHON_CPU_COUNT``, ``-X cpu_count``).
    physical_cores : int
        Cores that hold the CPUs of the affinity mask: siblings count once.
    """

    def as_dict(self):
        """Return the attributes as a dict that JSON can carry."""
        return {
            "count": self.count,
            "bounded_by": self.bounded_by,
            "online": self.online,
            "affinity": self.affinity,
            "quota": self.quota,
            "quota_file": self.quota_file,
            "environment": dict(self.environment),
            "interpreter": self.interpreter,
            "physical_cores": self.physical_cores,
        }


@cython.final
cdef class CpuProbe:
    """Reads the limits, of this system or of a recorded one.

    Parameters
    ----------
    root : str
        Folder that stands for ``/``: ``proc`` and ``sys`` are looked for in it.
    affinity : iterable of int, optional
        The affinity mask; by default the one of the calling thread.
    environ : mapping, optional
        The environment; by default the one of this process.
    """

    def __init__(self, str root="/", affinity=None, environ=None):
        self.root = root
        self._affinity = None if affinity is None else frozenset(affinity)
        self._environment = environ
        self._recent = {}
        self._cores = {}

    cpdef int count(self, bint only_physical_cores=False) except -1:
        """Return the number of CPUs to use; see `cpu_count`."""
        cdef int count = self._limits(only_physical_cores).count
        return count

    def limits(self):
        """Return all limits as they are now, as a `CpuLimits`."""
        self._recent.clear()
        self._cores.clear()
        cdef CpuLimits found = self._limits(False)
        found.physical_cores = self._physical(self._mask())
        return found

    cdef CpuLimits _limits(self, bint only_physical_cores):
        cdef CpuLimits found = CpuLimits()
        mask = self._mask()
        found.online, found.quota, found.quota_file = self._from_files()
        found.affinity = len(mask) or found.online
        found.count, found.bounded_by = found.online, "machine"
        lower(found, found.affinity, "affinity")
        if found.quota is not None:
            # A quota rounds up: half a core is one worker, not none.
            lower(found, math.ceil(found.quota), "cgroup quota")
        found.interpreter = self._interpreter_limit()
        if found.interpreter is not None:
            lower(found, found.interpreter, "interpreter")
        found.environment = self._variables()
        for name, value in found.environment.items():
            lower(found, value, name)
        if only_physical_cores:
            lower(found, self._physical(mask), "physical cores")
        return found

    # ---------------------------------------------------------------- sources

    cdef object _mask(self):
        """The CPUs that the calling thread may run on; empty where unknown."""
        if self._affinity is not None:
            return self._affinity
        if hasattr(os, "sched_getaffinity"):
            try:
                return frozenset(os.sched_getaffinity(0))
            except OSError:
                # Some emulated kernels have the call and refuse it.
                return frozenset()
        return psutil_affinity()

    cdef object _variable(self, str name):
        if self._environment is None:
            return variable(name.encode())
        return self._environment.get(name)

    cdef object _variables(self):
        cdef dict found = {}
        for name in COUNT_VARIABLES:
            text = self._variable(name)
            if text is None or not text.strip():
                continue
            try:
                found[name] = int(text)
            except ValueError:
                raise ValueError(
                    f"the environment variable {name} must be a whole number of "
                    f"CPUs, got {text!r}"
                ) from None
        return found

    cdef object _interpreter_limit(self):
        if self._environment is None and sys.version_info >= (3, 13):
            try:
                return os.process_cpu_count()
            except OSError:                # it asks for the mask itself
                return None
        # Older interpreters do not know the variable; it is honoured all the same,
        # and a value that newer ones would refuse to start with is no limit.
        text = self._variable("PYTHON_CPU_COUNT")
        if text is None:
            return None
        return int(text) if text.isascii() and text.isdigit() else None

    cdef tuple _from_files(self):
        """``(CPUs online, quota or None, its file or None)``, at most a second old."""
        now = time.monotonic()
        entry = self._recent.get("files")
        if entry is None or now >= entry[0]:
            online = parse_cpu_list(self._read("sys/devices/system/cpu/online"))
            found = (len(online) or os.cpu_count() or 1, *self._read_quota())
            entry = (now + FILES_SECONDS, found)
            self._recent["files"] = entry
        return entry[1]

    cdef object _read(self, str path):
        """The text of a file below the root, or "" where it cannot be read."""
        try:
            with open(f"{self.root}/{path}", encoding="utf-8",
                      errors="replace") as file:
                return file.read()
        except (OSError, ValueError):
            # ValueError: a name in an odd file holds a NUL.
            return ""

    # ---------------------------------------------------------------- cgroups

    cdef tuple _read_quota(self):
        """The tightest quota on the way to the root, and the file that set it."""
        best, best_file = None, None
        for version, mount, below in self._cgroup_folders():
            for depth in range(len(below), -1, -1):
                folder = "/".join([mount, *below[:depth]])
                quota, file = self._quota_of(version, folder)
                if quota is not None and (best is None or quota < best):
                    best, best_file = quota, file
        return best, best_file

    cdef tuple _quota_of(self, int version, str folder):
        if version == 2:
            file = folder + "/cpu.max"
            words = self._read(file[1:]).split()
            period = words[1] if len(words) > 1 else str(DEFAULT_PERIOD)
            quota = words[0] if words else ""
        else:
            file = folder + "/cpu.cfs_quota_us"
            quota = self._read(file[1:]).strip()
            period = self._read(folder[1:] + "/cpu.cfs_period_us").strip()
            period = period or str(DEFAULT_PERIOD)
        try:
            quota_us, period_us = int(quota), int(period)
        except ValueError:
            # "max", a missing file, or something that the kernel did not write.
            return None, None
        # -1 is no quota in version 1; what no kernel could write is none either.
        if not (0 < quota_us < 1 << 63 and 0 < period_us < 1 << 63):
            return None, None
        return quota_us / period_us, file

    cdef list _cgroup_folders(self):
        """``(version, mount point, folders below it to this process's group)``."""
        cdef list found = []
        mounts = self._cgroup_mounts()
        for line in self._read("proc/self/cgroup").splitlines():
            parts = line.split(":", 2)
            if len(parts) != 3:
                continue
            if parts[0] == "0" and not parts[1]:
                version = 2
            elif "cpu" in parts[1].split(","):
                version = 1
            else:
                continue
            for mount, mounted in mounts[version]:
                found.append((version, mount, locate(parts[2], mounted)))
        return found

    cdef dict _cgroup_mounts(self):
        """``{version: [(mount point, part of the hierarchy mounted there)]}``."""
        cdef dict mounts = {1: [], 2: []}
        for line in self._read("proc/self/mountinfo").splitlines():
            # 31 23 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
            left, dash, right = line.partition(" - ")
            options = right.rpartition(" ")[2].split(",")
            fields, details = left.split(" "), right.split(" ")
            if not dash or len(fields) < 5:
                continue
            place = (unescape(fields[4]).rstrip("/"), unescape(fields[3]))
            if details[0] == "cgroup2":
                mounts[2].append(place)
            elif details[0] == "cgroup" and "cpu" in options:
                mounts[1].append(place)
        # Where the table is hidden, the places that everybody mounts them at.
        return {
            1: mounts[1] or [("/sys/fs/cgroup/cpu", "/"),
                             ("/sys/fs/cgroup/cpu,cpuacct", "/")],
            2: mounts[2] or [("/sys/fs/cgroup", "/"),
                             ("/sys/fs/cgroup/unified", "/")],
        }

    # ---------------------------------------------------------------- topology

    cdef int _physical(self, mask) except -1:
        """Cores that hold the CPUs of ``mask``; hardware threads of one count once."""
        cores = self._cores.get(mask)
        if cores is None:
            cores = self._count_cores(mask)
            self._cores[mask] = cores
        return cores

    cdef object _count_cores(self, mask):
        if not os.path.isdir(f"{self.root}/sys/devices/system/cpu"):
            return psutil_cores() or len(mask) or os.cpu_count() or 1
        cpus = mask or parse_cpu_list(self._read("sys/devices/system/cpu/online"))
        cores = {self._core_of(cpu) for cpu in cpus}
        # A CPU without topology is switched off, unless none has any.
        cores.discard(None)
        return len(cores) or len(cpus) or 1

    cdef object _core_of(self, cpu):
        """What names the core of a CPU; None if there are no topology files."""
        folder = f"sys/devices/system/cpu/cpu{cpu}/topology/"
        # The list of siblings is unique in the machine, which a core id is not: it
        # may start again in each package, die or cluster.
        for name in ("core_cpus_list", "thread_siblings_list"):
            siblings = parse_cpu_list(self._read(folder + name))
            if cpu in siblings:
                return siblings
        core = self._read(folder + "core_id").strip()
        if not core:
            return None
        return tuple(self._read(folder + name).strip()
                     for name in ("physical_package_id", "die_id")) + (core,)


# ------------------------------------------------------------------- parsing

cdef int lower(CpuLimits found, limit, str source) except -1:
    if limit < found.count:
        found.count, found.bounded_by = max(limit, 1), source
    return 0


cdef frozenset parse_cpu_list(str text):
    """The CPUs of a kernel list such as ``0-3,8,10-11``; empty if it is odd."""
    cdef set cpus = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low = int(first)
            high = int(last) if dash else low
        except ValueError:
            return frozenset()
        # The kernel's own limit is 8192 CPUs; more is not its writing.
        if not 0 <= low <= high < 1 << 16:
            return frozenset()
        cpus.update(range(low, high + 1))
    return frozenset(cpus)


cdef list locate(str group, str mounted):
    """The folders that lead to ``group`` where ``mounted`` is the part mounted.

    A group outside what is mounted (a container that sees its host's names, a
    process that was moved out of its namespace) has no folder there; the mount point
    itself is the nearest of its parents that can be seen.
    """
    prefix = mounted.rstrip("/")
    if group != mounted and not group.startswith(prefix + "/"):
        return []
    below = [part for part in group[len(prefix):].split("/") if part]
    return [] if ".." in below else below


cdef str unescape(str text):
    """A path of mountinfo, in which ``\\040`` stands for a space."""
    head, *tail = text.split("\\")
    return head + "".join(
        chr(int(part[:3], 8)) + part[3:]
        if len(part) >= 3 and all(digit in "01234567" for digit in part[:3])
        else "\\" + part
        for part in tail
    )


# ------------------------------------------------------ systems without /proc

cdef frozenset psutil_affinity():
    import psutil

    process = psutil.Process()
    if not hasattr(process, "cpu_affinity"):
        return frozenset()
    return frozenset(process.cpu_affinity())


cdef object psutil_cores():
    import psutil

    return psutil.cpu_count(logical=False)


# ------------------------------------------------------------------- public

cdef CpuProbe _here = CpuProbe()


cpdef int cpu_count(bint only_physical_cores=False) except -1:
    """Return the number of CPUs that this process may use.

    The least of: the CPUs that are online, the affinity mask of the calling thread,
    the CPU quotas of the control groups (versions 1 and 2) that the process is in,
    ``PYTHON_CPU_COUNT``, ``FASTJOB_MAX_CPU_COUNT`` and ``LOKY_MAX_CPU_COUNT``. It is
    never less than 1, and a quota of part of a CPU rounds up.

    Parameters
    ----------
    only_physical_cores : bool
        Count the cores that hold the CPUs of the affinity mask, so that hardware
        threads of one core count once. The other limits hold as well.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    ValueError
        If one of the environment variables is not a whole number.

    Examples
    --------
    >>> cpu_count() >= cpu_count(only_physical_cores=True) >= 1
    True
    """
    return _here.count(only_physical_cores)


def cpu_limits():
    """Return what bounds `cpu_count` here and now, as a `CpuLimits`."""
    return _here.limits()
