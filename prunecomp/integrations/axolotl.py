"""A plug-in of axolotl (0.21, Python 3.12) that prunes the base model before anything of it is loaded.

    base_model: meta-llama/Llama-3.1-8B
    plugins:
      - prunecomp.integrations.axolotl.LayerPruningPlugin
    prunecomp_out: ./pruned
    prunecomp:
      layers: 5
      calibration: text.txt

Config, tokenizer, weights and the base that an adapter names are then those of ``prunecomp_out``. It is done when the
plug-in is registered: by ``pre_model_load`` axolotl has read the base's config and noted its name.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

import prunecomp
from prunecomp.errors import OptionError

RECORD = "prunecomp.json"
SECONDS = 2.0
"""Between two looks of the other processes for what the first one writes."""


class LayerPruningArgs(BaseModel):
    """What the plug-in adds to axolotl's configuration."""

    prunecomp: dict[str, Any] | None = None
    """The options of :func:`prunecomp.prune`; ``dtype`` and ``device`` are of its run, not of the training."""
    prunecomp_out: str | None = None
    """The folder for the pruned base model. One that is there is taken if the same was asked for."""


class LayerPruningPlugin(BasePlugin):
    """Raises :class:`OptionError` for a folder that holds something else, and what :func:`prunecomp.prune` raises."""

    def get_input_args(self) -> str:
        return f"{__name__}.LayerPruningArgs"

    def register(self, cfg: dict[str, Any]) -> None:
        options, out = cfg.get("prunecomp"), cfg.get("prunecomp_out")
        if not options or not out:
            raise OptionError("prunecomp, prunecomp_out: give the options of the run, and the folder for what it makes")
        base, folder = str(cfg["base_model"]), Path(out)
        if Path(base) == folder:
            return  # registered before, with this configuration
        if int(os.environ.get("RANK", "0")) == 0 and not (folder / RECORD).is_file():
            prunecomp.prune(base, **options).save(folder)
        while not (folder / RECORD).is_file():
            time.sleep(SECONDS)
        check_same(json.loads((folder / RECORD).read_text(encoding="utf-8")), base, options, folder)
        cfg["base_model"] = str(folder)


def check_same(record: Mapping[str, Any], base: str, options: Mapping[str, Any], folder: Path) -> None:
    """Raise :class:`OptionError` unless a checkpoint's record is of the run that was asked for."""
    held = {
        **record["options"],
        "model": record["model"],
        "calibration": record["calibration"]["source"],
        "layers_left": len(record["layer_map"]),
    }
    for name, value in {"model": base, **options}.items():
        if name in held and held[name] != value:
            raise OptionError(
                f"prunecomp_out {folder}: the model in it was made with {name} {held[name]}, not {value}; name another "
                "folder, or remove it"
            )
