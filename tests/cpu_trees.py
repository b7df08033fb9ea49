"""Recorded file trees: what /proc and /sys say on many kinds of machine.

Each tree names its files, the affinity mask of the process, its environment, and what
must come out.  Only the files that could matter are kept, in the kernel's own format.
"""

from dataclasses import dataclass, field
from pathlib import Path

V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"


@dataclass(frozen=True)
class Tree:
    """A machine, and what is true of a process on it."""

    files: dict[str, str]
    affinity: frozenset[int]
    count: int
    bounded_by: str
    physical_cores: int
    quota: float | None = None
    environ: dict[str, str] = field(default_factory=dict)

    def write(self, root: Path) -> None:
        for name, text in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def cpus(*cores: tuple[int, ...], online: str = "") -> dict[str, str]:
    """Topology files of cores, each given as the hardware threads that it runs."""
    base = "sys/devices/system/cpu/"
    last = max(cpu for core in cores for cpu in core)
    files = {base + "online": (online or f"0-{last}") + "\n"}
    for core in cores:
        for cpu in core:
            topology = f"{base}cpu{cpu}/topology/"
            siblings = ",".join(map(str, core)) + "\n"
            files[topology + "thread_siblings_list"] = siblings
            files[topology + "core_cpus_list"] = siblings
    return files


def smt(n_cores: int) -> dict[str, str]:
    """Two threads a core, numbered as Intel servers number them."""
    return cpus(*((core, core + n_cores) for core in range(n_cores)))


def old_ids(packages: int, cores: int, *, dies: int = 0) -> dict[str, str]:
    """Topology of an old kernel: no lists, and core ids that start again."""
    base = "sys/devices/system/cpu/"
    files = {}
    cpu = 0
    for package in range(packages):
        for die in range(dies or 1):
            for core in range(cores):
                for _ in range(2):
                    topology = f"{base}cpu{cpu}/topology/"
                    files[topology + "physical_package_id"] = f"{package}\n"
                    files[topology + "core_id"] = f"{core}\n"
                    if dies:
                        files[topology + "die_id"] = f"{die}\n"
                    cpu += 1
    return {base + "online": f"0-{cpu - 1}\n", **files}


def span(n: int) -> frozenset[int]:
    return frozenset(range(n))


def v1(group: str, mounted: str = "/") -> dict[str, str]:
    """A host with version 1 hierarchies, the process in ``group``."""
    return {
        "proc/self/cgroup": f"9:name=systemd:{group}\n4:memory:{group}\n"
        f"3:cpuset:{group}\n2:cpu,cpuacct:{group}\n",
        "proc/self/mountinfo": "30 23 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"
        f"33 30 0:30 {mounted} /sys/fs/cgroup/cpu,cpuacct rw shared:11 - "
        "cgroup cgroup rw,cpu,cpuacct\n"
        f"34 30 0:31 {mounted} /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n",
    }


def cfs(folder: str, quota: str, period: str = "100000") -> dict[str, str]:
    return {
        f"{folder}/cpu.cfs_quota_us": quota + "\n",
        f"{folder}/cpu.cfs_period_us": period + "\n",
    }


def v2(group: str, mounted: str = "/") -> dict[str, str]:
    return {
        "proc/self/cgroup": f"0::{group}\n",
        "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/root rw\n"
        + V2_MOUNT.replace(" / /sys", f" {mounted} /sys"),
    }


CPU_MAX = "sys/fs/cgroup{}/cpu.max"
SLICE = "/user.slice/user-1000.slice/user@1000.service/app.slice/run-7.scope"
POD = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod3f.slice"
DOCKER = "/docker/7c1e5b"

