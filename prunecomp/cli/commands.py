"""The commands: which options each takes, and the module that does its work, which is imported when it is called.

Flags, help and checks are those of the options' declarations.
"""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Collection, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter
from cyclopts.token import Token

from prunecomp.cli.shell import EXIT_CODES, app, reporting
from prunecomp.errors import OptionError, PrunecompWarning
from prunecomp.io.plain import read_object
from prunecomp.io.starting import stoppable
from prunecomp.io.values import at_revision, shown
from prunecomp.names import RECORD
from prunecomp.options import PANELS, CompareOptions, Option, Options, PruneOptions
from prunecomp.options.targets import beside

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GROUPS = {name: Group(name, sort_key=number) for number, name in enumerate(PANELS)}
IN_MEMORY = re.compile(r"(^|\s)the (array of token ids|[A-Za-z]\w*)($|:[\d.]+(\s|$))")
"""What a record calls data that has no name, alone or in a mixture."""
MODEL = "local checkpoint folder or hub id"


def command(
    name: str,
    options: type[Options],
    work: str,
    text: str,
    example: str,
    *,
    caller: str = "",
    model: bool = True,
    subject: tuple[str, str] = ("MODEL", MODEL),
) -> None:
    """Add a command that calls ``work``, ``module.function``, with the model, or another ``subject``, and the options
    as they were given, and those of a recorded run or of a file where they were not."""
    caller = caller or name
    known = options.options(caller, "command line")

    @reporting
    def run(model_name: str | None = None, **given: Any) -> None:
        config, like = given.pop("config", None), given.pop("like", None)
        asked = {
            **({} if like is None else recorded(like, given)),
            **({} if config is None else configured(config, name)),
        }
        model_name = model_name or asked.pop("model", None)
        asked = {key: value for key, value in asked.items() if key != "model"}
        if model_name is None and model:
            raise OptionError(f"{subject[0]}: {name} needs one: {subject[1]}")
        given = {**beside(asked, given), **given}
        read = options.of(caller, given, "command line")
        # The one name from here on, as the record has it.
        model_name = at_revision(model_name, given.pop("revision", None))
        module, _, function = work.partition(".")
        does = getattr(import_module(f"prunecomp.cli.{module}"), function)
        with stoppable():  # before, nothing is begun
            does(model_name, read, given)

    parameters = [
        inspect.Parameter(
            "model_name", inspect.Parameter.POSITIONAL_ONLY, default=None,
            annotation=Annotated[str | None, Parameter(name=subject[0], help=subject[1], group=GROUPS["Run"])],
        ),
        *(parameter(each, caller) for each in known),
        own("config", "options from a TOML file, by name; those given here win"),
        *([own("like", f"run as in a {RECORD}; options given here win")] if name == "prune" else []),
    ]  # fmt: skip
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__doc__ = text
    app.command(run, name=name, help_epilogue=f"Example: prunecomp {example}. {EXIT_CODES}", sort_key=len(list(app)))


def own(name: str, text: str) -> inspect.Parameter:
    """An option of the command line alone, that says where others come from."""
    kind = Annotated[Path | None, Parameter(help=text, group=GROUPS["Run"], **called("FILE"))]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def called(metavar: str | None) -> dict[str, Any]:
    """What help calls a value, where cyclopts lets that be said: before 5, the last for Python 3.10, it does not."""
    return {"metavar": metavar} if "metavar" in inspect.signature(Parameter).parameters else {}


def parameter(option: Option, caller: str) -> inspect.Parameter:
    """An option as a flag. Its text becomes a number where one is meant; the rest is the option's own to read."""
    told, default = option.told, option.default
    kind = option.type if option.choices else str if told.takes and option.kind is not bool else option.kind
    if kind is Any:
        kind = list[str] if option.name == "eval" and caller == "compare" else str
    text = told.help
    if caller in told.required:
        text += " [required]"
    elif told.shown_default:
        text += f" [default: {told.shown_default}]"
    flag = Parameter(
        name=option.flag, help=text, group=GROUPS[option.panel], **called(told.metavar),
        show_default=bool(default) and default is not True and text == told.help,
        negative=None if default is True else (), negative_iterable=(),
        converter=None if kind in (bool, list[str]) else _read, allow_leading_hyphen=kind is not bool,
    )  # fmt: skip
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=default or None, annotation=Annotated[kind, flag]
    )


