"""Parts of records for reports, with names that want to be markup."""

from __future__ import annotations

from typing import Any

HOSTILE = [
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "'\"&lt;", "</text></svg><b>", "]]>", "{{ 7 * 7 }}",
    "$\\frac{1}{0}$", "\u202eevil\x1b[31m", "\u05e9\u05dc\u05d5\u05dd \u0639\u0627\u0644\u0645", "\U0001f600\u200d",
    "\ufffe\uffff", "\ud800", "_x", "n" * 300, "url(#x)", "</style>", "<!--", "a\nb",
]  # fmt: skip


def profile_of(*names: str) -> dict[str, Any]:
    """A profile of so many models, the dense one first."""
    return {
        "models": [_model(name, number) for number, name in enumerate(names)],
        "at_chance": [f"count {names[0]}"], "left_out": None, "items": 20, "seed": 0,
    }  # fmt: skip


def _model(name: str, number: int) -> dict[str, Any]:
    probes = [("copy", 0.9, 0.5), ("brackets", 0.6, 0.6), ("code", 0.4, 0.45)]
    return {
        "name": name, "removed": [1] * number, "texts": {},
        "generation": {"tokens": 20.0, "repetition": 0.1, "ended": 0.5, "until_different": 3.0 if number else None,
                       "identical": 0.25 if number else None},
        "written": [
            {"prompt": f"What is {name}?", "text": f"An answer of {name}", "tokens": [1, 2], "ended": number == 0}
        ],
        "probes": [
            {"probe": f"{probe} {name}", "way": "production", "dense": dense, "score": score if number else dense,
             "difference": {"low": score - dense - 0.1, "high": score - dense + 0.1}}
            for probe, dense, score in probes
        ],
    }  # fmt: skip


def target_of(*names: str) -> dict[str, Any]:
    """A run that broke its limits at 3 layers removed and took 2; ``names`` were measured besides."""
    values = [(28, 1.2, 0.9, -0.02), (26, 1.4, 0.8, -0.04), (24, None, 0.3, -0.5)]
    asked = ["perplexity=1.5x", "agreement=75%", "task:copy=-5%"]
    return {
        "asked": asked,
        "gates": [
            {"layers": gone, "missed": asked if gone == 3 else [],
             "seen": {"layers": left, "perplexity": ratio, "agreement": same, "task:copy": lost,
                      **dict.fromkeys(names, 0.123)}}
            for gone, (left, ratio, same, lost) in enumerate(values, start=1)
        ],
        "dense": {"task:copy": 0.94}, "latency": None,
    }  # fmt: skip
