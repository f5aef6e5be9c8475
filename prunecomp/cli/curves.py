"""The command that prunes, to one number of layers or to several in one run."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import prunecomp
from prunecomp.checkpoint.claim import claimed
from prunecomp.checkpoint.writer import check_output
from prunecomp.cli.pruning import check_recipe_of, occupy, own_record, prune_once
from prunecomp.cli.reporting import report_beside
from prunecomp.cli.shell import as_typed, print_json, told
from prunecomp.engine.parallel import from_leader, process_group
from prunecomp.errors import OutputError
from prunecomp.options import PruneOptions
from prunecomp.pruning.journal import journal_path
from prunecomp.report.console import Console, Table
from prunecomp.report.profile import print_profile


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
            found.save(
                out, whole=whole, shard_bytes=int(options.max_shard_size * 1e9), verify=options.verify,
                recipe=options.recipe, overwrite=options.force, progress=keywords["progress"], command=as_typed(),
            )  # fmt: skip
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
    table = Table(title=f"{len(found)} numbers of layers, one run")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for result in found:
        if result.profile is not None:
            console.print(f"{len(result.removed)} layers gone", highlight=False)
            print_profile(console, result.profile)
    console.print(found.told_cost() + ("" if out is None else f"; wrote {out}"), highlight=False, soft_wrap=True)
