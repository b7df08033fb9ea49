"""The command line: ``python -m benchmarks versus|limits|counts|publish``."""

from __future__ import annotations

import argparse
import sys

from benchmarks import counts, limits, publish, versus

_COMMANDS = {
    "versus": (versus, "fastjob beside joblib and other peers"),
    "limits": (limits, "shares of physical limits, and how cost grows"),
    "counts": (counts, "what does not depend on the machine, against the record"),
    "publish": (publish, "figures and tables of the docs, from a run of versus"),
}


def main() -> int:
    """Parse the arguments and run one command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, text) in _COMMANDS.items():
        module.add_options(commands.add_parser(name, help=text, description=text))
    options = parser.parse_args()
    try:
        return _COMMANDS[options.command][0].run(options)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
