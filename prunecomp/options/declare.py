"""How an option is declared: its name, type, default, help and check in one line of a dataclass, and nowhere else.

The keywords of the functions, the flags of the commands, what a record holds and the table in the documentation are all
read from there. Nothing here, nor in the checks, takes long to import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from inspect import get_annotations
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from prunecomp.errors import OptionError
from prunecomp.io.values import flag, folder_path, function, one_of, text

O = TypeVar("O", bound="Options")  # noqa: E741
Reader = Callable[[str, Any], Any]

READERS: dict[Any, Reader] = {bool: flag, str: text, Path: folder_path, Callable: function}
"""By type, where an option names no check of its own; a ``Literal`` is one of its names."""


class UnknownOptionError(OptionError, TypeError):
    """A keyword that a function does not take: it names the nearest."""


@dataclass(frozen=True)
class Declaration:
    """What :func:`option` was told, beside the default."""

    help: str
    read: Reader | None
    of: frozenset[str]
    required: frozenset[str]
    takes: str | None
    metavar: str | None
    shown_default: str | None
    panel: str | None
    on: Literal["both", "python", "command line"]
    decides: bool | None


def option(
    default: Any,
    help: str,
    read: Reader | None = None,
    *,
    of: str,
    required: str = "",
    takes: str | None = None,
    metavar: str | None = None,
    shown_default: str | None = None,
    panel: str | None = None,
    on: Literal["both", "python", "command line"] = "both",
    decides: bool | None = False,
) -> Any:
    """A field of a dataclass of options.

    Parameters
    ----------
    default : or a function that gives it. Where it is None, None is taken too, and means it.
    help : a line, as ``--help`` shows it.
    read : ``read(name, value)`` gives the value to hold, of what Python or the command line gave, or raises
        :class:`OptionError`. By default the type's own.
    of : the functions and commands that take it, with blanks between them.
    required : those of them that cannot do without.
    takes : the type of what may be given, where it is wider than what is held.
    metavar : what the help calls a value; ``shown_default`` the default, where it is not to be seen.
    panel : the heading under which help lists it, where it is not that of its class.
    on : where it can be given.
    decides : whether choices or numbers of a run depend on it: it is recorded, and a journal is held to it. What does
        not decide is recorded beside, unless this is None: to run again needs it not.
    """
    told = Declaration(
        help, read, frozenset(of.split()), frozenset(required.split()), takes, metavar, shown_default, panel, on,
        decides,
    )  # fmt: skip
    if callable(default):
        return field(default_factory=default, metadata={"option": told})
    return field(default=default, metadata={"option": told})


@dataclass(frozen=True)
class Option:
    """An option of a class of them."""

    field: Field[Any]
    type: Any
    panel: str
    """The heading under which help lists it."""

    @property
    def name(self) -> str:
        return self.field.name

    @property
    def told(self) -> Declaration:
        told: Declaration = self.field.metadata["option"]
        return told

    @property
    def flag(self) -> str:
        """As messages name it: as on the command line, where it can be given there."""
        return self.name if self.told.on == "python" else f"--{self.name.replace('_', '-')}"

    @property
    def default(self) -> Any:
        factory = self.field.default_factory
        return self.field.default if factory is MISSING else factory()

    @property
    def choices(self) -> tuple[str, ...]:
        """The names of a ``Literal``."""
        return next((get_args(kind) for kind in self._kinds if get_origin(kind) is Literal), ())

    @property
    def kind(self) -> Any:
        """The type without None, and without what is in it."""
        kind = self._kinds[0]
        return get_origin(kind) or kind

    @property
    def _kinds(self) -> list[Any]:
        union = get_origin(self.type) is Union or type(self.type).__name__ == "UnionType"
        return [kind for kind in get_args(self.type) if kind is not type(None)] if union else [self.type]

    def read(self, value: Any) -> Any:
        if value is None and self.default is None:
            return None
        if self.told.read is not None:
            return self.told.read(self.flag, value)
        if self.choices:
            return one_of(self.flag, value, self.choices)
        return READERS[self.kind](self.flag, value)


class Options:
    """Base of what is declared by :func:`option`."""

    panel: ClassVar[str]

    @classmethod
    def of(cls: type[O], caller: str, given: Mapping[str, Any], on: str = "python") -> O:
        """The options of a function or command, of what was ``given`` by name: each is read, the others are as they
        are by default. Raises :class:`OptionError` for a name that the caller does not take, for a value that is not of
        its kind, and for what is missing."""
        known = {each.name: each for each in cls.options(caller, on)}
        for name in given:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                raise UnknownOptionError(
                    f"{caller}() takes no option {name}"
                    + (f": did you mean {near[0]}?" if near else f"; it takes {', '.join(known)}")
                )
        for each in known.values():
            if caller in each.told.required and each.name not in given:
                raise OptionError(f"{each.flag}: {caller} needs it: {each.told.help}")
        return cls(**{name: known[name].read(value) for name, value in given.items()})

    @classmethod
    def options(cls, caller: str | None = None, on: str | None = None) -> list[Option]:
        """All, or those of a function or command that can be given in Python or on the command line."""
        return [
            each for each in _options(cls)  # type: ignore[arg-type]
            if (caller is None or caller in each.told.of) and (on is None or each.told.on in ("both", on))
        ]  # fmt: skip

    @classmethod
    def keywords(cls, caller: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Of what was given to a command, what the function of that name takes."""
        known = {each.name for each in cls.options(caller, "python")}
        return {name: value for name, value in given.items() if name in known}

    @classmethod
    def table(cls, caller: str, on: str | None = "command line") -> Iterator[dict[str, str]]:
        """A row for each option: its flag, type, default, help, and the group that it is listed under."""
        for each in cls.options(caller, on):
            told, default = each.told, each.default
            usual = "required" if caller in told.required else told.shown_default
            yield {
                "flag": each.flag,
                "type": ", ".join(each.choices) or told.metavar or str(each.kind.__name__),
                "default": str(usual or ("" if default in (None, []) else default)),
                "help": told.help,
                "group": each.panel,
            }

    def record(self) -> dict[str, Any]:
        """The options that choices and numbers depend on, as plain data."""
        return {each.name: getattr(self, each.name) for each in self.options() if each.told.decides}

    def beside(self) -> dict[str, Any]:
        """What else it takes to run the same again, as plain data, where it is not as it is by default."""
        held = {each.name: (getattr(self, each.name), each.default) for each in self.options()
                if each.told.decides is False and each.told.on != "python"}  # fmt: skip
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, (value, default) in held.items()
            if isinstance(value, bool | int | float | str | Path) and value != default
        }


@cache
def _options(cls: type[Options]) -> tuple[Option, ...]:
    hints = get_type_hints(cls)
    homes = {name: home for home in reversed(cls.__mro__) for name in get_annotations(home)}
    return tuple(
        Option(each, hints[each.name], each.metadata["option"].panel or homes[each.name].__dict__["panel"])
        for each in fields(cls)  # type: ignore[arg-type]
        if "option" in each.metadata
    )
