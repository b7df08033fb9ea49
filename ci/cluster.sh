#!/usr/bin/env bash
# The tests on real dask and ray clusters, and of scikit-learn on fastjob, in a new
# virtual environment: the packages are large, and nothing else needs them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q '.[test,dask,ray]' scikit-learn
"$venv/bin/pytest" --timeout 120 \
  tests/test_dask.py tests/test_ray.py tests/test_joblib_interop.py
