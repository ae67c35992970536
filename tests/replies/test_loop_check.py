"""The loop check: it finds exact cycles, soon, in nothing else, and ends replies on every kind of engine."""

import json
import sysconfig
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from asking import ask, collect_replies, generate, running_engine
from llama_engines import open_engine
from nano.measure import MODEL_FILE
from scripted_backend import ScriptedBackend, endless, tokens
from scripted_command import batch_here, run_here

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.repetition import MAX_PERIOD, MIN_REPEATS, MIN_TOKENS, PROBE, CycleSearch
from cerebrum_cli.engine.requests import Request

ROOT = Path(__file__).parents[2]
CODE_FILES, CHARACTERS = 30, 12_000
LINE = "The same line once more, and nothing else.\n"


def found_at(reply: Sequence[int]) -> int | None:
    """Number of tokens after which the check ends a reply; None if it does not."""
    read = array("i")
    cycles = CycleSearch()
    for token in reply:
        read.append(token)
        if end := cycles.end(read, len(read) - 1):
            return end
    return None


def tables() -> Iterator[str]:
    """Tables and lists whose items differ, some by little."""
    yield "\n".join(f"| {n} | {n * n} | {'yes' if n % 2 else 'no'} |" for n in range(300))
    yield "\n".join(f"{n}. Item {n}" for n in range(1, 300))
    yield "\n".join(f"{n} x {m} = {n * m}" for n in range(1, 13) for m in range(1, 13))
    yield json.dumps([{"id": n, "name": f"user{n}", "active": True, "roles": ["reader"]} for n in range(150)], indent=2)
    yield "\n".join(f"2024-{m:02}-{d:02},0.0,0.0,{d % 7}" for m in range(1, 13) for d in range(1, 29))
    yield "".join(f"case {n}:\n    return 0;\n" for n in range(150))
    yield "\n".join("\t".join(str(int(row == column)) for column in range(24)) for row in range(24))
    yield "abcdefghijklmnopqrstuvwxyz " * 2 + "\n" + "-" * 120


def real_texts() -> list[str]:
    """Texts as models write them: prose with tables, code, configuration, JSON, lists."""
    standard_library = Path(sysconfig.get_path("stdlib"))
    files = [
        *sorted(ROOT.glob("docs/**/*.md")),
        *ROOT.glob("*.md"),
        *ROOT.glob("benchmarks/*.md"),
        *ROOT.glob("*.toml"),
        *sorted(ROOT.glob("tests/data/**/*.json"))[:20],
        *sorted(standard_library.glob("*.py"))[:CODE_FILES],
        *sorted(ROOT.glob("cerebrum_cli/replies/**/*.py")),
    ]
    read = [path.read_text(encoding="utf-8")[:CHARACTERS] for path in files]
    return [*tables(), *filter(None, read)]


@pytest.mark.parametrize("before", ["", "An answer that begins well, "])
def test_loop_check_finds_cycles_of_every_period(before: str) -> None:
    random, late = Random(7), []
    periods = [*range(1, 12), *range(16, 250, 7), 127, 128, 254, 255, MAX_PERIOD]
    for period in periods:
        cycle = [300 + random.randrange(9) for _ in range(period - 1)] + [299]
        start = tokens(before) + tuple(random.randrange(400, 4000) for _ in range(random.randrange(400)))
        rule = len(start) + max(MIN_REPEATS * period, MIN_TOKENS)
        end = found_at((*start, *(cycle * (2 * MIN_TOKENS))[: 6 * period + MIN_TOKENS]))
        assert end is not None and end <= rule + 2 * period
        late.append(end - rule)
    assert len(periods) >= 50
    assert max(late) <= 0


