"""Build entry point: what is static is in pyproject.toml; here the two native libraries are compiled.

They are plain shared libraries behind ``csrc/stats.h``, loaded with ctypes: neither torch nor a GPU is needed to build
them, and one build serves every Python and every torch. Both are optional. Without a compiler the install succeeds and
says what is missing. ``CXX`` names the C++ compiler and ``CUDA_HOME`` the CUDA toolkit; ``PRUNECOMP_CUDA=0`` leaves
CUDA out.
"""

import os
import platform
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNELS = ("csrc/layer_stats.cpp", "csrc/layer_gram.cpp", "csrc/weights.cpp")  # compiled once a variant
DRIVER = "csrc/api.cpp"
CUDA_SOURCES = [name for name in ("csrc/layer_stats.cu", "csrc/layer_gram.cu") if Path(name).exists()]
HEADERS = sorted(str(path) for pattern in ("*.h", "*.cuh") for path in Path("csrc").glob(pattern))

# Square roots that set errno and floating-point traps keep loops from becoming vector code; nothing here needs either.
CXX_FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -pthread -ffp-contract=fast -fno-math-errno -fno-trapping-math"
VARIANTS = {
    "x86_64": {
        "avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -mprefer-vector-width=512",
        "avx2": "-mavx2 -mfma -mf16c",
        "baseline": "",
    },
    "aarch64": {"neon": ""},
}
VARIANTS["amd64"], VARIANTS["arm64"] = VARIANTS["x86_64"], VARIANTS["aarch64"]
CUDA_FLAGS = (
    "-std=c++17 -O3 -shared -Xcompiler -fPIC --cudart static --threads 0 "
    "-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a "
    "-gencode arch=compute_90,code=compute_90"  # PTX for cards to come
)


def run(command: list[str]) -> None:
    print(shlex.join(command), flush=True)
    subprocess.run(command, check=True)


def cxx_compiler() -> list[str]:
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    return [next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), "c++")]


def cuda_compiler() -> str | None:
    if os.environ.get("PRUNECOMP_CUDA") == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    beside = Path(home, "bin", "nvcc") if home else None
    return str(beside) if beside and beside.is_file() else shutil.which("nvcc")


def build_cpu(library: Path, objects: Path) -> None:
    compiler, machine = cxx_compiler(), platform.machine().lower()
    units = [(DRIVER, "driver", "")]
    for variant, flags in VARIANTS.get(machine, {"baseline": ""}).items():
        units += [(source, variant, f"{flags} -DPC_VARIANT={variant} -Wno-psabi") for source in KERNELS]

    def compile_unit(unit: tuple[str, str, str]) -> str:
        source, variant, flags = unit
        target = str(objects / f"{Path(source).stem}.{variant}.o")
        run([*compiler, *CXX_FLAGS.split(), *flags.split(), "-c", source, "-o", target])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(compile_unit, units))
    run([*compiler, "-shared", "-pthread", *compiled, "-ldl", "-o", str(library)])


def build_cuda(library: Path, objects: Path) -> None:
    compiler = cuda_compiler()
    if compiler is not None:
        run([compiler, *CUDA_FLAGS.split(), *CUDA_SOURCES, "-o", str(library)])


class BuildLibraries(build_ext):
    """Compiles shared libraries that are not Python modules, under their own names."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        build = build_cpu if ext.name.endswith("_cpu") else build_cuda
        library = Path(self.get_ext_fullpath(ext.name))
        objects = Path(self.build_temp)
        for folder in (library.parent, objects):
            folder.mkdir(parents=True, exist_ok=True)
        library.unlink(missing_ok=True)  # one that failed to build must not leave its past self
        try:
            build(library, objects)
        except (OSError, subprocess.CalledProcessError) as error:
            self.warn(f"{library.name} was not built and prunecomp will do without: {error}")

    def copy_extensions_to_source(self) -> None:
        Path("prunecomp", "lib").mkdir(exist_ok=True)  # ignored by git, so a fresh clone has none
        super().copy_extensions_to_source()


class PlatformWheel(bdist_wheel):
    """A wheel for every Python 3 of one platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


extensions = [Extension("prunecomp.lib.libprunecomp_cpu", [DRIVER, *KERNELS], depends=HEADERS, optional=True)]
if CUDA_SOURCES:
    extensions.append(Extension("prunecomp.lib.libprunecomp_cuda", CUDA_SOURCES, depends=HEADERS, optional=True))

setup(ext_modules=extensions, cmdclass={"build_ext": BuildLibraries, "bdist_wheel": PlatformWheel})
