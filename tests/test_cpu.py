"""The number of CPUs: every limit, on recorded machines and on this one."""

import os
import subprocess
import sys
import time

import pytest
from cpu_trees import CPU_MAX, ODD_QUOTAS, TREES, smt, span, v2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastjob._core import cpu
from fastjob._core.cpu import CpuProbe, cpu_count, cpu_limits

MASK = span(16)


def probe(root, *, affinity=MASK, environ=None):
    return CpuProbe(str(root), affinity, {} if environ is None else environ)


@pytest.mark.parametrize("name", TREES)
def test_recorded_machine(name, tmp_path):
    tree = TREES[name]
    tree.write(tmp_path)
    limits = probe(tmp_path, affinity=tree.affinity, environ=tree.environ).limits()
    assert limits.count == tree.count
    assert limits.bounded_by == tree.bounded_by
    assert limits.physical_cores == tree.physical_cores
    assert limits.quota == tree.quota


@pytest.mark.parametrize("name", TREES)
def test_physical_cores_of_a_recorded_machine_are_bounded_as_well(name, tmp_path):
    tree = TREES[name]
    tree.write(tmp_path)
    found = probe(tmp_path, affinity=tree.affinity, environ=tree.environ)
    assert found.count(only_physical_cores=True) == min(tree.count, tree.physical_cores)


def test_the_report_names_the_file_that_set_the_quota(tmp_path):
    TREES["systemd slice: the quota is on a parent"].write(tmp_path)
    limits = probe(tmp_path).limits()
    assert limits.quota_file == "/sys/fs/cgroup/user.slice/user-1000.slice/cpu.max"
    assert limits.as_dict()["quota_file"] == limits.quota_file


def test_the_report_lists_the_variables_that_are_set(tmp_path):
    tree = TREES["loky's variable is honoured"]
    tree.write(tmp_path)
    limits = probe(tmp_path, environ=tree.environ).limits()
    assert limits.environment == {
        "FASTJOB_MAX_CPU_COUNT": 12,
        "LOKY_MAX_CPU_COUNT": 5,
    }


@pytest.mark.parametrize("text", ODD_QUOTAS)
def test_an_odd_quota_is_no_quota(text, tmp_path):
    tree = {**smt(8), **v2("/"), CPU_MAX.format(""): text}
    for name, content in tree.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    limits = probe(tmp_path).limits()
    assert (limits.quota, limits.count) == (None, 16)


def test_a_quota_without_a_period_has_the_kernels_period(tmp_path):
    TREES["v2 without a quota"].write(tmp_path)
    (tmp_path / "sys/fs/cgroup/a/cpu.max").write_text("200000\n")
    assert probe(tmp_path).limits().quota == 2.0


def test_an_empty_root_falls_back_to_the_mask(tmp_path):
    limits = probe(tmp_path, affinity={0}).limits()
    assert (limits.count, limits.affinity, limits.quota) == (1, 1, None)


def test_folders_in_place_of_files_set_no_limit(tmp_path):
    (tmp_path / "proc/self/cgroup").mkdir(parents=True)
    (tmp_path / "sys/devices/system/cpu/online").mkdir(parents=True)
    assert probe(tmp_path).limits().quota is None


KERNEL_FILES = [
    "proc/self/cgroup",
    "proc/self/mountinfo",
    "sys/devices/system/cpu/online",
    "sys/devices/system/cpu/cpu0/topology/core_cpus_list",
    "sys/fs/cgroup/cpu.max",
]


@given(
    st.lists(
        st.one_of(
            st.text(max_size=40),
            st.from_regex(r"([0-9]{0,3}:(cpu)?:[/.a\0]{0,6}\n?){1,3}", fullmatch=True),
            st.from_regex(
                r"1 2 0:3 [/.]{0,4} [/.a\\0]{0,6} - cgroup2? c [cpu,]{0,4}",
                fullmatch=True,
            ),
            st.from_regex(r"[0-9]{0,30}([-, ][0-9]{0,30}){0,3}", fullmatch=True),
        ),
        min_size=len(KERNEL_FILES),
        max_size=len(KERNEL_FILES),
    )
)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_content_of_the_files_raises(tmp_path, texts):
    for name, text in zip(KERNEL_FILES, texts, strict=True):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    found = probe(tmp_path, affinity={0, 1})
    assert 1 <= found.count() <= 2
    assert 1 <= found.count(only_physical_cores=True) <= 2
    assert found.limits().physical_cores >= 1


@pytest.mark.parametrize("variable", cpu.COUNT_VARIABLES)
@pytest.mark.parametrize("value", ["two", "1.5", "4,2", "0x4"])
def test_a_variable_that_is_no_number_raises_and_is_named(variable, value, tmp_path):
    with pytest.raises(ValueError, match=f"{variable} must be a whole number"):
        probe(tmp_path, environ={variable: value}).count()


def test_a_quota_that_changes_is_seen_after_a_second(tmp_path, monkeypatch):
    TREES["v2 quota in the root of a namespaced container"].write(tmp_path)
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    found = probe(tmp_path)
    assert found.count() == 4
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("200000 100000\n")
    now += cpu.FILES_SECONDS * 0.9
    assert found.count() == 4
    now += cpu.FILES_SECONDS * 0.2
    assert found.count() == 2


def test_the_report_reads_afresh(tmp_path):
    TREES["v2 quota in the root of a namespaced container"].write(tmp_path)
    found = probe(tmp_path)
    assert found.limits().count == 4
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("200000 100000\n")
    assert found.limits().count == 2


def test_this_machine_is_counted_within_its_mask(monkeypatch):
    for variable in cpu.COUNT_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert 1 <= cpu_count(only_physical_cores=True) <= cpu_count()
    assert cpu_count() <= len(os.sched_getaffinity(0))
    assert cpu_limits().count == cpu_count()


def test_the_environment_is_asked_each_time(monkeypatch):
    monkeypatch.setenv("FASTJOB_MAX_CPU_COUNT", "1")
    assert cpu_count() == 1
    assert cpu_limits().environment["FASTJOB_MAX_CPU_COUNT"] == 1
    monkeypatch.setenv("FASTJOB_MAX_CPU_COUNT", "text")
    with pytest.raises(ValueError, match="FASTJOB_MAX_CPU_COUNT"):
        cpu_count()


def test_the_mask_is_asked_each_time():
    before = os.sched_getaffinity(0)
    assert cpu_count() <= len(before)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cpu_count() == 1
        assert cpu_limits().affinity == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_kernel_that_refuses_the_mask_leaves_the_machine(monkeypatch):
    def refuse(pid):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    limits = cpu_limits()
    assert limits.affinity == limits.online


def test_a_system_without_masks_and_sysfs_asks_psutil(tmp_path, monkeypatch):
    import psutil

    class Process:
        def cpu_affinity(self):
            return [0, 1, 2]

    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(psutil, "Process", Process)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 2)
    limits = CpuProbe(str(tmp_path), None, {}).limits()
    assert (limits.affinity, limits.physical_cores) == (3, 2)
    monkeypatch.delattr(Process, "cpu_affinity")
    limits = CpuProbe(str(tmp_path), None, {}).limits()
    assert limits.affinity == limits.online


def test_the_interpreters_own_setting_is_honoured():
    code = "from fastjob._core.cpu import cpu_limits as c; print(c().count)"
    environ = {**os.environ, "PYTHON_CPU_COUNT": "1"}
    output = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, check=True
    )
    assert output.stdout.strip() == b"1"
