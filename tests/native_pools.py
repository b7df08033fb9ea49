"""Stand-ins for native libraries, compiled from C: the symbols, with nothing behind.

Each keeps its number where the original does, in a thread or in the process, so that
what a limit reaches can be seen without MKL, BLIS, FlexiBLAS, TBB or a Mac.
"""

import shutil
import subprocess
from pathlib import Path

OPENBLAS_SOURCE = r"""
#define JOIN_(a, b, c) a##b##c
#define JOIN(a, b, c) JOIN_(a, b, c)
#define NAME(name) JOIN(PREFIX, name, SUFFIX)
static int threads = 4;
int NAME(openblas_get_num_threads)(void) { return threads; }
void NAME(openblas_set_num_threads)(int n) { threads = n; }
int NAME(openblas_get_parallel)(void) { return PARALLEL; }
const char *NAME(openblas_get_config)(void) { return "OpenBLAS 0.3.99 NO_AFFINITY"; }
const char *NAME(openblas_get_corename)(void) { return "Haswell"; }
"""

OPENMP_SOURCE = r"""
static __thread int team = 6;
int omp_get_max_threads(void) { return team; }
int omp_get_num_threads(void) { return 1; }
void omp_set_num_threads(int n) { team = n; }
"""

MKL_SOURCE = r"""
#include <string.h>
static int threads = 8;
static __thread int local;
int MKL_Get_Max_Threads(void) { return local ? local : threads; }
void MKL_Set_Num_Threads(int n) { threads = n; }
int MKL_Set_Num_Threads_Local(int n) { int before = local; local = n; return before; }
int MKL_Set_Threading_Layer(int layer) { return LAYER; }
void MKL_Get_Version_String(char *text, int size) {
    strncpy(text, "Intel Math Kernel Library Version 2024.2-Product Build 2", size);
}
"""

BLIS_SOURCE = r"""
static long long threads = -1;
long long bli_thread_get_num_threads(void) { return threads; }
void bli_thread_set_num_threads(long long n) { threads = n; }
const char *bli_info_get_version_str(void) { return "0.9.9"; }
int bli_info_get_enable_openmp(void) { return OPENMP; }
int bli_info_get_enable_pthreads(void) { return PTHREADS; }
int bli_arch_query_id(void) { return 7; }
const char *bli_arch_string(int id) { return id == 7 ? "zen3" : "generic"; }
"""

FLEXIBLAS_SOURCE = r"""
#include <string.h>
static int threads = 5;
static const char *names[] = {"NETLIB", "__FALLBACK__", "OPENBLAS"};
int flexiblas_get_num_threads(void) { return threads; }
void flexiblas_set_num_threads(int n) { threads = n; }
void flexiblas_get_version(int *a, int *b, int *c) { *a = 3; *b = 4; *c = 2; }
int flexiblas_list(char *name, size_t size, int i) {
    if (name != NULL && size > 0) strncpy(name, names[i], size);
    return 3;
}
int flexiblas_list_loaded(char *name, size_t size, int i) {
    if (name != NULL && size > 0) strncpy(name, names[2], size);
    return 1;
}
int flexiblas_current_backend(char *name, size_t size) {
    strncpy(name, "OPENBLAS", size);
    return 1;
}
"""

ACCELERATE_SOURCE = r"""
static __thread int threading;
int BLASGetThreading(void) { return threading; }
int BLASSetThreading(int n) { threading = n; return 0; }
"""

TBB_SOURCE = r"""
#include <stddef.h>
#include <stdint.h>
typedef struct { size_t value; intptr_t reserved; int parameter; } control;
static control *controls[64];
size_t _ZN3tbb6detail2r127global_control_active_valueEi(int parameter) {
    size_t least = 0;
    for (int i = 0; i < 64; i++)
        if (controls[i] && controls[i]->parameter == parameter
            && (!least || controls[i]->value < least))
            least = controls[i]->value;
    return least ? least : 9;
}
static void replace(control *from, control *to) {
    for (int i = 0; i < 64; i++)
        if (controls[i] == from) {
            controls[i] = to;
            return;
        }
}
void _ZN3tbb6detail2r16createERNS0_2d114global_controlE(control *c) {
    replace(NULL, c);
}
void _ZN3tbb6detail2r17destroyERNS0_2d114global_controlE(control *c) {
    replace(c, NULL);
}
const char *TBB_runtime_version(void) { return "2099.1.0"; }
"""

DECOY_SOURCE = "int unrelated(void) { return 0; }\n"


def openblas(prefix: str = "", suffix: str = "", parallel: int = 1) -> str:
    head = f"#define PREFIX {prefix}\n#define SUFFIX {suffix}\n"
    source = f"{head}#define PARALLEL {parallel}\n{OPENBLAS_SOURCE}"
    return source + (OPENMP_SOURCE if parallel == 2 else "")


def mkl(layer: int) -> str:
    return f"#define LAYER {layer}\n{MKL_SOURCE}"


def blis(openmp: int, pthreads: int) -> str:
    return f"#define OPENMP {openmp}\n#define PTHREADS {pthreads}\n{BLIS_SOURCE}"


# Name of the file, and source.
BLAS = ("libopenblasp-r0.3.99.so", openblas())
SCIPY = (
    "libscipy_openblas64_-1a2b.so",
    openblas("scipy_", "64_"),
)
OVER_OPENMP = ("libopenblaso.so.0", openblas(parallel=2))
OMP = ("libgomp-d22c.so.1.0.0", OPENMP_SOURCE)
MKL = ("libmkl_rt.so.2", mkl(0))
BLIS = ("libblis.so.4", blis(1, 0))
FLEXIBLAS = ("libflexiblas.so.3", FLEXIBLAS_SOURCE)
TBB = ("libtbb.so.12", TBB_SOURCE)
ACCELERATE = ("Accelerate", ACCELERATE_SOURCE)

#: What a script of `script` can use.
BEGIN = """
import ctypes, os, threading
from fastjob._core.pools import loaded_pools
from fastjob._core.threadpools import threadpool_info, threadpool_limits

def numbers():
    return [pool["num_threads"] for pool in threadpool_info()]

def in_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]
"""


def compiler() -> str | None:
    """The C compiler of this machine, if there is one."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def compile_library(folder: Path, name: str, source: str) -> Path:
    """Compile a stand-in into ``folder``; compiled once for each name and source."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / name
    text = folder / f"{name}.c"
    if library.exists() and text.read_text() == source:
        return library
    text.write_text(source)
    command = [str(compiler()), "-shared", "-fPIC", "-w", "-o", str(library), str(text)]
    subprocess.run(command, check=True, capture_output=True)
    return library


def compiled(folder: Path, **sources: tuple[str, str]) -> dict[str, Path]:
    """Compile stand-ins; each in a folder of its own, as names may repeat."""
    return {
        key: compile_library(folder / key, name, source)
        for key, (name, source) in sources.items()
    }


def script(folder: Path, body: str, **sources: tuple[str, str]) -> str:
    """A script that loads stand-ins in the order they are given, then runs `body`.

    The path of each is in the variable of its key.
    """
    lines = [
        f"{key} = {str(path)!r}; ctypes.CDLL({key})"
        for key, path in compiled(folder, **sources).items()
    ]
    return "\n".join([BEGIN, *lines, body])
