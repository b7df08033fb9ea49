#!/usr/bin/env bash
# Run the tests so many times in a row, 20 unless told, and stop at the first failure:
# what fails once in twenty runs is a fault to understand. Arguments behind the number
# go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

times=${1:-20}
shift || true
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
. "$work/venv/bin/activate"
pip install -q '.[test]'
for run in $(seq 1 "$times"); do
  printf '=== run %d of %d\n' "$run" "$times"
  pytest -q -p no:cacheprovider "$@"
done
