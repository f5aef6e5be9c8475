"""The command line: parse, call, print."""

from prunecomp.cli import pruning, comparing, inspecting  # noqa: I001  (the order in which --help lists their commands)
from prunecomp.cli.options import parse_layers
from prunecomp.cli.shell import app
from prunecomp.io.starting import run

__all__ = ["app", "comparing", "inspecting", "main", "parse_layers", "pruning"]


def main() -> None:
    """Run the command line of this process."""
    run(lambda: app(prog_name="prunecomp"))
