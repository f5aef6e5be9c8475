"""The report in a real browser, where there is one: nothing is fetched, nothing is complained of, all can be read."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import prunecomp
from prunecomp.report.writing import report_of
from tests.models import build, draw_tokens
from tests.report.records import HOSTILE, profile_of, target_of
from tests.seeds import seed

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (400, 1600)
LEGIBLE = 7.5
"""Pixels of the smallest letters of a picture."""
LOOK = """
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, view = frame.contentWindow;
    const sizes = [...page.querySelectorAll("svg")].flatMap(svg => {
      const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
      return [...svg.querySelectorAll("text")].map(text => scale * parseFloat(view.getComputedStyle(text).fontSize));
    });
    return {width: page.documentElement.clientWidth, content: page.documentElement.scrollWidth,
      letters: Math.min(...sizes), texts: sizes.length, title: page.title, scripts: page.scripts.length,
      fetched: view.performance.getEntriesByType("resource").map(one => one.name)};
  });
  document.body.replaceChildren(Object.assign(document.createElement("pre"), {textContent: JSON.stringify(found)}));
});
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no browser")
def test_a_browser_shows_it_and_fetches_nothing(tmp_path: Path, generator: torch.Generator) -> None:
    model = build("llama")
    tokens = draw_tokens(model, torch.Generator().manual_seed(seed()))
    run = prunecomp.prune(model, 2, tokens, eval=tokens, repair="joint").save(tmp_path / "run")
    name = "".join(HOSTILE).replace("\ud800", "")
    record: dict[str, Any] = json.loads((run / "prunecomp.json").read_text())
    record.update(model=name.replace("/", ""), command=name, profile=profile_of(name, name), target=target_of(name))
    (run / "prunecomp.json").write_text(json.dumps(record))
    (run / "collected.json").write_text(json.dumps(prunecomp.collect(model, tokens).record()))
    frames = [
        f'<iframe srcdoc="{html.escape(report_of(run))}" width="{width}" height="900" style="border:0"></iframe>'
        for width in WIDTHS
    ]
    (tmp_path / "look.html").write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{''.join(frames)}{LOOK}")
    ended = subprocess.run(
        [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
         "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom",
         f"file://{tmp_path / 'look.html'}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    said = [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
    assert said == []
    shown = re.search(r"<pre>(.*)</pre>", ended.stdout, re.DOTALL)
    assert shown is not None, ended.stdout[-2000:]
    found = json.loads(html.unescape(shown[1]))
    assert [one["width"] for one in found] == list(WIDTHS)
    for one in found:
        assert one["content"] <= one["width"], "it overflows to the side"
        assert one["fetched"] == []
        assert one["scripts"] == 0
        assert one["texts"] > 30
        assert one["letters"] >= LEGIBLE
