"""Models from the hub, into its cache: what of a repository is needed, and no code."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from prunecomp.errors import CheckpointError
from prunecomp.model.files import WEIGHTS

NOT_FETCHED = ["*.py", "*.ipynb", "*.png", "*.jp*g", "*.gif", "*.mp4", "*.pdf", "original/*", "consolidated*", ".git*"]


def fetched(model: str, allow_pickle: bool = False, weights: bool = True) -> Path:
    """The folder in the cache of ``ORG/NAME`` or ``ORG/NAME@REVISION``, a branch, a tag or a commit; without
    ``weights`` of its config alone. Raises :class:`CheckpointError`."""
    repository, _, revision = model.partition("@")
    skipped = [
        f"*{suffix}" for suffix in WEIGHTS if suffix != ".safetensors" and not (allow_pickle and suffix == ".bin")
    ]
    try:
        if not weights:
            return Path(snapshot_download(repository, revision=revision or None, allow_patterns=["config.json"]))
        return Path(snapshot_download(repository, revision=revision or None, ignore_patterns=skipped + NOT_FETCHED))
    except Exception as error:  # the hub client raises network, cache and HTTP errors of many libraries
        raise CheckpointError(f"{model!r} is no local folder, and the hub did not give it: {error}") from error
