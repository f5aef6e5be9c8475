"""Other tools call prunecomp by these, one file a tool; each is imported by who has that tool, and by nobody else."""