def _read(kind: Any, tokens: Sequence[Token]) -> Any:
    """A number where the option is one; else the text, to be told what is wrong with it."""
    text = tokens[0].value
    if kind is int and re.fullmatch(r"[+-]?[0-9]{1,40}", text):
        return int(text)
    if kind is float:
        try:
            return float(text)
        except ValueError:
            return text
    return text


def configured(path: Path, name: str) -> dict[str, Any]:
    """Options from a TOML file: by name, in a table for the command, or in none, which is for all commands."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"--config {shown(str(path))}: cannot be read as TOML ({error})") from error
    # A table that is no command's is an option's value, or a name that is told to be none.
    tables = {key for key, value in content.items() if key in app and isinstance(value, dict)}
    options = {key: value for key, value in content.items() if key not in tables}
    if name in tables:
        options |= content[name]
    return {key.replace("-", "_"): value for key, value in options.items()}


def recorded(path: Path, given: Collection[str] = ()) -> dict[str, Any]:
    """Model, data and options of a run, as its record has them, beside those that are ``given`` anew."""
    record = read_object(path, OptionError)
    parts = {name: record.get(name) for name in ("options", "calibration", "perplexity", "run")}
    options, calibration, perplexity, run = (part if isinstance(part, dict) else {} for part in parts.values())
    if not isinstance(record.get("model"), str) or not options:
        raise OptionError(f"--like {shown(str(path))}: it is no record of a run; give the {RECORD} beside an export")
    sources = {"calibration": calibration.get("source"), "eval": perplexity.get("source")}
    known = {each.name for each in PruneOptions.options("prune", "command line") if each.told.decides is not None}
    held = {**{name: source for name, source in sources.items() if source}, **options, **run}
    for name in sources:
        if name not in given and IN_MEMORY.search(str(held.get(name, ""))) and not Path(held[name]).exists():
            raise OptionError(
                f"--like {shown(str(path))}: its --{name} was {shown(held[name])}, data in memory that the record does "
                f"not hold: give --{name}"
            )
    strange = sorted(held.keys() - {each.name for each in PruneOptions.options()})
    if strange:
        warnings.warn(
            f"--like {shown(str(path))}: {', '.join(strange)} of the recorded run is no option here, and is left out",
            PrunecompWarning,
            stacklevel=2,
        )
    if not held.get("profile"):  # a target's, which a run to what it led to has no use for
        held.pop("items", None)
    return {"model": record["model"], **{name: value for name, value in held.items() if name in known}}


command(
    "prune", PruneOptions, "pruning.prune", "Remove layers, compensate, and write an ordinary Hugging Face checkpoint.",
    "prune examples/reference_model --layers 6 --calibration calibration.txt --eval evaluation.txt --out pruned",
)  # fmt: skip
command(
    "score", PruneOptions, "pruning.score", "Score every layer once, and change nothing.",
    "score examples/reference_model --calibration calibration.txt",
)  # fmt: skip
command(
    "compare", CompareOptions, "comparing.compare",
    "Prune in many ways, each with every metric and compensation named, and measure perplexity on the way.\n\n"
    "What several ways have in common is computed once. Nothing is exported.",
    "compare examples/reference_model --layers 2,4,6 --calibration calibration.txt --metrics bi,magnitude --both-ways "
    "--eval evaluation.txt --out compared",
)  # fmt: skip
command(
    "eval", PruneOptions, "inspecting.evaluate",
    "Perplexity over non-overlapping windows, each standing alone; a remainder is dropped.",
    "eval pruned --eval evaluation.txt", caller="evaluate",
)  # fmt: skip
command(
    "profile", PruneOptions, "inspecting.profile",
    "What a model can still do: perplexity, chat prompts answered, probes; beside the dense one that it was made from.",
    "profile pruned --base examples/reference_model --eval evaluation.txt",
)  # fmt: skip
command(
    "info", PruneOptions, "inspecting.info",
    "What the adapter sees: layers, writers, readers, tied or not; loads no weights. Or the back ends.",
    "info examples/reference_model --json", model=False,
)  # fmt: skip
command(
    "plan", PruneOptions, "inspecting.plan",
    "What a run would do: bytes, FLOPs, the bound that holds, memory in each tier. Loads no weights.",
    "plan meta-llama/Llama-3.1-70B --layers 16 --device-memory 80GB",
)  # fmt: skip
command(
    "report", PruneOptions, "reporting.report",
    "One HTML file to look at, from the record of an export, of a comparison, or of several exports in a folder.",
    "report pruned", subject=("RUN", "folder of an export or of a comparison"),
)  # fmt: skip
