"""What is compiled for the tests is kept for the next session, under a name that its sources and command decide."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

FOLDER = Path(__file__).parent.parent / ".pytest_cache" / "compiled"


def compiled(command: Sequence[str | Path], sources: Iterable[Path], name: str) -> tuple[Path, str]:
    """The file ``name`` that ``command -o name`` makes of ``sources`` and what they include, and what it says."""
    words = [str(word) for word in command]
    key = hashlib.sha256("\0".join([*words, name]).encode())
    key.update(subprocess.run([words[0], "--version"], capture_output=True, check=True).stdout)
    for source in sorted(sources):
        key.update(source.name.encode() + source.read_bytes())
    folder = FOLDER / key.hexdigest()[:20]
    if not folder.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=FOLDER))
        done = subprocess.run([*words, "-o", making / name], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (making / "report.txt").write_text(done.stdout + done.stderr)
        try:
            os.rename(making, folder)
        except OSError:  # another worker was quicker
            shutil.rmtree(making)
    return folder / name, (folder / "report.txt").read_text()
