"""The table of families in ``docs/reference/families.md``, made from the adapters."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import AutoConfig

from prunecomp.model.adapter import Family

HEAD = """# Model families

Made from the adapters by `python -m prunecomp.model.families`; `prunecomp info MODEL` prints the same for one
checkpoint.

A *writer* adds to the residual stream and takes a fold's factor; paths are inside one decoder layer, `*` stands for any
name, and a path that a layer lacks says nothing about it. A *reader* is a norm through which the layer sees the stream:
it ignores the stream's scale. What *needs care* is treated apart: it reads the stream past the norms, say, and takes
the inverse factor. Every fold is proved on the layers it changes all the same, and refused where it is not exact.

"""
COLUMNS = (
    "family", "`model_type`", "writers", "readers", "needs care", "norm", "head tied by default",
    "config fields that follow the layers",
)  # fmt: skip

FOOT = """
The head is what the config of a checkpoint says; both are supported. Under a tied head `--fold down` divides the final
norm's gain and bias. A gain of *1 + w* becomes `a (1 + w) - 1`. Layer lists that a config leaves out are written out
before they are cut; fields that give the kinds of layers as a period are dropped for the list that says the same (but
where whole periods go, and the period stays true), or, where a list of layers overrules the period, set to 1. Layers
behind the last that predict further tokens are dropped with a warning, and so are generation options that name layers.

The text decoder of a multimodal model (Gemma 3, Llama 4, Mistral 3, LLaVA, InternVL, PaliGemma and others whose
`text_config` is of a family in the table) is pruned where it stands: its tensors keep their prefix, everything else is
copied, and `text_config` alone is cut. It is calibrated on text, attended to causally (PaliGemma attends both ways
within a prompt when it generates), and folds `up`: images enter the stream beside the embedding, which `down` scales.

Refused: """


def families_page(table: Iterable[Family]) -> str:
    """The whole page, in Markdown."""
    table = list(table)
    rows = ["| " + " | ".join(COLUMNS) + " |\n", "| --- " * len(COLUMNS) + "|\n"]
    rows += ["| " + " | ".join(_row(family)) + " |\n" for family in table]
    reasons = [f"{family.name} models with `{part}` ({why})" for family in table for part, why in family.refused_parts]
    general = "models without a final norm (OPT 350M), which would take the scale out of the last stream; "
    general += "models whose last layers share keys and values (`num_kv_shared_layers`), where no layer runs by itself"
    return HEAD + "".join(rows) + FOOT + "; ".join([*reasons, general]) + ".\n"


def needs_care(family: Family) -> list[str]:
    """What a fold has to treat apart, in words."""
    care = [f"{path} (inverse factor)" for path in family.raw_readers]
    care += ["gains are 1 + w"] if family.gain_offset else []
    care += [f"{path} scaled with the embedding" for path in family.embeddings[1:]]
    return care


def _row(family: Family) -> list[str]:
    configs = [AutoConfig.for_model(kind) for kind in family.model_types]
    fields = [name for name in family.layer_fields if any(hasattr(config, name) for config in configs)]
    fields += [name for name in family.layer_periods if not name.startswith("_")]
    return [
        family.name,
        _code(family.model_types),
        _code(family.writers),
        _code(family.readers) or "none",
        "; ".join(needs_care(family)) or "none",
        family.norm,
        _tied(family),
        _code(fields),
    ]


def _tied(family: Family) -> str:
    by_default = {kind: AutoConfig.for_model(kind).tie_word_embeddings for kind in family.model_types}
    if len(set(by_default.values())) == 1:
        return "yes" if all(by_default.values()) else "no"
    return ", ".join(f"{kind}: {'yes' if tied else 'no'}" for kind, tied in by_default.items())


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
