"""Small problems made in code from a seed: nothing to download, nothing that a model can have seen.

Each probe is a few solved examples and many problems in the same form. A problem has one answer and three wrong ones
that look like it, so that it can be asked in two ways: which of the four is likeliest, and what comes next.
"""

from __future__ import annotations

import ast
import json
import operator
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

# fmt: off
WORDS = [
    "apple", "bread", "chair", "cloud", "dance", "field", "glass", "green", "happy", "horse", "house", "juice",
    "light", "lemon", "money", "mouse", "music", "night", "ocean", "paper", "peace", "plant", "queen", "river",
    "salad", "shirt", "sleep", "smile", "snake", "spoon", "stone", "storm", "sugar", "table", "tiger", "train",
    "water", "wheel",
]
NAMES = [
    "Ada", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Irene", "Jack", "Karen", "Leo", "Maria",
    "Nora", "Oscar", "Paula", "Robert", "Sara",
]
# fmt: on


@dataclass(frozen=True)
class Item:
    """A problem; the answers begin where the question ends."""

    question: str
    answer: str
    wrong: tuple[str, str, str]


@dataclass(frozen=True)
class Probe:
    """Problems of one kind."""

    name: str
    examples: str
    """Solved ones, a line each, that come before every problem."""
    items: tuple[Item, ...]
    solves: Callable[[Item, str], bool]
    """Whether a line that a model wrote after the question solves the problem."""


def same_words(item: Item, line: str) -> bool:
    return line.split() == item.answer.split()


def same_values(item: Item, line: str) -> bool:
    """JSON that parses to what was meant."""
    try:
        return bool(json.loads(line) == json.loads(item.answer))
    except (ValueError, RecursionError):
        return False


OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
}  # fmt: skip


