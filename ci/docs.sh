#!/usr/bin/env bash
# Build the documentation, every warning an error. The current virtual environment has
# the package and its extra `docs`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

sphinx-build -W --keep-going -q -b html docs docs/_build/html
echo "docs/_build/html: $(find docs/_build/html -name '*.html' | wc -l) pages"
