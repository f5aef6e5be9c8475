"""Taylor: how much the loss would change, to first order, if a layer's weights went to zero one by one."""

from __future__ import annotations

from prunecomp.engine.backward import backward_demand, saliences
from prunecomp.engine.placement import Demand, ModelShape
from prunecomp.metrics.base import Candidates, Metric
from prunecomp.metrics.magnitude import ends, is_weight


class Taylor(Metric):
    """Sum over a layer's matrices and norm gains of ``|sum_n w * dloss_n / dw|`` (Taylor+; Prune&Comp, section 5).

    loss_n is the mean next-token cross entropy of calibration sequence n. The first-order importance is that of
    Molchanov et al. (arXiv 1906.10771), summed over a block's weights as in LLM-Pruner (arXiv 2305.11627); biases do
    not count. Weights and gradients are those of the seam model. It makes no difference that the official code scores
    weights that it has scaled: where a weight is multiplied by a, its gradient is divided by a. Candidates alone are
    scored.
    """

    backward = True
    adds = "a backward pass, of three times a layer-forward for each layer from the lowest candidate up"

    def score(self, candidates: Candidates) -> dict[int, float]:
        return saliences(candidates.run, candidates.layers, is_weight)

    def barriers(self, num_layers: int) -> set[int]:
        """Candidates are 4..L-3, as in the paper's Mag+ and Taylor+."""
        return ends(num_layers)

    def demand(self, shape: ModelShape, span: int) -> Demand:
        return backward_demand(shape)
