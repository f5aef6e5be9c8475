"""The command line: parse, call, print."""

import sys

from prunecomp.cli.commands import app
from prunecomp.cli.shell import call
from prunecomp.starting import run

__all__ = ["app", "call", "main"]


def main() -> None:
    """Run the command line of this process."""
    run(lambda: sys.exit(call(sys.argv[1:])))
