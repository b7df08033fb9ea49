"""What a wheel and an sdist contain, counted from the tree.

Both are built once a run, by the build backend itself as ``pip`` calls it: the wheel
is built from the unpacked sdist, so a file that the sdist lacks is found missing. It
is a debug build, which compiles in a third of the time and has the same contents.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)  # a compiler runs

CHECKOUT = Path(__file__).parents[1]
SOURCES = sorted((CHECKOUT / "fastjob").rglob("*"))
#: Not compiled here, see `setup.py`.
ELSEWHERE = {"lifeline"} if sys.platform == "win32" else {"jobs"}
EXTENSIONS = [
    path for path in SOURCES if path.suffix == ".pyx" and path.stem not in ELSEWHERE
]


def inside(path: Path) -> str:
    return path.relative_to(CHECKOUT).as_posix()


def with_suffix(suffix: str) -> set[str]:
    return {inside(path) for path in SOURCES if path.suffix == suffix}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[Path, Path]:
    """The sdist of the checkout, and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("distributions")
    python = folder / "venv" / "bin" / "python"
    venv.create(folder / "venv", with_pip=True)

    def run(*command, cwd):
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, "FASTJOB_DEBUG": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run(python, "-m", "pip", "install", "-q", "build", cwd=folder)
    run(python, "-m", "build", "--outdir", folder, CHECKOUT, cwd=folder)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def in_sdist(distributions) -> set[str]:
    with tarfile.open(distributions[0]) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="module")
def in_wheel(distributions) -> set[str]:
    with zipfile.ZipFile(distributions[1]) as archive:
        return set(archive.namelist())


def test_the_tree_has_extensions():
    assert len(EXTENSIONS) > 5


@pytest.mark.parametrize("path", EXTENSIONS, ids=lambda path: path.stem)
def test_every_extension_has_a_stub(path):
    assert path.with_suffix(".pyi").is_file()


def test_sdist_has_all_sources(in_sdist):
    wanted = with_suffix(".py") | with_suffix(".pyx") | with_suffix(".pxd")
    wanted |= with_suffix(".pyi") | with_suffix(".csv") | with_suffix(".html")
    wanted |= with_suffix(".h")
    wanted |= {"fastjob/py.typed", "setup.py", "pyproject.toml"}
    wanted |= {"README.md", "LICENSE", "CHANGELOG.md", "DESIGN.md", "CONTRIBUTING.md"}
    wanted |= {inside(path) for path in (CHECKOUT / "tests").rglob("*.py")}
    wanted |= {inside(path) for path in (CHECKOUT / "benchmarks").rglob("*.py")}
    assert wanted - in_sdist == set()


def test_sdist_has_nothing_built(in_sdist):
    built = (".so", ".pyd", ".c", ".pyc")
    assert [name for name in in_sdist if name.endswith(built)] == []


def test_wheel_has_the_modules_types_and_data(in_wheel):
    wanted = with_suffix(".py") | with_suffix(".pyi") | with_suffix(".pxd")
    wanted |= with_suffix(".csv") | with_suffix(".html") | {"fastjob/py.typed"}
    assert wanted - in_wheel == set()


def test_wheel_has_every_extension_once(in_wheel):
    built = sorted(
        name.partition(".")[0] for name in in_wheel if name.endswith((".so", ".pyd"))
    )
    assert built == [inside(path).removesuffix(".pyx") for path in EXTENSIONS]


def test_wheel_has_no_sources_of_extensions_and_no_tests(in_wheel):
    surplus = [name for name in in_wheel if name.endswith((".pyx", ".c", ".cpp"))]
    assert surplus == []
    folders = {name.partition("/")[0].partition("-")[0] for name in in_wheel}
    assert folders == {"fastjob"}


def test_wheel_is_tagged_for_this_interpreter(distributions):
    major, minor = sys.version_info[:2]
    assert f"-cp{major}{minor}-cp{major}{minor}-" in distributions[1].name


def test_the_api_page_lists_every_public_name():
    import fastjob

    page = (CHECKOUT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = {line.strip() for line in page.splitlines()}
    assert set(fastjob.__all__) - {"__version__"} - listed == set()


def test_without_its_compiler_a_build_for_windows_ends_with_advice():
    environ = {k: v for k, v in os.environ.items() if k not in ("CC", "PATH")}
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=CHECKOUT,
        env={**environ, "FASTJOB_TARGET": "nt", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("There is no gcc to build fastjob with. ")
    assert done.stderr.count("\n") == 1
