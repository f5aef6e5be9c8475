"""Small models of every family and data to run them on, drawn from a seed that is printed: see :mod:`tests.seeds`.

``--seeds N`` runs every test that draws N times in this process, each time from another seed.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; child processes take it over

import hypothesis
import pytest
import torch

from tests.models import CASES, build
from tests.seeds import VARIABLE, Draws, seed, seed_of

REFERENCE_MODEL = Path(__file__).parent.parent / "examples" / "reference_model"
DRAWS = pytest.StashKey[bool]()
SHARED = pytest.StashKey[set[str]]()
"""Names of the fixtures that drew and are not made afresh for each test."""

torch.set_num_threads(1)
EXAMPLES = 500 if os.environ.get("PRUNECOMP_SOAK") == "1" else 100
hypothesis.settings.register_profile("ours", deadline=None, database=None, max_examples=EXAMPLES)
hypothesis.settings.load_profile("ours")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=Path, help="write how long each test took, as JSON")
    parser.addoption("--seeds", type=int, default=1, help="pass over every test that draws with so many seeds")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SHARED] = set()


def pytest_report_header(config: pytest.Config) -> str:
    first, count = seed(), config.getoption("seeds")
    return f"{VARIABLE}={first}" + (f", and on to {first + count - 1} for every test that draws" if count > 1 else "")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
        hypothesis.seed(seed_of(item.nodeid))(item.obj)  # type: ignore[attr-defined]
        item.stash[DRAWS] = True


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test draws without a generator of its own depends on its name and the seed alone."""
    draws = Draws(request.node.nodeid)
    yield
    request.node.stash[DRAWS] = request.node.stash.get(DRAWS, False) or draws.happened()


@pytest.fixture(autouse=True)
def fresh_memory_is_nan() -> Iterator[None]:
    """``torch.empty`` and its kind give NaN, or the largest integer, so that what is left unwritten is seen."""
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> Generator[None, Any, Any]:
    """The same for what several tests share."""
    if fixturedef.scope == "function":
        return (yield)
    draws = Draws(f"{request.node.nodeid} {fixturedef.argname}")
    value = yield
    if draws.happened():
        request.config.stash[SHARED].add(fixturedef.argname)
    return value


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    if report.failed:
        report.sections.append((VARIABLE, str(seed())))
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """One pass a seed; those that follow the first take what drew in it, for the rest would do the same again."""
    first, count = seed(), session.config.getoption("seeds")
    if count == 1 or session.config.option.collectonly:
        return None
    items: list[Any] = session.items
    for number in range(first, first + count):
        os.environ[VARIABLE] = str(number)
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
        shared = session.config.stash[SHARED]
        items = [item for item in items if item.stash.get(DRAWS, False) or shared.intersection(item.fixturenames)]
    return True


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    reports = [report for kind in ("passed", "failed", "") for report in terminalreporter.stats.get(kind, ())]
    if config.getoption("seconds") is not None:
        seconds = Counter[str]()
        for report in reports:
            seconds[report.nodeid] += report.duration
        config.getoption("seconds").write_text(json.dumps(seconds))
    seeds: dict[str, list[str]] = {}
    for report in (*terminalreporter.stats.get("failed", ()), *terminalreporter.stats.get("error", ())):
        seeds.setdefault(report.nodeid, []).extend(text for name, text in report.sections if name == VARIABLE)
    for test, failed in seeds.items():
        if failed:  # none where a file could not even be collected
            terminalreporter.write_line(f"{VARIABLE}={failed[0]} repeats {test} (it failed with {', '.join(failed)})")


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> torch.Generator:
    """A generator that differs from test to test and from seed to seed."""
    return torch.Generator().manual_seed(seed_of(request.node.nodeid))


@pytest.fixture(params=sorted(CASES))
def model(request: pytest.FixtureRequest) -> Any:
    """A small random model in float32, once for each family and variant."""
    torch.manual_seed(seed())
    return build(request.param)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Any], Path]:
    """Save a model with transformers and give its folder."""

    def save(model: Any, **options: Any) -> Path:
        folder = tmp_path / "base"
        model.save_pretrained(folder, **options)
        return folder

    return save


@pytest.fixture(scope="session")
def reference_model() -> Path:
    return REFERENCE_MODEL
