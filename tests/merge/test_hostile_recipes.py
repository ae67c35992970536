"""Damaged and hostile recipes: one error at most, no traceback, in bounded time and memory.

`make fuzz` tries many more of them.
"""

from __future__ import annotations

import random
import resource

import pytest
from command_line import CommandLine, Finished

pytestmark = pytest.mark.slow

MAX_MEMORY = 2 * 2**30
RECIPE = """\
merge_method: linear
models:
  - model: small
    parameters: {weight: [0.1, 0.5, 0.9]}
  - model: small
    parameters:
      weight:
        - filter: mlp
          value: 0.25
        - value: 0.75
parameters: {normalize: true}
dtype: float16
tokenizer_source: base
"""
SCALARS = (
    "-1",
    "1e999",
    ".nan",
    "null",
    "[]",
    "{}",
    "''",
    "[[[1]]]",
    "9" * 4000,
    "true",
    "!!binary aGk=",
    "2021-01-01",
    "~",
)
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
RECIPES = {
    "bomb": BOMB + RECIPE,
    "deep": "models: " + "[" * 20_000,
    "deep-flow": "models: " + "{a: " * 5000,
    "object": RECIPE + "x: !!python/object/apply:os.system ['true']\n",
    "not-text": "\x00\x01",
    "many": RECIPE + "".join(f"  k{number}: 1\n" for number in range(20_000)),
    "long": RECIPE.replace("small", "s" * 1_000_000),
}


def require_sound(done: Finished, what: str) -> None:
    assert done.code in (0, 1, 2, 3), (what, done)
    assert "Traceback" not in done.err, (what, done.err)
    assert done.code == 0 or len(done.err.splitlines()) <= 8, (what, done.err[:2000])


def merge(user: CommandLine, recipe: str) -> Finished:
    path = user.home / "recipe.yaml"
    path.write_text(recipe, encoding="utf-8")
    return user.run("merge", path, "-o", user.home / "out.gguf", "--dry-run")


def mutated_recipe(number: int) -> str:
    """A recipe with one to three words replaced, repeated or removed."""
    chosen = random.Random(number)
    lines = RECIPE.splitlines()
    for _ in range(chosen.choice([1, 1, 2, 3])):
        at = chosen.randrange(len(lines))
        kind = chosen.choice(["value", "remove", "repeat", "indent", "key", "cut"])
        if kind == "value" and ":" in lines[at]:
            lines[at] = f"{lines[at].partition(':')[0]}: {chosen.choice(SCALARS)}"
        elif kind == "remove":
            lines[at] = ""
        elif kind == "repeat":
            lines.insert(at, lines[at])
        elif kind == "indent":
            lines[at] = f"  {lines[at]}"
        elif kind == "key":
            lines[at] = lines[at].replace("e", chosen.choice(["", "é", "\t", "&a ", "*a", "? "]), 1)
        else:
            lines[at] = lines[at][: chosen.randrange(len(lines[at]) + 1)]
    return "\n".join(lines)


@pytest.mark.parametrize("name", RECIPES)
def test_hostile_recipe_gets_one_error(name: str, user: CommandLine) -> None:
    done = merge(user, RECIPES[name])
    require_sound(done, name)
    assert done.code == 0 or done.err.startswith("error: ")


@pytest.mark.fuzz
@pytest.mark.parametrize("part", range(10))
def test_fuzzed_recipes_get_errors(part: int, user: CommandLine) -> None:
    for number in range(part, 200, 10):
        require_sound(merge(user, mutated_recipe(number)), f"recipe {number}")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < MAX_MEMORY
