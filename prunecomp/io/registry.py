"""Names that people choose by: the package's own, and those that other installed packages add as entry points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from prunecomp.errors import OptionError
from prunecomp.io.values import shown

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A table by name that other packages extend through the entry-point group ``group``.

    A package of theirs says, in its pyproject.toml::

        [project.entry-points."prunecomp.metrics"]
        mine = "their_package:TheirMetric"

    It is imported when its name is asked for. A name of ours is never replaced.
    """

    def __init__(self, option: str, group: str, own: Mapping[str, T]) -> None:
        self._option, self._group, self._own = option, group, dict(own)

    def _others(self) -> dict[str, Any]:
        return {entry.name: entry for entry in entry_points(group=self._group) if entry.name not in self._own}

    def __iter__(self) -> Iterator[str]:
        return iter([*self._own, *sorted(self._others())])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, name: str) -> T:
        """What goes by ``name``. Raises :class:`OptionError` for a name that nobody has, with those that are known, and
        for an entry point that cannot be imported."""
        if name in self._own:
            return self._own[name]
        entry = self._others().get(name)
        if entry is None:
            raise OptionError(f"{self._option} {shown(name)}: choose {', '.join(self)}")
        try:
            loaded: T = entry.load()
        except Exception as error:  # another package's code runs here
            raise OptionError(f"{self._option} {name}: {entry.value} cannot be imported ({error!r})") from error
        return loaded

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._others()