def calculated(node: ast.AST, names: dict[str, int]) -> int:
    """The value of an expression of sums, differences and products alone: what a model writes is never executed. Raises
    :class:`ValueError` for anything else."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        value: int = OPERATORS[type(node.op)](calculated(node.left, names), calculated(node.right, names))
        return value
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.Constant) and type(node.value) is int and abs(node.value) < 10**6:
        return node.value
    raise ValueError(ast.dump(node))


def same_function(item: Item, line: str) -> bool:
    """An expression of the arguments that gives on several of them what the right one gives."""
    try:
        written, right = (ast.parse(text.strip(), mode="eval").body for text in (line, item.answer))
        names = sorted({node.id for node in ast.walk(right) if isinstance(node, ast.Name)})
        trials = [{name: 3 + 7 * i * (k + 1) + k for i, name in enumerate(names)} for k in range(4)]
        return all(calculated(written, trial) == calculated(right, trial) for trial in trials)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False


def addition(digits: int) -> Callable[[Random], Item]:
    def make(random: Random) -> Item:
        low, high = (10 ** (digits - 1), 10**digits - 1) if digits > 1 else (1, 9)
        a, b = random.randint(low, high), random.randint(low, high)
        off = random.sample([-10, -2, -1, 1, 2, 10] if digits > 1 else [-2, -1, 1, 2, 3], 3)
        return Item(f"{a} + {b} =", f" {a + b}", _three(f" {a + b + d}" for d in off))

    return make


def copying(random: Random) -> Item:
    words = random.sample(WORDS, 5)
    return Item(f"Copy: {' '.join(words)} ->", _line(words), _near(random, words))


def reversing(random: Random) -> Item:
    words = random.sample(WORDS, 3)
    orders = [[0, 1, 2], [1, 0, 2], [0, 2, 1], [1, 2, 0], [2, 0, 1]]
    wrong = [_line([words[i] for i in order]) for order in random.sample(orders, 3)]
    return Item(f"Reverse: {' '.join(words)} ->", _line(words[::-1]), _three(wrong))


PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}


def brackets(random: Random) -> Item:
    opened = [random.choice(list(PAIRS)) for _ in range(4)]
    closed = [PAIRS[one] for one in reversed(opened)]
    wrong: set[str] = set()
    while len(wrong) < 3:
        other = list(closed)
        other[random.randrange(4)] = random.choice(list(PAIRS.values()))
        if other != closed:
            wrong.add(_line(other))
    return Item(f"Close: {' '.join(opened)} ->", _line(closed), _three(sorted(wrong)))


def lookup(random: Random) -> Item:
    keys, values = random.sample(WORDS, 6), random.sample(range(10, 100), 6)
    asked = random.randrange(3)  # among the first half: the rest lies between
    others = random.sample([value for i, value in enumerate(values) if i != asked], 3)
    table = ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
    return Item(f"Table: {table}. Value of {keys[asked]}:", f" {values[asked]}", _three(f" {one}" for one in others))


def counting(random: Random) -> Item:
    word, count = random.choice(WORDS), random.randint(2, 7)
    wrong = random.sample([n for n in range(1, 9) if n != count], 3)
    return Item(f"Count: {' '.join([word] * count)} ->", f" {count}", _three(f" {n}" for n in wrong))


def structured(random: Random) -> Item:
    name, age = random.choice(NAMES), random.randint(18, 80)
    right = json.dumps({"name": name, "age": age})
    wrong = right.replace(f'"{name}"', f'"{name}'), right.replace(f'"age": {age}', f'"age" {age}'), right[:-1] + "]"
    return Item(f"name {name}, age {age} ->", f" {right}", _three(f" {one}" for one in wrong))


def coding(random: Random) -> Item:
    a, b = random.sample(WORDS, 2)
    sign, words = random.choice([("+", "sum"), ("-", "difference"), ("*", "product")])
    third = random.randint(2, 9)
    say, right = random.choice(
        [
            (f"{words} of {a} and {b}", f"{a} {sign} {b}"),
            (f"{a} times {third}", f"{a} * {third}"),
            (f"{a} plus {third}", f"{a} + {third}"),
            (f"{b} minus {third}", f"{b} - {third}"),
        ]
    )
    signs = [one for one in "+-*" if f" {one} " not in right]
    used = next(one for one in "+-*" if f" {one} " in right)
    left, last = right.split(f" {used} ")
    wrong = [f"{left} {one} {last}" for one in signs] + [f"{left} {used} {random.choice(WORDS)}{random.randint(1, 9)}"]
    return Item(f"def f({a}, {b}): # {say}: return", f" {right}", _three(f" {one}" for one in wrong))


def _line(words: list[str]) -> str:
    return f" {' '.join(words)}"


def _three(wrong: Any) -> tuple[str, str, str]:
    first, second, third = wrong
    return first, second, third


def _near(random: Random, words: list[str]) -> tuple[str, str, str]:
    """The words with one of them exchanged for another, in three places."""
    wrong = []
    for place in random.sample(range(len(words)), 3):
        other = list(words)
        other[place] = random.choice([word for word in WORDS if word not in words])
        wrong.append(_line(other))
    return _three(wrong)


RECOGNITION, PRODUCTION = "recognition", "production"
"""The two ways to ask."""
EXAMPLES = 4
MAKERS: dict[str, tuple[Callable[[Random], Item], Callable[[Item, str], bool]]] = {
    "add 1 digit": (addition(1), same_words),
    "add 2 digits": (addition(2), same_words),
    "add 3 digits": (addition(3), same_words),
    "copy": (copying, same_words),
    "reverse": (reversing, same_words),
    "brackets": (brackets, same_words),
    "lookup": (lookup, same_words),
    "count": (counting, same_words),
    "json": (structured, same_values),
    "code": (coding, same_function),
}
GROUPS = {"arithmetic": ("add 1 digit", "add 2 digits", "add 3 digits")}
"""Probes that go by one name together."""


def make_probe(name: str, count: int, seed: int) -> Probe:
    """``count`` different problems, and :data:`EXAMPLES` others that are solved."""
    make, solves = MAKERS[name]
    random = Random(f"{name} {seed}")  # the same on every machine and version: seeded by the SHA-512 of the text
    items: dict[str, Item] = {}
    for _ in range(100 * (count + EXAMPLES)):
        item = make(random)
        items.setdefault(item.question, item)
        if len(items) == count + EXAMPLES:
            break
    solved, asked = list(items.values())[:EXAMPLES], list(items.values())[EXAMPLES:]
    return Probe(name, "".join(f"{one.question}{one.answer}\n" for one in solved), tuple(asked), solves)
