"""What is being pruned: a folder on disk or a model in memory, behind one face."""

from prunecomp.model.source.base import ModelSource
from prunecomp.model.source.describe import describe, stored_as
from prunecomp.model.source.folder import FolderSource
from prunecomp.model.source.in_memory import InMemorySource
from prunecomp.model.source.opening import open_source

__all__ = ["FolderSource", "InMemorySource", "ModelSource", "describe", "open_source", "stored_as"]
