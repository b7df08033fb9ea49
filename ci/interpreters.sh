#!/usr/bin/env bash
# Install and test on other interpreters: those named as arguments, or every supported
# python3.X on PATH.  Each gets a new virtual environment.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

interpreters=("$@")
if [ $# = 0 ]; then
  for minor in 10 11 12 13 14; do
    # A version manager puts names on PATH that start nothing.
    "python3.$minor" -c pass 2>/dev/null && interpreters+=("python3.$minor")
  done
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
for python in "${interpreters[@]}"; do
  echo "=== $("$python" --version)"
  venv=$work/$(basename "$python")-${RANDOM}
  "$python" -m venv "$venv" &&
    "$venv/bin/pip" install -q '.[test]' &&
    "$venv/bin/pytest" || status=1
done
exit $status
