#!/usr/bin/env bash
# The linters and type checkers of the current virtual environment, where the package
# is installed as editable: mypy reads the types of the extensions from the .pyi files
# beside them.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

status=0
check() {
  printf '%s\n' "--- $*"
  "$@" || status=1
}

check ruff check .
check ruff format --check .
check cython-lint fastjob
check mypy
check mypy --strict --python-version 3.10 tests/typing
check basedpyright --project ci/pyright.json
exit $status
