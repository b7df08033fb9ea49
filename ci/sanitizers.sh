#!/usr/bin/env bash
# Build the extensions under AddressSanitizer and UndefinedBehaviorSanitizer and run
# the tests on that build; arguments go to pytest.  Works on a copy, so that the
# checkout keeps its own build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/source"
tar -c --exclude=./build --exclude=./.git --exclude='*.so' . | tar -x -C "$work/source"
cd "$work/source"

python3 -m venv "$work/venv"
. "$work/venv/bin/activate"
FASTJOB_SANITIZE=address,undefined pip install -q '.[test]'

# Python itself is not instrumented, so the sanitizer's library must come first, and
# Python's own allocator must not hide its blocks. What Python keeps until it exits
# is no leak of ours.
export LD_PRELOAD=$(gcc -print-file-name=libasan.so)
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:abort_on_error=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export PYTHONMALLOC=malloc
pytest --timeout 600 "$@"
