"""What is being pruned: a folder on disk or a model in memory, behind one face."""

from prunecomp.subject.base import Subject, position_rows
from prunecomp.subject.describe import describe, stored_as
from prunecomp.subject.folder import FolderSubject
from prunecomp.subject.in_memory import ModelSubject
from prunecomp.subject.opening import open_subject

__all__ = ["FolderSubject", "ModelSubject", "Subject", "describe", "open_subject", "position_rows", "stored_as"]
