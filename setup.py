"""Build the Cython extensions of fastjob.

Every ``.pyx`` under ``fastjob/_core`` is one extension; a new module needs no
change here.  Cython's directives are set in this one place.

Environment variables
---------------------
FASTJOB_DEBUG=1
    Bounds checks, initialisation checks, assertions and debugging symbols; a release
    build pays for none of them.
FASTJOB_SANITIZE=address,undefined
    Instrument the extensions with the compiler's sanitizers (see ``ci/sanitizers.sh``).
FASTJOB_ANNOTATE=1
    Write Cython's annotated HTML beside the generated C, in ``build/cython``.
FASTJOB_TARGET=nt
    Build for Windows on another system (see ``ci/windows.sh``).

On Windows the compiler is gcc of MinGW-w64, which has to be on the path.
"""

import multiprocessing
import os
import shutil
import sys
from pathlib import Path

if os.environ.get("FASTJOB_TARGET", os.name) == "nt" and not (
    os.environ.get("CC") or shutil.which("gcc")
):
    sys.exit(
        "There is no gcc to build fastjob with. Install a wheel (pip install "
        "--only-binary fastjob fastjob), or MinGW-w64, and put its bin on the path."
    )

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def switch(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


DEBUG = switch("FASTJOB_DEBUG")
SANITIZE = os.environ.get("FASTJOB_SANITIZE", "")

CORES = os.cpu_count() or 1

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "initializedcheck": DEBUG,
    # Never: Cython refuses such code where the GIL is released, and cannot compile it
    # in constants; the sanitizers look for the same mistakes.
    "nonecheck": False,
    "overflowcheck": False,
    "cdivision": True,
    "embedsignature": True,
    "binding": True,
}

#: The code needs gcc's atomic operations.
COMPILER = {"compiler": "mingw32"} if os.name == "nt" else {}

#: "posix" or "nt".
TARGET = os.environ.get("FASTJOB_TARGET", os.name)

#: Modules that only one kind of system needs.
ELSEWHERE = {"posix": {"jobs"}, "nt": {"lifeline"}}[TARGET]

compile_args = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
compile_args += ["-fvisibility=hidden", "-Wno-unused-function"]
link_args, macros, libraries = [], [], []
if TARGET == "nt":
    libraries = ["ws2_32"]
    link_args = ["-static-libgcc"]
if not DEBUG:
    macros.append(("CYTHON_WITHOUT_ASSERTIONS", "1"))
if SANITIZE:
    compile_args += [
        f"-fsanitize={SANITIZE}",
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
        "-g",
    ]
    link_args += [f"-fsanitize={SANITIZE}"]

# What was built with other settings must be built again.
FLAVOUR = "-".join(filter(None, ["debug" if DEBUG else "release", SANITIZE]))

extensions = [
    Extension(
        ".".join(path.with_suffix("").parts),
        [path.as_posix()],
        include_dirs=["."],
        libraries=libraries,
        depends=[header.as_posix() for header in Path("fastjob/_core").glob("*.h")],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=macros,
    )
    for path in sorted(Path("fastjob/_core").glob("*.pyx"))
    if path.stem not in ELSEWHERE
]


class BuildHereToo(build_ext):
    """Leave the extensions beside their sources as well as in the wheel.

    ``python -m fastjob`` in a checkout finds the checkout's folder before the
    installed package, so that folder must be whole.
    """

    def run(self):
        super().run()
        if not self.inplace:
            self.copy_extensions_to_source()


setup(
    cmdclass={"build_ext": BuildHereToo},
    ext_modules=cythonize(
        extensions,
        compiler_directives=DIRECTIVES,
        build_dir=f"build/cython/{FLAVOUR}",
        annotate=switch("FASTJOB_ANNOTATE"),
        # Any other start method would run this script again in each process.
        nthreads=CORES if multiprocessing.get_start_method() == "fork" else 0,
    ),
    options={
        "build_ext": {"parallel": CORES, **COMPILER},
        "build": {"build_base": f"build/{FLAVOUR}"},
    },
)
