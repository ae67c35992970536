"""`cerebrum list --available` and `cerebrum pull` without a name: what fits and answers soon comes first."""

import re

import pytest
from command_line import COMMAND, CommandLine, assert_error
from person import Person

from cerebrum_cli.engine.machine import Memory, Speed

GIB = 2**30
FITS = ["fits", "tight", "too big", None]


@pytest.fixture(params=[8, 16, 32, 64])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of memory of this machine, whose speed is that of two cores with AVX-512."""
    size = int(request.param * GIB)
    monkeypatch.setattr("cerebrum_cli.engine.machine.memory", lambda: Memory(size, size))
    monkeypatch.setattr("cerebrum_cli.engine.machine.load_speed", lambda path: Speed(28e9, 120e9))
    return size


TESTED = "qwen2.5-coder-1.5b"
MADE_FOR = ["cerebrum-12b", "cerebrum-7b", "cerebrum-8x7b", "collective-cognition-7b", "mistral-c2f-7b"]
BEST = {8: "granite-4.1-3b", 16: "gemma4-e4b", 32: "gemma4-26b-a4b", 64: "gemma4-26b-a4b"}


def test_list_available_is_sorted_by_what_fits(new_user: CommandLine, memory: int) -> None:
    rows = new_user.run("list", "--available", "--json").object
    chosen = [next((each for each in row["quantizations"] if each["recommended"]), None) for row in rows]
    fits = [FITS.index(each and each["fit"]) for each in chosen]
    assert fits == sorted(fits) and len(rows) == len({row["name"] for row in rows})
    assert rows[0]["name"] == BEST[memory // GIB]
    slow = next(row for row in rows if row["name"] == "qwen3.5-9b")
    assert slow["speed"]["thinking_s"] == pytest.approx(2000 / slow["speed"]["tokens_per_second"], rel=0.05)
    assert chosen[0] and chosen[0]["needed"] <= (memory - GIB) / 2
    assert all(chosen)  # what has no GGUF is merged or converted
    assert all(row["license"] and row["good_for"] for row in rows)


def test_list_available_shows_size_memory_license_and_use_in_a_pipe(new_user: CommandLine) -> None:
    done = new_user.run("list", "--available")
    head, *lines = done.out.splitlines()
    columns = ["name", "installed", "best fit", "size", "memory", "fit", "speed", "good for", "license", "title"]
    assert re.split(" {2,}", head) == columns
    assert next(line.split() for line in lines if line.startswith("nemotron"))[-3:] == [
        *("speed", "nvidia-nemotron-open-model-license", "Nemotron-3-Nano-30B-A3B")
    ]
    assert done.err.startswith(
        "note: memory for a context of 8192 tokens, speed after a prompt of 200 tokens; this machine has "
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_list_available_ends_with_the_best_on_a_terminal(new_user: CommandLine) -> None:
    best_first = [row["name"] for row in new_user.run("list", "--available", "--json").object]
    env = new_user.environment({"TERM": "xterm-256color"})
    person = Person([COMMAND, "list", "--available"], env, new_user.home, rows=60)
    assert person.end() == 0
    assert [line.split()[0] for line in person.screen.lines[1 : len(best_first) + 1]] == best_first[::-1]


def test_pull_without_a_name_lists_what_fits_in_a_pipe(new_user: CommandLine, memory: int) -> None:
    done = new_user.run("pull")
    lines = done.err.splitlines()
    assert lines[0].startswith("choose a model: tested ones first, then those that cerebrum was made for, ")
    assert lines[2].split()[0] == "name" and lines[3].split()[:2] == ["1", TESTED]
    assert sorted(line.split()[1] for line in lines[4:9]) == MADE_FOR
    assert lines[9].split()[:2] == ["7", BEST[memory // GIB]] and len(lines[3:-2]) == 10
    assert_error(done, 2, "no model given", f"name one, such as cerebrum pull {TESTED}, or see cerebrum list")
