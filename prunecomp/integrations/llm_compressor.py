"""A modifier of llm-compressor (0.14) that removes layers, so that one recipe prunes and quantises.

>>> from prunecomp.integrations.llm_compressor import LayerPruningModifier
>>> oneshot(model=model, recipe=[LayerPruningModifier(layers=5), QuantizationModifier(scheme="W8A8", ...)], ...)

In a YAML recipe it goes by the same name, once this module has been imported. It stands first: modifiers look for what
they change when they are initialised, in the order of the recipe, and those after it then see the layers that are left.
"""

from __future__ import annotations

from typing import Any

from llmcompressor.core import State
from llmcompressor.modeling.offset_norm import NormCalibrationModule
from llmcompressor.modifiers import Modifier, ModifierFactory
from pydantic import Field
from transformers import AutoTokenizer

import prunecomp
from prunecomp.errors import OptionError


class LayerPruningModifier(Modifier):
    """Prunes the model in place when the recipe is initialised. It needs no pass of llm-compressor's over the data, so
    that a recipe without other modifiers that do has none.

    Raises :class:`OptionError` for models whose norms multiply by 1 + weight (Gemma, Qwen3-Next): by then
    llm-compressor has put other norms in their place, and will put the first ones back by the names of their layers.
    """

    layers: int | None = None
    """How many go; or say it by ``layers_left``, or by ``keep`` in ``options``."""
    layers_left: int | None = None
    calibration: Any = Field(default=None, exclude=True)
    """As :func:`prunecomp.prune` takes it; without, the first samples of the dataset that ``oneshot`` was given, and
    where there is none the bundled mixture of texts."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further options of :func:`prunecomp.prune`."""

    def on_initialize(self, state: State, **kwargs: Any) -> bool:
        model = state.model
        if any(isinstance(module, NormCalibrationModule) for module in model.modules()):
            raise OptionError(
                f"LayerPruningModifier: llm-compressor has put other norms into this {type(model).__name__}, and puts "
                "them back by name. Prune before oneshot, as in prunecomp.prune(model, ...).apply(model)"
            )
        options = {"layers": self.layers, "layers_left": self.layers_left, **self.options}
        calibration = state.data.calib if self.calibration is None else self.calibration
        if calibration is None or isinstance(calibration, str):
            options.setdefault("tokenizer", AutoTokenizer.from_pretrained(model.config._name_or_path))
        training = model.training
        result = prunecomp.prune(model.eval(), calibration=calibration, **options)
        result.apply(model)
        model.train(training)
        return True


ModifierFactory.register("LayerPruningModifier", LayerPruningModifier)
