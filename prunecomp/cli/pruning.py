"""Commands that score layers, and that remove them: to one number of layers, or to several in one run."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import prunecomp
from prunecomp.checkpoint.claim import claimed
from prunecomp.checkpoint.recipe import RECIPE, check_recipe
from prunecomp.checkpoint.writer import check_output
from prunecomp.cli.reporting import report_beside
from prunecomp.cli.shell import as_typed, print_json, told
from prunecomp.engine.parallel import from_leader, process_group
from prunecomp.errors import CheckpointError, JournalError, OutputError
from prunecomp.io.plain import json_text, parse_json, read_object
from prunecomp.model.source import stored_as
from prunecomp.model.weights import open_checkpoint
from prunecomp.names import RECORD
from prunecomp.options import PruneOptions
from prunecomp.pruning.journal import differences, journal_path
from prunecomp.pruning.result import PruneResult
from prunecomp.report.console import Console, Table
from prunecomp.report.profile import print_profile
from prunecomp.report.tables import gates_table, perplexity_table, repair_tables, rounds_table, scores_table

MEASURING = ("eval", "profile", "tasks", "fewshot", "limit", "items")
"""Options that say what is measured of a model that is there."""


def occupy(held: ExitStack, out: Path, resume: bool, force: bool, model: str, journal: Path) -> bool:
    """Have nobody else write to ``out``, and nothing be there: but what a run left that was killed when its checkpoint
    was whole and its ``journal`` not yet removed. Whether there is such a checkpoint."""
    held.enter_context(claimed(out))
    whole = resume and journal.is_file() and (out / RECORD).is_file()
    if whole and force:  # what is to be replaced is there too
        whole = made_by(journal, out)
    if not whole:
        check_output(out, force, model)
    return whole


def made_by(journal: Path, out: Path) -> bool:
    """Whether the checkpoint in ``out`` has rounds of the run whose ``journal`` it is."""
    run = read_object(journal, JournalError).get("run")
    held = run.get("rounds") if isinstance(run, dict) else None
    made = read_object(out / RECORD, JournalError).get("rounds")
    return isinstance(held, list) and isinstance(made, list) and made == held[: len(made)]


def own_record(result: PruneResult, options: PruneOptions, out: Path) -> dict[str, Any]:
    """The record of the checkpoint in ``out``. Raises :class:`JournalError` unless it is that of ``result``, with
    what was asked for beside it, and its weights are there."""
    verify, recipe = options.verify, options.recipe
    record = read_object(out / RECORD, JournalError)
    asked = parse_json(json_text(result.record()), "the record", JournalError)
    there, here = ({key: one.get(key) for key in ("options", "rounds")} for one in (record, asked))
    for one in (there, here):
        if isinstance(one["options"], dict):
            one["options"].pop("device", None)
    measured = record.get("perplexity")
    there["eval"] = measured.get("source") if isinstance(measured, dict) else None
    here["eval"] = options.eval
    if verify:  # more was done than is asked for where it is off
        there["verify"], here["verify"] = record.get("verified") is not None, True
    if recipe:
        there["recipe"], here["recipe"] = (out / RECIPE).is_file(), True
    differing = differences(there, here)
    if differing:
        raise JournalError(
            f"{out} holds the checkpoint of another run: " + "; ".join(differing) + ". Give the same model, data and "
            "options, or another --out"
        )
    try:
        open_checkpoint(out)
    except CheckpointError as error:
        raise JournalError(f"{out} is not whole any more ({error}): remove it, and give the same command") from error
    return record


def check_recipe_of(model: str, options: PruneOptions) -> None:
    """Raise before any work where a recipe was asked for that cannot be written."""
    if options.recipe:
        check_recipe(options.fold, options.compensation, model, *stored_as(model), repair=options.repair)


def saving(options: PruneOptions) -> dict[str, Any]:
    """How checkpoints are to be written, and the command, to be given again."""
    return {
        "shard_bytes": int(options.max_shard_size * 1e9), "verify": options.verify, "recipe": options.recipe,
        "overwrite": options.force, "command": as_typed(),
    }  # fmt: skip


def prune_once(model: str, options: PruneOptions, given: dict[str, Any]) -> None:
    out, journal = options.out, journal_path(options.out)
    with process_group(options.device) as job, ExitStack() as held:
        # The first process alone looks and writes: others may be on machines that do not see the folder.
        whole = from_leader(lambda: occupy(held, out, options.resume, options.force, model, journal))
        check_recipe_of(model, options)
        keywords = {**PruneOptions.keywords("prune", given), **told(job), "journal": journal}
        if whole:
            kept = {*(["eval"] if options.limits else []), *(["items"] if options.of_tasks else [])}
            keywords = {name: value for name, value in keywords.items() if name in kept or name not in MEASURING}
        result = prunecomp.prune(model, **keywords)
        if job.leads and whole:
            record = own_record(result, options, out)
            if result.on_saved is not None:
                result.on_saved()
        elif job.leads:
            result.save(out, **saving(options), progress=keywords["progress"])
        if job.leads and options.report:
            report_beside(out)
    if not job.leads:
        return
    if options.json:
        print_json({key: value for key, value in record.items() if key != "fold_proofs"} if whole else result.record())
        return
    console = Console(soft_wrap=whole)
    if whole:
        console.print(f"{out} was whole when the run was killed: nothing is left to do", markup=False)
        return
    console.print(rounds_table(result))
    for shown in repair_tables(result):
        console.print(shown)
    for table in (gates_table(result), perplexity_table(result)):
        if table is not None:
            console.print(table)
    if result.profile is not None:
        print_profile(console, result.profile)
    console.print(f"{result.layer_forwards:g} layer-forwards, {result.seconds:.1f} s; wrote {out}", highlight=False)


def occupied(held: ExitStack, model: str, options: PruneOptions) -> list[Path]:
    """Have nobody else write below ``--out``, and nothing be there: but, with ``--resume``, the checkpoints that a run
    that was killed had finished, which are returned, or, with ``--force``, those that are replaced."""
    out, wanted = options.out, [options.out / str(stop) for stop in options.curve or []]
    held.enter_context(claimed(out))
    if (out / "config.json").is_file():
        raise OutputError(f"{out} is a checkpoint, and several go below --out: choose another")
    if not options.force and not (options.resume and journal_path(out).is_file()):
        check_output(out)
    return [each for each in wanted if occupy(held, each, options.resume, options.force, model, journal_path(out))]


def prune(model: str, options: PruneOptions, given: dict[str, Any]) -> None:
    (curve if options.curve else prune_once)(model, options, given)


def curve(model: str, options: PruneOptions, given: dict[str, Any]) -> None:
    out = options.out
    with process_group(options.device) as job, ExitStack() as held:
        # The first process alone looks and writes, as in prune.
        whole: list[Path] = [] if out is None else from_leader(lambda: occupied(held, model, options))
        check_recipe_of(model, options)
        others = {name: value for name, value in given.items() if name not in ("layers", "curve")}
        keywords = {**PruneOptions.keywords("prune", others), **told(job)}
        if out is not None:
            keywords["journal"] = journal_path(out)
        found = prunecomp.curve(model, options.curve, **keywords)
        if job.leads and out is not None:
            for folder, result in found.folders(out):
                if folder in whole:
                    result.take_measured(own_record(result, options, folder))
            found.save(out, whole=whole, **saving(options), progress=keywords["progress"])
            if options.report:
                for each in (*(folder for folder, _ in found.folders(out)), out):
                    report_beside(each)
    if not job.leads:
        return
    if options.json:
        print_json(found.record())
        return
    console = Console()
    headings, *rows = found.rows()
    console.print(Table.of(f"{len(found)} numbers of layers, one run", headings, rows))
    for result in found:
        if result.profile is not None:
            console.print(f"{len(result.removed)} layers gone", highlight=False)
            print_profile(console, result.profile)
    console.print(found.told_cost() + ("" if out is None else f"; wrote {out}"), highlight=False, soft_wrap=True)


def score(model: str, options: PruneOptions, given: dict[str, Any]) -> None:
    with process_group(options.device) as job:
        result = prunecomp.score(model, **{**PruneOptions.keywords("score", given), **told(job)})
    if not job.leads:
        return
    if options.json:
        print_json(result.record())
    else:
        Console().print(scores_table(result))
