"""Give exports of the bundled model to other software, let other software call us, and compare.

    python -m benchmarks.interop
    python -m benchmarks.interop --peers llm_compressor,vllm

Each peer is an environment that ``make interop`` has installed, .venv-interop-PEER, and its checks run in it. What
could not be installed has its reason in the table. Writes benchmarks/results/interop.json and
docs/reference/interop.md, in which peers that are not named keep their rows and the day they were measured. Exits with
1 if a comparison fails or was not made.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.interop.report import Finding, findings_of, markdown, not_run, table
from benchmarks.interop.suite import CHECKS

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "benchmarks" / "results" / "interop.json"
PAGE = ROOT / "docs" / "reference" / "interop.md"
PEERS = tuple(dict.fromkeys(check.peer for check in CHECKS.values()))
SECONDS = 3600.0
"""After which a peer is left: it hangs."""


def environment(peer: str) -> Path:
    return ROOT / f".venv-interop-{peer}"


def run_peer(peer: str, work: Path) -> dict[str, Any]:
    """What :mod:`benchmarks.interop.run` writes, or findings that say why it did not."""
    names = [name for name, check in CHECKS.items() if check.peer == peer]
    if not (environment(peer) / ".installed").exists():
        return {"findings": [not_run(name, f"not installed here: {why_not(peer)}") for name in names]}
    made = work / f"{peer}.json"
    command = [environment(peer) / "bin" / "python", "-m", "benchmarks.interop.run", made, *names]
    alone = {**os.environ, "HF_HUB_OFFLINE": "1"}  # nothing is to come from the hub
    try:
        subprocess.run(list(map(str, command)), cwd=ROOT, env=alone, check=True, timeout=SECONDS)
    except subprocess.SubprocessError as error:
        ended = f"ended with {type(error).__name__}"
        return {"findings": [Finding(name, "", ended, float("inf"), 0.0).record() for name in names]}
    result: dict[str, Any] = json.loads(made.read_text())
    return result


def why_not(peer: str) -> str:
    """The last error that was told when its environment was set up, but for make's own."""
    log = Path(f"{environment(peer)}.log")
    said = log.read_text(errors="replace").splitlines() if log.exists() else []
    errors = [line.strip() for line in said if "***" not in line and re.search("error|not found|no such", line, re.I)]
    return errors[-1].replace("|", "/") if errors else "make interop installs it"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=",".join(PEERS), help="environments, separated by commas")
    peers = parser.parse_args(arguments).peers.split(",")
    if unknown := set(peers) - set(PEERS):
        parser.error(f"--peers {', '.join(sorted(unknown))}: choose from {', '.join(PEERS)}")

    console = Console()
    if not console.is_terminal:
        console.width = 160  # a log has no edge, and the table would be folded into shreds
    with tempfile.TemporaryDirectory() as work:
        found = {peer: run_peer(peer, Path(work)) for peer in peers}
    findings = findings_of(found)
    console.print(table(findings))
    held = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record = {peer: {**held, **found}[peer] for peer in PEERS if peer in {**held, **found}}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    PAGE.write_text(markdown(record))
    console.print(f"written: {RECORD.name}, {PAGE.name}")
    return int(any(finding["verdict"] != "pass" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
