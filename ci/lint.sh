#!/usr/bin/env bash
# The linters and type checkers, in the current virtual environment.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Editable: mypy reads the types of the extensions from the .pyi files beside them.
pip install -q -e . -r ci/lint-requirements.txt || exit

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
