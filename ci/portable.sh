#!/usr/bin/env bash
# The tests as on systems without a nursery and without memfd, in the current virtual
# environment; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export FASTJOB_START_METHOD=spawn FASTJOB_MEMFD=0
exec pytest --timeout 600 "$@"
