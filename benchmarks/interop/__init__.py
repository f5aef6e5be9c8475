"""Does other software load what we export, and does it compute the same? ``make interop``."""
