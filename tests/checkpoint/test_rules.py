"""Names and patterns of layers in a quantization_config follow the layers to their new numbers, or are refused."""

from __future__ import annotations

from typing import Any

import pytest

from prunecomp.checkpoint.rules import renumber_rules
from prunecomp.errors import CheckpointError
from prunecomp.model.families import families

MODULES = {
    "lm_head",
    "model.norm",
    *(
        f"model.layers.{layer}.{leaf}"
        for layer in range(12)
        for leaf in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate", "mlp.down_proj")
    ),
}
ALIVE = (0, 1, 2, 4, 6, 7, 8, 9, 10, 11)  # 3 and 5 are gone
RENUMBER = {layer: number for number, layer in enumerate(ALIVE)}


def after(stated: Any) -> Any:
    return renumber_rules(stated, families.find("llama"), "model.layers", RENUMBER, MODULES)


def test_names_are_renumbered_and_those_of_removed_layers_left_out() -> None:
    stated = {
        "bits": 4,
        "modules_to_not_convert": [
            "lm_head", "model.layers.1.mlp.gate", "model.layers.3.mlp.gate", "model.layers.10.mlp.gate", "layers.4.mlp",
            "language_model.model.layers.11", "vision_tower.encoder.layers.5.mlp", "mlp.gate", "model.layers.5",
        ],
        "config_groups": {"group_0": {"targets": ["Linear", "model.layers.6.mlp.down_proj"], "weights": {"bits": 4}}},
        "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.down_proj"]],
        "ignore": None,
    }  # fmt: skip
    assert after(stated) == {
        **stated,
        "modules_to_not_convert": [
            "lm_head", "model.layers.1.mlp.gate", "model.layers.8.mlp.gate", "layers.3.mlp",
            "language_model.model.layers.9", "vision_tower.encoder.layers.5.mlp", "mlp.gate",
        ],
        "config_groups": {"group_0": {"targets": ["Linear", "model.layers.4.mlp.down_proj"], "weights": {"bits": 4}}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "new"),
    [
        (r"re:.*mlp\.gate$", r"re:.*mlp\.gate$"),
        (r"re:.*lm_head", r"re:.*lm_head"),
        (r"re:.*layers\.6\..*", r"re:.*layers\.4\..*"),
        (r"re:model.layers.10.mlp.gate$", r"re:model.layers.8.mlp.gate$"),
        (r"model\.layers\.4\.self_attn\.(q|o)_proj", r"model\.layers\.3\.self_attn\.(q|o)_proj"),
        (r"re:.*layers\.[0-2]\..*", r"re:.*layers\.[0-2]\..*"),
        (r"re:.*layers\.\d+\..*_proj", r"re:.*layers\.\d+\..*_proj"),
        (r"re:.*layers\.5\..*", None),
        (r"re:vision.*[", r"re:vision.*["),
    ],
)
def test_patterns_say_of_new_names_what_they_said_of_old_ones(rule: str, new: str | None) -> None:
    assert after({"ignore": [rule]}) == {"ignore": [] if new is None else [new]}


def test_keys_of_dynamic_rules_follow() -> None:
    rules = {
        r"-:model\.layers\.6\.mlp\..*": {},
        r"+:.*\.layers\.5\..*": {"bits": 8},
        r".*_proj": {"bits": 4},
    }
    assert after({"dynamic": rules}) == {"dynamic": {r"-:model\.layers\.4\.mlp\..*": {}, r".*_proj": {"bits": 4}}}


@pytest.mark.parametrize(
    "rule",
    [
        r"re:.*layers\.(?:8|9)\..*",
        r"re:.*\.1[0-5]\..*",
        r"re:.*layers\.[4-6]\..*",
        r"re:.*(?:layers\.5\.|layers\.6\.).*",
        r"re:model\.layers\.1",  # opens the names of layers 10 and 11 too
    ],
)
def test_patterns_that_do_not_follow_are_refused(rule: str) -> None:
    with pytest.raises(CheckpointError, match=r"picks layers in a way.*Spell them out in config.json.*--keep"):
        after({"ignore": ["lm_head", rule]})
    with pytest.raises(CheckpointError, match="picks layers in a way"):
        after({"dynamic": {rule.replace("re:", "-:"): {}}})
