"""Llama and Mistral: pre-norm RMSNorm blocks, SwiGLU, optional biases on every projection (Llama)."""

from prunecomp.model.adapter import Family

LLAMA = Family(name="Llama", model_types=("llama",))
MISTRAL = Family(name="Mistral", model_types=("mistral",))
