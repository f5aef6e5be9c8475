"""The families known out of the box, as one explicit table."""

from prunecomp.model.adapter import FamilyRegistry
from prunecomp.model.families.experts import DEEPSEEK, GPT_OSS, MIXTRAL
from prunecomp.model.families.gemma import GEMMA, GEMMA2, GEMMA3
from prunecomp.model.families.layernorm import COHERE, FALCON, GPT2, GPT_NEOX, OPT, STABLELM
from prunecomp.model.families.llama import GRANITE, LLAMA, LLAMA4, MINISTRAL, MISTRAL, PHI3, SMOLLM3
from prunecomp.model.families.postnorm import GLM4, OLMO2
from prunecomp.model.families.qwen import QWEN2, QWEN3, QWEN3_MOE

TABLE = (
    LLAMA, LLAMA4, MISTRAL, MINISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE, GEMMA, GEMMA2, GEMMA3, PHI3, OLMO2, SMOLLM3,
    GRANITE, GLM4, COHERE, STABLELM, DEEPSEEK, GPT_OSS, GPT2, OPT, GPT_NEOX, FALCON,
)  # fmt: skip

families = FamilyRegistry(TABLE)

__all__ = ["TABLE", "families"]
