"""The one number from which a session draws: fixed, unless ``PRUNECOMP_TEST_SEED`` is a number or ``random``."""

from __future__ import annotations

import os
import random
import zlib
from typing import Any

import numpy as np
import torch

VARIABLE = "PRUNECOMP_TEST_SEED"

if os.environ.setdefault(VARIABLE, "0") == "random":
    os.environ[VARIABLE] = str(int.from_bytes(os.urandom(3), "big"))  # workers and child processes take over this one

_asked = 0


def seed() -> int:
    """The seed of this pass over the tests; asked for by what draws from a generator of its own."""
    global _asked
    _asked += 1
    return int(os.environ[VARIABLE])


def seed_of(name: str) -> int:
    """Another seed for each test, the same in any order and any process."""
    return seed() ^ zlib.crc32(name.encode())


class Draws:
    """Seeds the generators that a whole process shares, and tells afterwards whether anybody drew."""

    def __init__(self, name: str) -> None:
        number = seed_of(name)
        torch.manual_seed(number)
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002
        self._before = self._states()

    def happened(self) -> bool:
        return self._states() != self._before

    @staticmethod
    def _states() -> tuple[object, ...]:
        numpy: Any = np.random.get_state()  # noqa: NPY002
        return _asked, random.getstate(), numpy[2], numpy[1].tobytes(), torch.get_rng_state().numpy().tobytes()