@pytest.mark.parametrize("size", [1, 7, PROBE, 300])
def test_loop_check_of_parts_ends_a_reply_where_tokens_do(size: int) -> None:
    random = Random(size)
    for period in (1, 3, 31, 64, 200):
        unit = [random.randrange(9) for _ in range(period)]
        reply = [random.randrange(200) for _ in range(150)] + unit * (600 // period)
        read = array("i")
        cycles = CycleSearch()
        end = None
        while end is None and len(read) < len(reply):
            checked = len(read)
            read.extend(reply[checked : checked + size])
            end = cycles.end(read, checked)
        assert end == found_at(reply)


def test_loop_check_leaves_what_the_rule_leaves() -> None:
    random = Random(7)
    for period in (1, 31, 32, 33, 200, MAX_PERIOD):
        cycle = [random.randrange(9) for _ in range(period - 1)] + [9]
        almost = (cycle * MIN_TOKENS)[: max(MIN_REPEATS * period, MIN_TOKENS) - 1]
        assert found_at((*almost, 99, *almost)) is None
    longer = list(range(MAX_PERIOD + 1))
    assert found_at(longer * 12) is None


@pytest.mark.slow
def test_loop_check_passes_real_texts() -> None:
    texts = real_texts()
    assert len(texts) >= 80
    with open_engine(MODEL_FILE) as engine:
        for text in texts:
            assert found_at(engine.vocabulary.tokenize((Text(text),))) is None, text[:80]


@pytest.mark.parametrize("speculative", [False, True])
def test_engine_ends_a_reply_that_repeats_itself(speculative: bool) -> None:
    backend = ScriptedBackend(endless({"go": "over and over "}), slots=2, context_size=2000)
    request = Request(tokens("go"), SamplingParams(), speculative=speculative, loop_check=True)
    with running_engine(backend) as engine:
        [reply] = collect_replies(generate(engine, [request])).values()
        [plain] = ask(engine, "go", max_tokens=300)
    assert (reply.reason, len(reply.ids)) == ("repetition", MIN_TOKENS)
    assert plain.reason == "length"


@pytest.mark.parametrize(
    ("options", "reason", "lines"),
    [((), "repetition", 4), (("--set", "loop_check=off"), "stop", 30), (("--raw",), "stop", 30)],
)
def test_ask_reports_a_repetition(
    chatml_model: Path, tmp_path: Path, options: tuple[str, ...], reason: str, lines: int
) -> None:
    done = run_here({"reply": LINE * 30}, tmp_path, "ask", "Why?", "-m", chatml_model, "--json", *options)
    answer = done.object
    assert (done.code, answer["finish_reason"], answer["completion_tokens"]) == (0, reason, lines * len(LINE))
    assert [text in done.err for text in ("the reply repeats itself", "repeat_penalty")] == [reason == "repetition"] * 2


def test_vote_counts_a_repetition_as_no_answer(chatml_model: Path, tmp_path: Path) -> None:
    script = {"rows": {}, "seeds": ["The answer is 5.\n" * 40, "So the answer is 7."]}
    done = run_here(script, tmp_path, "ask", "Why?", "-m", chatml_model, "--votes", "4", "--seed", "0", "--json")
    votes = done.object["votes"]
    assert votes["tally"] == [{"answer": "7", "count": 2}]
    assert [(sample["final_answer"], sample["finish_reason"]) for sample in votes["samples"]] == [
        (None, "repetition"),
        ("7", "stop"),
        (None, "repetition"),
        ("7", "stop"),
    ]


@pytest.mark.slow
def test_batch_counts_a_repetition_as_truncated(chatml_model: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "one"}, {"prompt": "two", "loop_check": False}, {"prompt": "three"}]
    script = {"rows": {"three": "Done."}, "seeds": [LINE * 30]}
    done, results = batch_here(script, tmp_path, chatml_model, *rows)
    assert done.code == 0, done.err
    assert [result["finish_reason"] for result in results] == ["repetition", "stop", "stop"]
    assert "1 truncated" in done.err


@pytest.mark.slow
def test_chat_reports_a_repetition_and_can_let_it_be(chatml_model: Path, tmp_path: Path) -> None:
    script = {"rows": {}, "seeds": [LINE * 30]}
    done = run_here(script, tmp_path, "chat", "-m", chatml_model, piped=b"Why?\n/set loop_check off\n/retry\n")
    assert done.err.count("the reply repeats itself and was stopped") == 1 and "try /retry 0.9" in done.err
    assert (done.out.count(LINE.strip()), done.code) == (4 + 30, 0)
