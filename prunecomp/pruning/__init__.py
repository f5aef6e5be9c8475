"""The loop: score, remove, compensate, repeat; its records, its journal and its plan."""
