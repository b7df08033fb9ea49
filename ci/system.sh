#!/usr/bin/env bash
# What the machine must have: a C compiler, Python with its headers and venv, a browser
# for the tests of the timeline page, strace and valgrind for the counts of the
# benchmarks.  Installs from Debian what is missing.
set -euo pipefail

missing=()
command -v gcc >/dev/null || missing+=(gcc libc6-dev)
for command in chromium python3 strace valgrind; do
  command -v "$command" >/dev/null || missing+=("$command")
done
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
python3 - <<'PYTHON' || missing+=(python3-dev)
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))
PYTHON

if [ ${#missing[@]} -gt 0 ]; then
  echo "installing: ${missing[*]}"
  sudo=$([ "$(id -u)" = 0 ] || echo sudo)
  export DEBIAN_FRONTEND=noninteractive
  $sudo apt-get update -qq
  $sudo apt-get install -qq -y --no-install-recommends "${missing[@]}"
fi

gcc --version | head -n 1
python3 --version
chromium --version
