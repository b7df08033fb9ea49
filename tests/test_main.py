"""The command line: what it prints, its exit codes, and no traceback for a mistake."""

from __future__ import annotations

import pytest

import fastjob
from fastjob import __main__ as command_line

COMMANDS = ["demo", "info", "report"]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_command(flag, capsys):
    assert command_line.main([flag]) == 0
    out, err = capsys.readouterr()
    assert all(f"\n  {command} " in out for command in COMMANDS)
    assert err == ""


def test_version(capsys):
    assert command_line.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastjob {fastjob.__version__}\n"


def test_no_command_is_a_mistake(capsys):
    assert command_line.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: python -m fastjob")


def test_unknown_command_is_named(capsys):
    assert command_line.main(["dmeo"]) == 2
    assert "unknown command: dmeo" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        command_line.main([command, "--help"])
    assert exit_.value.code == 0
    assert f"usage: python -m fastjob {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["demo"], ["info"], ["report", "run.json"]])
def test_each_command_refuses_an_unknown_option(command, run_python):
    done = run_python("-m", "fastjob", *command, "--no-such-option")
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr
    assert "Traceback" not in done.stderr


def test_report_of_a_missing_file_is_one_clear_sentence(run_python):
    done = run_python("-m", "fastjob", "report", "missing.json")
    assert done.returncode in (1, 2)
    assert "missing.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_imports_no_command(run_python):
    done = run_python(
        "import sys\n"
        "from fastjob.__main__ import main\n"
        "main(['--help'])\n"
        "heavy = {'numpy', 'psutil', 'cloudpickle', 'fastjob.demo'}\n"
        "sys.exit(sorted(heavy & set(sys.modules)) or 0)\n"
    )
    assert done.stderr == ""
    assert done.returncode == 0


def test_ctrl_c_ends_without_a_traceback(run_python):
    done = run_python(
        "import runpy, sys\n"
        "import fastjob.demo\n"
        "def main(argv): raise KeyboardInterrupt\n"
        "fastjob.demo.main = main\n"
        "sys.argv = ['fastjob', 'demo']\n"
        "runpy.run_module('fastjob', run_name='__main__')\n"
    )
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
