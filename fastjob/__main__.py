"""The command line: ``python -m fastjob demo | info | report``."""

from __future__ import annotations

import sys
from importlib import import_module

from fastjob import __version__

COMMANDS = {
    "demo": "a permutation test and a bootstrap on Fisher's iris, in parallel",
    "info": "what fastjob sees of this machine: cores, limits, thread pools",
    "report": "make a timeline page from a recorded run",
}


def usage() -> str:
    """The help text of ``python -m fastjob``."""
    lines = [f"  {name:8}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m fastjob [-h] [--version] COMMAND ...",
            "",
            "commands:",
            *lines,
            "",
            "`python -m fastjob COMMAND --help` describes one command.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : list of str, optional
        The arguments after the program's name; ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        The exit code: 0 for success, 1 for a failed command, 2 for wrong arguments.
    """
    arguments = sys.argv[1:] if argv is None else argv
    match arguments:
        case ["-h" | "--help", *_]:
            print(usage())
            return 0
        case ["--version", *_]:
            print(f"fastjob {__version__}")
            return 0
        case [command, *rest] if command in COMMANDS:
            # Imported here: each command pays for its own imports only.
            run = import_module(f"fastjob.{command}").main
            return int(run(rest))
        case [unknown, *_]:
            print(f"{usage()}\n\nunknown command: {unknown}", file=sys.stderr)
            return 2
        case _:
            print(usage(), file=sys.stderr)
            return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell reports a command ended by SIGINT
