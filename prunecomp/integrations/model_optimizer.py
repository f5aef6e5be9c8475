"""A pruning mode of NVIDIA Model-Optimizer (0.47): ``prunecomp``, once this module has been imported.

>>> import prunecomp.integrations.model_optimizer
>>> model, found = mtp.prune(
...     model, mode="prunecomp", constraints={"num_layers": 25}, dummy_input=None,
...     config={"forward_loop": forward_loop},
... )

``mto.save`` and ``mto.restore`` know the mode: a fresh dense model is cut first, and then takes the saved weights.
"""

from __future__ import annotations

from typing import Any

import modelopt.torch.prune  # noqa: F401  (the registries of its parts, in the order in which they need each other)
from modelopt.torch.opt.config import ModeloptBaseConfig
from modelopt.torch.opt.conversion import ModeloptStateManager
from modelopt.torch.opt.mode import ConvertEntrypoint, MetadataDict, ModeDescriptor, RestoreEntrypoint
from modelopt.torch.opt.searcher import BaseSearcher, SearchConfig, SearchStateDict
from modelopt.torch.prune.pruning import PruneModeRegistry
from torch import nn

import prunecomp
from prunecomp.errors import OptionError


class LayerPruningConfig(ModeloptBaseConfig):
    """The mode has no configuration: what to do is said by constraints and the search's config."""


class LayerSearcher(BaseSearcher):
    """Prunes to ``constraints={"num_layers": 25}``, or a share as in ``"80%"``.

    Of the search's config it heeds ``forward_loop`` or ``data_loader``, whose token ids are calibrated on (without, the
    bundled mixture of texts), and ``options``, which are those of :func:`prunecomp.prune`.
    """

    removed: list[int]
    record: dict[str, Any]

    @property
    def default_search_config(self) -> SearchConfig:
        return {**super().default_search_config, "options": {}}

    @property
    def default_state_dict(self) -> SearchStateDict:
        return {"removed": [], "record": {}}

    def run_search(self) -> None:
        if set(self.constraints) != {"num_layers"}:
            raise OptionError(f"constraints {self.constraints}: give num_layers alone, as in {{'num_layers': 25}}")
        left = self.constraints["num_layers"]
        target: dict[str, Any] = {"keep": left} if isinstance(left, str) else {"layers_left": left}
        model = self.model.eval()
        calibration = None if self.forward_loop is None else prunecomp.tokens_of(model, self.forward_loop)
        result = prunecomp.prune(model, calibration=calibration, **target, **self.config["options"])
        result.apply(model)
        self.removed, self.record = result.removed, result.record()
        ModeloptStateManager(model)._last_metadata["removed"] = result.removed


def convert(model: nn.Module, config: ModeloptBaseConfig) -> tuple[nn.Module, MetadataDict]:
    """Nothing is changed before the search, which notes what it ``removed``."""
    return model, {"removed": []}


def restore(model: nn.Module, config: ModeloptBaseConfig, metadata: MetadataDict) -> nn.Module:
    """The skeleton of the pruned model, of a dense one."""
    prunecomp.cut(model, metadata["removed"])
    return model


@PruneModeRegistry.register_mode
class LayerPruningModeDescriptor(ModeDescriptor):
    """Whole layers, chosen and compensated for by :func:`prunecomp.prune`."""

    name = "prunecomp"
    config_class = LayerPruningConfig
    next_modes = {"export_nas"}  # noqa: RUF012  (a property of the base class)
    export_mode = "export_nas"
    search_algorithm = LayerSearcher

    @property
    def convert(self) -> ConvertEntrypoint:
        return convert

    @property
    def restore(self) -> RestoreEntrypoint:
        return restore
