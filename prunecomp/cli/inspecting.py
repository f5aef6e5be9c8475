"""Commands that look and measure, and change nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import prunecomp
from prunecomp.cli.shell import print_json, told
from prunecomp.engine.parallel import process_group
from prunecomp.errors import OptionError
from prunecomp.model.source import describe
from prunecomp.ops.backends import describe_backends
from prunecomp.options import PruneOptions
from prunecomp.report.console import Console
from prunecomp.report.profile import print_profile, table_of, tasks_grid
from prunecomp.report.tables import backends_table, info_table, plan_tables


def evaluate(model: str, options: PruneOptions, given: dict[str, Any]) -> None:
    with process_group(options.device) as job:
        found = prunecomp.evaluate(model, **{**PruneOptions.keywords("evaluate", given), **told(job)})
    if not job.leads:
        return
    if options.json:
        tasks = {"base": options.base, "tasks": [asdict(one) for one in found.tasks]} if found.tasks else {}
        print_json({"model": model, "eval": options.eval, "perplexity": float(found), **tasks})
        return
    console = Console()
    if options.eval is not None:
        console.print(f"perplexity {found:.3f}", highlight=False)
    if found.tasks:
        console.print(table_of(tasks_grid([("score", found.tasks)], dense=0 if options.base is None else None)))


def profile(model: str, options: PruneOptions, given: dict[str, Any]) -> None:
    with process_group(options.device) as job:
        keywords = {**PruneOptions.keywords("profile", given), **told(job)}
        texts = None if options.eval is None else {"eval": keywords.pop("eval")}
        found = prunecomp.profile(model, texts, **keywords)
    if not job.leads:
        return
    if options.json:
        print_json({"model": model, "base": options.base, "eval": options.eval, "profile": found.record()})
    else:
        print_profile(Console(), found)


def info(model: str | None, options: PruneOptions, given: dict[str, Any]) -> None:
    if model is None and not options.backends:
        raise OptionError("give a model, or --backends")
    seen: dict[str, Any] = {} if model is None else describe(model, allow_pickle=options.allow_pickle)
    if options.json:
        print_json({**seen, **({"backends": describe_backends()} if options.backends else {})})
        return
    console = Console()
    if seen:
        console.print(info_table(seen))
    if options.backends:
        console.print(backends_table(describe_backends()))


def plan(model: str, options: PruneOptions, given: dict[str, Any]) -> None:
    made = prunecomp.plan(model, **PruneOptions.keywords("plan", given))
    if options.json:
        print_json(made.record())
        return
    console = Console()
    for table in plan_tables(made):
        console.print(table)