# One tree a paragraph: files, mask, count, its bound, cores, quota, environment.
# fmt: off
TREES: dict[str, Tree] = {
    "bare metal with SMT": Tree(
        {**smt(4), **v2("/init.scope")}, span(8), 8, "machine", 4
    ),
    "affinity of two threads of one core": Tree(
        {**smt(4), **v2("/")}, frozenset({1, 5}), 2, "affinity", 1
    ),
    "affinity of one thread of each of three cores": Tree(
        {**smt(4), **v2("/")}, frozenset({0, 1, 6}), 3, "affinity", 3
    ),
    "v2 quota in the root of a namespaced container": Tree(
        {**smt(8), **v2("/"), CPU_MAX.format(""): "400000 100000\n"},
        span(16), 4, "cgroup quota", 8, 4.0,
    ),
    "v2 quota that is no whole number rounds up": Tree(
        {**smt(8), **v2("/"), CPU_MAX.format(""): "250000 100000\n"},
        span(16), 3, "cgroup quota", 8, 2.5,
    ),
    "v2 quota below one core": Tree(
        {**smt(8), **v2("/"), CPU_MAX.format(""): "5000 100000\n"},
        span(16), 1, "cgroup quota", 8, 0.05,
    ),
    "v2 without a quota": Tree(
        {**smt(8), **v2("/a"), CPU_MAX.format("/a"): "max 100000\n"},
        span(16), 16, "machine", 8,
    ),
    "v2 quota with an own period": Tree(
        {**smt(8), **v2("/a"), CPU_MAX.format("/a"): "30000 10000\n"},
        span(16), 3, "cgroup quota", 8, 3.0,
    ),
    "systemd slice: the quota is on a parent": Tree(
        {
            **smt(4), **v2(SLICE),
            CPU_MAX.format(SLICE): "max 100000\n",
            CPU_MAX.format("/user.slice/user-1000.slice"): "300000 100000\n",
            CPU_MAX.format("/user.slice"): "max 100000\n",
        },
        span(8), 3, "cgroup quota", 4, 3.0,
    ),
    "systemd slice: the tightest of several quotas": Tree(
        {
            **smt(4), **v2(SLICE),
            CPU_MAX.format(SLICE): "600000 100000\n",
            CPU_MAX.format("/user.slice/user-1000.slice"): "200000 100000\n",
            CPU_MAX.format("/user.slice"): "500000 100000\n",
        },
        span(8), 2, "cgroup quota", 4, 2.0,
    ),
    "a quota of a sibling group is not ours": Tree(
        {
            **smt(4), **v2("/system.slice/a.service"),
            CPU_MAX.format("/system.slice/b.service"): "100000 100000\n",
        },
        span(8), 8, "machine", 4,
    ),
    "v1 quota in the own group": Tree(
        {
            **smt(8), **v1("/batch/job1"),
            **cfs("sys/fs/cgroup/cpu,cpuacct/batch/job1", "200000"),
            **cfs("sys/fs/cgroup/cpu,cpuacct/batch", "-1"),
        },
        span(16), 2, "cgroup quota", 8, 2.0,
    ),
    "v1 quota on a parent": Tree(
        {
            **smt(8), **v1("/batch/job1"),
            **cfs("sys/fs/cgroup/cpu,cpuacct/batch/job1", "-1"),
            **cfs("sys/fs/cgroup/cpu,cpuacct/batch", "350000", "50000"),
        },
        span(16), 7, "cgroup quota", 8, 7.0,
    ),
    "v1 container that sees the names of its host": Tree(
        {
            **smt(8), **v1(DOCKER, mounted=DOCKER),
            **cfs("sys/fs/cgroup/cpu,cpuacct", "150000"),
        },
        span(16), 2, "cgroup quota", 8, 1.5,
    ),
    "v1 process in a group below the container's": Tree(
        {
            **smt(8), **v1(DOCKER + "/inner", mounted=DOCKER),
            **cfs("sys/fs/cgroup/cpu,cpuacct", "800000"),
            **cfs("sys/fs/cgroup/cpu,cpuacct/inner", "300000"),
        },
        span(16), 3, "cgroup quota", 8, 3.0,
    ),
    "Kubernetes pod on v1: the pod's quota is below the container's": Tree(
        {
            **smt(16), **v1(POD + "/c1"),
            **cfs(f"sys/fs/cgroup/cpu,cpuacct{POD}/c1", "400000"),
            **cfs(f"sys/fs/cgroup/cpu,cpuacct{POD}", "350000"),
        },
        span(32), 4, "cgroup quota", 16, 3.5,
    ),
    "Kubernetes pod on v2, seen from the host's namespace": Tree(
        {
            **smt(16), **v2(POD + "/cri-c1.scope"),
            CPU_MAX.format(POD + "/cri-c1.scope"): "200000 100000\n",
            CPU_MAX.format(POD): "max 100000\n",
        },
        span(32), 2, "cgroup quota", 16, 2.0,
    ),
    "hybrid host: version 2 for systemd, the quota in version 1": Tree(
        {
            **smt(4),
            "proc/self/cgroup": "4:cpu:/a\n1:name=systemd:/a\n0::/a\n",
            "proc/self/mountinfo": "32 31 0:29 / /sys/fs/cgroup/cpu rw - "
            "cgroup cgroup rw,cpu\n41 31 0:38 / /sys/fs/cgroup/unified rw - "
            "cgroup2 cgroup2 rw\n",
            **cfs("sys/fs/cgroup/cpu/a", "600000"),
        },
        span(8), 6, "cgroup quota", 4, 6.0,
    ),
    "process that was moved out of its namespace": Tree(
        {**smt(4), **v2("/../../other"), CPU_MAX.format(""): "300000 100000\n"},
        span(8), 3, "cgroup quota", 4, 3.0,
    ),
    "LXC: host numbers in the mask, few CPUs shown": Tree(
        {
            **smt(8), **v2("/lxc.payload.web"),
            "sys/devices/system/cpu/online": "0-1\n",
        },
        frozenset({5, 13}), 2, "machine", 1,
    ),
    "mount point with a space": Tree(
        {
            **smt(4),
            "proc/self/cgroup": "0::/a\n",
            "proc/self/mountinfo": V2_MOUNT.replace("fs/cgroup", r"fs/my\040cgroup"),
            "sys/fs/my cgroup/a/cpu.max": "200000 100000\n",
        },
        span(8), 2, "cgroup quota", 4, 2.0,
    ),
    "group whose name holds colons": Tree(
        {**smt(4), **v2("/a:b:c"), CPU_MAX.format("/a:b:c"): "100000 100000\n"},
        span(8), 1, "cgroup quota", 4, 1.0,
    ),
    "mount table hidden, v2": Tree(
        {
            **smt(4), "proc/self/cgroup": "0::/\n",
            CPU_MAX.format(""): "500000 100000\n",
        },
        span(8), 5, "cgroup quota", 4, 5.0,
    ),
    "mount table hidden, v1": Tree(
        {
            **smt(4), "proc/self/cgroup": "2:cpuacct,cpu:/x\n",
            **cfs("sys/fs/cgroup/cpu,cpuacct/x", "100000"),
        },
        span(8), 1, "cgroup quota", 4, 1.0,
    ),
    "hybrid cores: four with two threads, eight with one": Tree(
        {
            **cpus((0, 1), (2, 3), (4, 5), (6, 7), *((n,) for n in range(8, 16))),
            **v2("/"),
        },
        span(16), 16, "machine", 12,
    ),
    "offline cores: every second thread is switched off": Tree(
        {**cpus((0,), (2,), (4,), (6,), online="0,2,4,6"), **v2("/")},
        frozenset({0, 2, 4, 6}), 4, "machine", 4,
    ),
    "offline cores: the mask still names them": Tree(
        {**cpus((0,), (1,), (3,), online="0-1,3"), **v2("/")},
        span(4), 3, "machine", 3,
    ),
    "old kernel: two packages whose core ids start again": Tree(
        {**old_ids(packages=2, cores=4), **v2("/")}, span(16), 16, "machine", 8
    ),
    "old kernel: two dies in a package": Tree(
        {**old_ids(packages=1, cores=4, dies=2), **v2("/")},
        span(16), 16, "machine", 8,
    ),
    "no topology: each CPU counts as a core": Tree(
        {"sys/devices/system/cpu/online": "0-3\n", **v2("/")},
        span(4), 4, "machine", 4,
    ),
    "the environment is tighter than the quota": Tree(
        {**smt(8), **v2("/"), CPU_MAX.format(""): "400000 100000\n"},
        span(16), 3, "FASTJOB_MAX_CPU_COUNT", 8, 4.0,
        {"FASTJOB_MAX_CPU_COUNT": "3", "LOKY_MAX_CPU_COUNT": "5"},
    ),
    "loky's variable is honoured": Tree(
        {**smt(8), **v2("/")},
        span(16), 5, "LOKY_MAX_CPU_COUNT", 8, None,
        {"FASTJOB_MAX_CPU_COUNT": "12", "LOKY_MAX_CPU_COUNT": " 5 "},
    ),
    "variables that are empty or too large bound nothing": Tree(
        {**smt(4), **v2("/")},
        span(8), 8, "machine", 4, None,
        {"FASTJOB_MAX_CPU_COUNT": "", "LOKY_MAX_CPU_COUNT": "99999999999999999999"},
    ),
    "a variable below one counts as one": Tree(
        {**smt(4), **v2("/")},
        span(8), 1, "LOKY_MAX_CPU_COUNT", 4, None,
        {"LOKY_MAX_CPU_COUNT": "-99999999999999999999"},
    ),
    "the interpreter's own count": Tree(
        {**smt(4), **v2("/")},
        span(8), 3, "interpreter", 4, None, {"PYTHON_CPU_COUNT": "3"},
    ),
    "the interpreter's own count left to it": Tree(
        {**smt(4), **v2("/")},
        span(8), 8, "machine", 4, None, {"PYTHON_CPU_COUNT": "default"},
    ),
}
# fmt: on

#: What may stand in ``cpu.max`` without being a quota.
ODD_QUOTAS = [
    "", "\n", "max", "max max", "no number 100000", "100000 text", "-1 100000",
    "0 100000", "100000 0", "100000 -5", "\x00\x00", "1" * 5000 + " 1",
    "9" * 30 + " 1", "1 " + "9" * 30,
]  # fmt: skip
