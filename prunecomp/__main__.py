"""``python -m prunecomp``."""

from prunecomp.cli import main

main()
