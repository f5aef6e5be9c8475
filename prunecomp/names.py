"""Names that options choose by, and files that go by a name; importing them costs nothing."""

from __future__ import annotations

from typing import Literal, get_args

VERSION = "0.1.0"

MetricName = Literal["bi", "span", "angular", "ppl", "taylor", "magnitude", "random", "last", "given"]
CompensationName = Literal["scale", "norm", "lsq", "search", "none"]
RepairName = Literal["none", "refit", "joint", "map", "auto"]
Bos = Literal["auto", "each", "start"]
Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]
Form = Literal["up", "down"]
Attention = Literal["auto", "sdpa", "flash_attention_2", "flash_attention_3", "eager"]
Compile = Literal["auto", "on", "off"]
Backend = Literal["auto", "reference", "native", "triton", "cuda"]
Parity = Literal["official"]
RunPreset = Literal["paper"]
PresetName = Literal["paper-table5", "paper"]

FORMS: tuple[str, ...] = get_args(Form)
ATTENTIONS: tuple[str, ...] = get_args(Attention)
COMPILES: tuple[str, ...] = get_args(Compile)
BACKENDS: tuple[str, ...] = get_args(Backend)[1:]

BACKEND_VARIABLE = "PRUNECOMP_BACKEND"

RECORD = "prunecomp.json"
"""The record beside exported weights."""
COMPARISON = "comparison.json"
"""The record of a comparison."""
REPORT = "report.html"
"""What people look at, beside either."""
CURVE = "curve.json"
"""The record of a run that stops at several numbers of layers."""
