"""The families known out of the box, as one explicit table."""

from prunecomp.model.adapter import FamilyRegistry
from prunecomp.model.families.llama import LLAMA, MISTRAL
from prunecomp.model.families.qwen import QWEN2, QWEN3

families = FamilyRegistry([LLAMA, MISTRAL, QWEN2, QWEN3])

__all__ = ["families"]
