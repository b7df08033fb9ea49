#!/usr/bin/env bash
# Build this system's wheels and the sdist into dist/, and check their metadata.
# What is built is configured in pyproject.toml, [tool.cibuildwheel].
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pip install -q build cibuildwheel twine
python -m build --sdist
cibuildwheel --output-dir dist
twine check --strict dist/*
