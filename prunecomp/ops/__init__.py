"""Statistics of the residual stream and of weights, as ``torch.library`` operations of the namespace ``prunecomp``.

Each has a reference in plain PyTorch and implementations in C++, Triton and CUDA; ``backends.py`` chooses.
"""

from prunecomp.ops.backends import describe_backends, requested
from prunecomp.ops.functions import (
    LayerGram,
    LayerStats,
    layer_gram,
    layer_stats,
    linear_gram,
    weight_norms,
    weight_salience,
)

__all__ = [
    "LayerGram",
    "LayerStats",
    "describe_backends",
    "layer_gram",
    "layer_stats",
    "linear_gram",
    "requested",
    "weight_norms",
    "weight_salience",
]
