"""The command line: parse, call, print."""

import sys

from prunecomp.cli import commands
from prunecomp.cli.shell import app, call
from prunecomp.io.starting import run

__all__ = ["app", "call", "commands", "main"]


def main() -> None:
    """Run the command line of this process."""
    run(lambda: sys.exit(call(sys.argv[1:])))
