"""Build the Cython extensions of fastjob.

Every ``.pyx`` under ``fastjob/_core`` is one extension; a new module needs no
change here.  Cython's directives are set in this one place.  ``FASTJOB_DEBUG=1``
builds with bounds checks, None checks and assertions, and with line tracing left
to the user; a release build pays for none of them.
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("FASTJOB_DEBUG", "") not in ("", "0")
SANITIZE = os.environ.get("FASTJOB_SANITIZE", "")

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "nonecheck": DEBUG,
    "initializedcheck": DEBUG,
    "overflowcheck": DEBUG,
    "cdivision": True,
    "embedsignature": True,
    "binding": True,
}

compile_args, link_args, macros = [], [], []
if sys.platform != "win32":
    compile_args = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
    compile_args += ["-fvisibility=hidden", "-Wno-unused-function"]
if not DEBUG:
    macros.append(("CYTHON_WITHOUT_ASSERTIONS", "1"))
if SANITIZE:
    compile_args += [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer", "-g"]
    link_args += [f"-fsanitize={SANITIZE}"]

extensions = [
    Extension(
        str(path.with_suffix("")).replace(os.sep, "."),
        [str(path)],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=macros,
    )
    for path in sorted(Path("fastjob/_core").glob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        extensions,
        compiler_directives=DIRECTIVES,
        build_dir="build/cython",
        nthreads=0,
    )
)
