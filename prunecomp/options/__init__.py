"""The options of functions and commands, declared once."""

from prunecomp.options.concerns import PANELS
from prunecomp.options.declare import Option, Options, UnknownOptionError, option
from prunecomp.options.run import CompareOptions, PruneOptions

__all__ = ["PANELS", "CompareOptions", "Option", "Options", "PruneOptions", "UnknownOptionError", "option"]
