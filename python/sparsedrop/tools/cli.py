"""The command `sparsedrop`: a table of subcommands, each a module imported only when asked for.

Such a module has `add_arguments(parser)` and `run(args)`, which returns the exit code and raises
UserError for what the user can put right.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import sparsedrop


class Command(NamedTuple):
    module: str
    summary: str


COMMANDS = {
    "info": Command("sparsedrop.tools.info", "what this machine can run"),
    "bench": Command(
        "sparsedrop.tools.bench", "time products and training steps beside dense ones"
    ),
    "study": Command(
        "sparsedrop.tools.study", "train with no dropout, nn.Dropout and methods of this library"
    ),
    "plot": Command("sparsedrop.tools.plot", "draw the results of a study or of networks"),
}


INTERRUPTED = 130
"""The exit code of what Ctrl-C stopped."""


class UserError(Exception):
    """What the user can put right: `main` prints the sentence and exits with code 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `sparsedrop ARGV...`; returns the exit code, 2 where the user must change something."""
    argv = sys.argv[1:] if argv is None else list(argv)
    asked = next((word for word in argv if not word.startswith("-")), None)
    parser = argparse.ArgumentParser(
        prog="sparsedrop", description="Structured dropout whose zeros are skipped."
    )
    version = f"sparsedrop {sparsedrop.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.summary)
        if name == asked:
            module = importlib.import_module(command.module)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except UserError as error:
        print(f"sparsedrop {args.command}: {error}", file=sys.stderr)
        return 2
