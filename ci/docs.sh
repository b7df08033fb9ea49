#!/usr/bin/env bash
# Build the documentation, every warning an error, in the current virtual environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pip install -q -e '.[docs]'
sphinx-build -W --keep-going -q -b html docs docs/_build/html
echo "docs/_build/html: $(find docs/_build/html -name '*.html' | wc -l) pages"
