#!/usr/bin/env bash
# joblibspark's backend on a local Spark, in a new virtual environment. Optional, and no
# part of CI: it needs Java, and the packages are large.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v java >/dev/null || { echo "Spark needs Java, and there is none." >&2; exit 1; }
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q . joblibspark 'pyspark<4' packaging
cd "$venv" # so that the installed package is found, here and by Spark's workers
"$venv/bin/python" "$OLDPWD/ci/spark.py" "$@"
