"""Every test that draws, over many seeds: ``python -m tests.soak --seeds 30 --processes 2 [-- ARGUMENTS OF PYTEST]``.

A process takes its share of the seeds and passes over the tests once for each, so that imports are paid for once. The
first seed is drawn, unless ``PRUNECOMP_TEST_SEED`` is a number; hypothesis looks at more examples.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("PRUNECOMP_TEST_SEED", "random")

from tests.seeds import VARIABLE


def passes(seeds: range, arguments: list[str]) -> int:
    """The exit code of one process; all that it says where it fails, and its last line where it does not."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--seeds", str(len(seeds)), *arguments]
    environment = {**os.environ, VARIABLE: str(seeds.start), "PRUNECOMP_SOAK": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = done.stdout.splitlines()
    print(f"{VARIABLE}={seeds.start} to {seeds.stop - 1}:", *(lines if done.returncode else lines[-1:]), sep="\n")
    return done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("pytest", nargs="*")
    options = parser.parse_args()
    first, count = int(os.environ[VARIABLE]), min(options.processes, options.seeds)
    bounds = [first + options.seeds * rank // count for rank in range(count + 1)]
    with ThreadPoolExecutor(count) as pool:
        codes = pool.map(lambda rank: passes(range(bounds[rank], bounds[rank + 1]), options.pytest), range(count))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
