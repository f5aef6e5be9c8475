"""The sdist, the wheel, the editable install and the bare checkout: what they hold, and what an import finds in each.

The trap: transformers looks for a package named ``kernels``. Ours lives in a folder of that name in the checkout
and must never be taken for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KERNELS = sorted(path.stem for path in (ROOT / "kernels").glob("*.py"))
HAS_COMPILER = any(shutil.which(name) for name in (os.environ.get("CXX") or "c++", "g++", "clang++"))

PROGRAM = """
import importlib, importlib.util, sys
import kernels
assert kernels.MARK == "of transformers", kernels
for name in {kernels}:
    if importlib.util.find_spec("triton") or name == "launch":
        importlib.import_module("prunecomp.kernels." + name)
    else:
        assert importlib.util.find_spec("prunecomp.kernels." + name)
import prunecomp.kernels
print(prunecomp.kernels.__file__)
"""

REFERENCE = """
import torch
from prunecomp.ops import describe_backends, layer_stats
x = torch.ones(1, 2, 3)
layer_stats(x, x)
print([row["backend"] for row in describe_backends()["active"] if row["operation"] == "layer_stats"][0])
"""


def environment(*path: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PRUNECOMP_BACKEND", "TRITON_INTERPRET")}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, path)), "PRUNECOMP_CUDA": "0", **more}


def run(command: list[str], cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


def pip(*arguments: str, cwd: Path, **more: str) -> str:
    return run([sys.executable, "-m", "pip", "--no-input", *arguments], cwd, environment(**more))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would hold, and nothing that was built."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE
    )
    folder = tmp_path_factory.mktemp("checkout") / "source"
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("examples/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def sdist(checkout: Path) -> Path:
    program = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    run([sys.executable, "-c", program], checkout, environment())
    return next((checkout / "dist").glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip(
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-cache-dir",
        "--wheel-dir",
        str(folder),
        str(sdist),
        cwd=folder,
    )
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", str(folder / "site"), str(wheel), cwd=folder)
    return folder / "site"


@pytest.fixture(scope="module")
def named_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of another project with the name of our folder."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "kernels").mkdir()
    (folder / "kernels" / "__init__.py").write_text('MARK = "of transformers"\n')
    return folder


def test_the_sdist_holds_all_that_a_build_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    sources = {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir() if path.is_file()}
    assert sources <= names
    assert {f"kernels/{name}.py" for name in KERNELS} | {"prunecomp/kernels/__init__.py", "setup.py"} <= names


@pytest.mark.slow
def test_the_wheel_holds_the_package_the_kernels_and_the_library(wheel: Path) -> None:
    assert "-py3-none-" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "prunecomp").rglob("*.py")}
    kernels = {f"prunecomp/kernels/{name}.py" for name in KERNELS}
    assert modules | kernels | {"prunecomp/py.typed"} <= names
    assert not {name for name in names if name.split("/")[0] in ("kernels", "tests", "benchmarks", "csrc")}
    assert ("prunecomp/lib/libprunecomp_cpu.so" in names) == HAS_COMPILER


@pytest.mark.parametrize("place", ["root", "elsewhere"])
@pytest.mark.parametrize("layout", ["checkout", pytest.param("wheel", marks=pytest.mark.slow)])
def test_kernels_import_and_the_other_package_of_that_name_is_left_alone(
    layout: str, place: str, checkout: Path, installed: Path, named_kernels: Path, tmp_path: Path
) -> None:
    first = checkout if layout == "checkout" else installed
    cwd = checkout if place == "root" else tmp_path
    program = PROGRAM.format(kernels=KERNELS)
    if (layout, place) == ("checkout", "root"):  # where the trap is; an import of seconds
        program = "import transformers" + program
    # From the root, -c puts the checkout before all else, as a user's session there does.
    found = run([sys.executable, "-c", program], cwd, environment(first, named_kernels)).splitlines()[-1]
    expected = checkout if place == "root" else first
    assert Path(found) == expected / "prunecomp" / "kernels" / "__init__.py"


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")
def test_an_installed_wheel_finds_its_library(installed: Path, tmp_path: Path) -> None:
    assert run([sys.executable, "-c", REFERENCE], tmp_path, environment(installed)).splitlines()[-1] == "native"


def editable(checkout: Path, tmp_path: Path, **more: str) -> tuple[str, str]:
    """What an editable install of a fresh copy says, and what a program that uses it prints."""
    source = tmp_path / "source"
    shutil.copytree(checkout, source)
    run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], tmp_path, environment())
    python = tmp_path / "venv" / "bin" / "python"
    where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(run(where, tmp_path, environment()).strip())
    (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")  # torch, setuptools and the rest
    command = ["install", "--verbose", "--no-deps", "--no-build-isolation", "--ignore-installed", "--editable", "."]
    pip_there = [sys.executable, "-m", "pip", "--python", str(python), "--no-input"]
    said = run([*pip_there, *command], source, environment(**more))
    run_from = [str(python), "-c", REFERENCE + "import prunecomp.kernels.launch as k; print(k.__file__)"]
    return said, run(run_from, tmp_path, environment())


@pytest.mark.slow
def test_an_editable_install_without_a_compiler_warns_and_runs(checkout: Path, tmp_path: Path) -> None:
    said, printed = editable(checkout, tmp_path, CXX="/nonexistent/c++")
    assert "libprunecomp_cpu.so was not built" in said
    *log, backend, kernel = printed.splitlines()
    assert backend == "reference"
    assert sum("native CPU library is not used" in line for line in log if "RuntimeWarning" in line) == 1
    assert Path(kernel) == tmp_path / "source" / "kernels" / "launch.py"


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")
def test_an_editable_install_of_a_fresh_checkout_builds_its_library(checkout: Path, tmp_path: Path) -> None:
    assert not (checkout / "prunecomp" / "lib").exists()
    _, printed = editable(checkout, tmp_path)
    assert printed.splitlines()[-2] == "native"
    assert (tmp_path / "source" / "prunecomp" / "lib" / "libprunecomp_cpu.so").is_file()
