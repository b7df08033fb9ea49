"""``python -m fastjob info``: for a person, for a program, and for mistakes."""

from __future__ import annotations

import json

import pytest

from fastjob import __version__, info
from fastjob._core.cpu import COUNT_VARIABLES, cpu_count, cpu_limits
from fastjob._core.threadpools import threadpool_info
from fastjob.backends.registry import available

CPU = {
    "count": 3,
    "bounded_by": "cgroup quota",
    "online": 16,
    "affinity": 8,
    "quota": 2.5,
    "quota_file": "/sys/fs/cgroup/user.slice/cpu.max",
    "environment": {"LOKY_MAX_CPU_COUNT": 6},
    "interpreter": 7,
    "physical_cores": 4,
    "core_budget": 1,
}
POOL = {
    "user_api": "blas",
    "internal_api": "openblas",
    "num_threads": 3,
    "prefix": "libopenblas",
    "filepath": "/lib/libopenblas.so",
    "version": "0.3.30",
    "threading_layer": "pthreads",
    "architecture": "Haswell",
}
OPENMP = {
    "user_api": "openmp",
    "internal_api": "openmp",
    "num_threads": 1,
    "prefix": "libgomp",
    "filepath": "/lib/libgomp.so.1",
    "version": None,
}
FOUND = {
    "fastjob": "1.2.3",
    "python": "3.11.7",
    "platform": "Linux",
    "cpu": CPU,
    "pools": [POOL, OPENMP],
    "backends": {"processes": None, "ray": "needs the package 'ray'"},
}


def rows(text):
    """The rows of all tables, as ``{name: value}``."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("  ")]
    return {name: value for name, _, value in (x.partition("  ") for x in lines)}


def shown(found):
    return {name: value.strip() for name, value in rows(info.render(found)).items()}


def test_a_person_reads_the_count_and_what_bounded_it():
    table = shown(FOUND)
    assert table["cores to use"] == "3, bounded by: cgroup quota"
    assert table["cgroup quota"] == (
        "2.5 cores, set by /sys/fs/cgroup/user.slice/cpu.max"
    )
    assert (table["online"], table["affinity"]) == ("16", "8")
    assert (table["physical cores"], table["interpreter"]) == ("4", "7")
    assert table["share here"] == "1"
    assert table["LOKY_MAX_CPU_COUNT"] == "6"


def test_a_person_reads_what_pools_are_loaded():
    table = shown(FOUND)
    assert table["openblas"] == (
        "3 threads, version 0.3.30, pthreads, /lib/libopenblas.so"
    )
    assert table["openmp"] == "1 thread, /lib/libgomp.so.1"
    assert "none" in shown({**FOUND, "pools": []})


def test_a_person_reads_what_backends_lack():
    table = shown(FOUND)
    assert table["processes"] == "ready"
    assert table["ray"] == "not here: needs the package 'ray'"


def test_limits_that_do_not_exist_are_said_or_left_out():
    cpu = {**CPU, "quota": None, "quota_file": None, "interpreter": None}
    table = shown({**FOUND, "cpu": {**cpu, "core_budget": 3}})
    assert table["cgroup quota"] == "none"
    assert not {"interpreter", "share here"} & set(table)


def test_the_text_is_about_this_machine(capsys):
    assert info.main([]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"fastjob {__version__}, Python ")
    assert rows(out)["cores to use"].strip().startswith(f"{cpu_count()}, bounded by: ")
    for name, reason in available().items():
        assert rows(out)[name].strip() == (
            "ready" if reason is None else f"not here: {reason}"
        )


def test_the_json_is_about_this_machine(capsys):
    assert info.main(["--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert set(found) == {
        "fastjob", "python", "platform", "cpu", "pools", "backends"
    }  # fmt: skip
    assert found["fastjob"] == __version__
    budget = found["cpu"].pop("core_budget")
    assert budget == cpu_count()
    assert found["cpu"] == cpu_limits().as_dict()
    assert found["pools"] == threadpool_info()
    assert found["backends"] == available()


def test_numpy_is_imported_so_that_its_pool_is_listed(run_python):
    done = run_python("-m", "fastjob", "info", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    apis = [pool["user_api"] for pool in json.loads(done.stdout)["pools"]]
    assert "blas" in apis


def test_other_modules_can_be_named(run_python):
    done = run_python("-m", "fastjob", "info", "--json", "-i", "json", "decimal")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["pools"] == []


def test_a_module_that_cannot_be_imported_is_named(capsys):
    assert info.main(["-i", "no_such_module"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "python -m fastjob info: No module named 'no_such_module'\n"


@pytest.mark.parametrize("variable", COUNT_VARIABLES)
def test_a_variable_that_is_no_number_is_named(variable, monkeypatch, capsys):
    monkeypatch.setenv(variable, "many")
    assert info.main(["-i", "json"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{variable} must be a whole number of CPUs, got 'many'" in err


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_:
        info.main(["--yaml"])
    assert exit_.value.code == 2
    assert "--yaml" in capsys.readouterr().err
