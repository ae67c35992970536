"""The loop check ends what grows without end, not what repeats in a document, on every kind of engine."""

import json
import sysconfig
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from asking import ask, collect_replies, generate, running_engine
from cases import rows
from command_line import SOUND_MODELS, CommandLine
from hypothesis import given, strategies as st
from llama_engines import open_engine
from scripted_backend import ScriptedBackend, endless, tokens
from scripted_command import run_here
from tiny_models import write_bigrams

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.repetition import MAX_PERIOD, MIN_TOKENS, STEP, copied_length, repeats, repeats_list
from cerebrum_cli.engine.requests import Request
from scripts.nano.measure import MODEL_FILE

ROOT = Path(__file__).parents[2]
CODE_FILES, CHARACTERS = 30, 12_000
LONG_LIST = "[" + "0, " * 720 + "0]"


def found_at(reply: Sequence[int]) -> int | None:
    """Number of tokens after which the check ends a reply; None if it does not."""
    read = array("i", reply)
    for length in range(STEP, len(read) + 1, STEP):
        if repeats(read[:length]):
            return length
    return None


def real_texts() -> list[str]:
    """Texts as models write them: prose with tables, code, configuration, JSON, lists."""
    patterns = ("docs/**/*.md", "*.md", "benchmarks/*.md", "*.toml", "cerebrum_cli/replies/**/*.py")
    files = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    files += sorted(ROOT.glob("tests/data/**/*.json"))[:20]
    files += sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:CODE_FILES]
    read = [path.read_text(encoding="utf-8")[:CHARACTERS] for path in files]
    return list(filter(None, read))


@pytest.mark.parametrize(("period", "length"), [(1, 256), (32, 256), (64, 512), (65, 260), (MAX_PERIOD, 2048)])
def test_loop_check_counts_eight_copies_of_a_passage_or_four_of_a_long_one(period: int, length: int) -> None:
    assert copied_length(period) == length
    cycle = list(range(period))
    for start in range(STEP):
        begun = [5000 + token for token in range(start)]
        end = found_at([*begun, *(cycle * (length + STEP))[: length + STEP]])
        assert end and length + start <= end < length + start + STEP
        assert found_at([*begun, *(cycle * length)[: length - 1], 9999]) is None


def test_loop_check_passes_four_copies_of_a_longer_passage() -> None:
    assert found_at(list(range(MAX_PERIOD + 1)) * 12) is None


passages = st.lists(st.integers(0, 5), min_size=1, max_size=MAX_PERIOD)


@given(st.lists(st.tuples(passages, st.integers(1, 40)), max_size=6))
def test_loop_check_passes_documents_of_bounded_repetition(parts: list[tuple[list[int], int]]) -> None:
    document: list[int] = []
    for number, (passage, count) in enumerate(parts):
        document += [100 + number, *(passage * count)[: MIN_TOKENS - 1]]
    assert found_at(document) is None


@given(st.lists(st.integers(0, 5), max_size=500), passages)
def test_loop_check_ends_any_passage_that_is_repeated_without_end(before: list[int], passage: list[int]) -> None:
    end = found_at(before + (passage * 6000)[:6000])
    assert end is not None and end < len(before) + copied_length(len(passage)) + STEP


@pytest.mark.slow
def test_loop_check_passes_real_texts_and_documents_that_repeat_themselves() -> None:
    texts = real_texts()
    assert len(texts) >= 80
    with open_engine(MODEL_FILE) as engine:
        for text in (*texts, *(text for _, text in rows("repetitive_documents"))):
            assert found_at(engine.vocabulary.tokenize((Text(text),))) is None, text[:80]


@pytest.mark.parametrize("speculative", [False, True])
def test_engine_ends_a_reply_that_repeats_itself(speculative: bool) -> None:
    backend = ScriptedBackend(endless({"go": "over and over "}), slots=2, context_size=3000)
    request = Request(tokens("go"), SamplingParams(), speculative=speculative, loop_check=True)
    with running_engine(backend) as engine:
        [reply] = collect_replies(generate(engine, [request])).values()
        [plain] = ask(engine, "go", max_tokens=300)
    assert (reply.reason, len(reply.ids)) == ("repetition", MIN_TOKENS)
    assert plain.reason == "length"


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("schema.json", '{"type": "array"}'),
        ("list.gbnf", r'root ::= "[" ("0" ", "?)* "]"'),
        ("list.lark", r'start: "[" /[0, ]*/ "]"'),
        ("list.regex", r"\[[0, ]*\]"),
    ],
)
def test_answer_under_a_grammar_repeats_itself_only_without_the_check(
    chatml_model: Path, tmp_path: Path, name: str, rule: str
) -> None:
    (tmp_path / name).write_text(rule)
    kind = "schema" if name == "schema.json" else "grammar"
    command = ("ask", "Zeros?", "-m", chatml_model, f"--{kind}", tmp_path / name)
    done = run_here({"reply": LONG_LIST}, tmp_path, *command)
    assert (done.code, done.out) == (5, f"{LONG_LIST[: MIN_TOKENS + STEP]}\n")
    problem = f"stopped after {MIN_TOKENS + STEP} tokens, so it does not match the {kind}"
    assert problem in done.err and "--set loop_check=off lets it repeat" in done.err
    done = run_here({"reply": LONG_LIST}, tmp_path, *command, "--set", "loop_check=off")
    assert (done.code, done.out, "repeats" in done.err) == (0, f"{LONG_LIST}\n", False)


@pytest.fixture(scope="module")
def lister(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes a list of the same text without end: the grammar makes it write the commas."""
    path = write_bigrams(tmp_path_factory.mktemp("bigrams") / "lister.gguf", '"', *"phys", '"')
    SOUND_MODELS.append(path)
    return path


@pytest.mark.parametrize(
    ("limits", "options", "length"),
    [
        ({}, (), 21),  # the first, and entries of eight characters, with their commas, that have 160
        ({"minItems": 30}, (), 30),
        ({"maxItems": 12}, (), 12),
        ({"maxItems": 50}, ("--set", "loop_check=off"), 50),
        ({"items": {"type": "array", "items": {"type": "string"}, "maxItems": 3}}, (), 8),
    ],
)
@pytest.mark.parametrize("speculative", ["on", "off"])
def test_list_that_goes_round_is_ended(
    new_user: CommandLine, lister: Path, limits: dict[str, Any], options: tuple[str, ...], length: int, speculative: str
) -> None:
    schema = json.dumps({"type": "array", "items": {"type": "string"}, **limits})
    options = (*options, "--temperature", "0", "--set", f"speculative={speculative}")
    done = new_user.run("ask", "Names?", "-m", lister, "--schema", schema, *options)
    assert (done.code, len(json.loads(done.out))) == (0, length)
    is_ended = length in (21, 30, 8)
    assert ("a list that only repeated its last entries was ended" in done.err) == is_ended


@given(
    st.lists(st.sampled_from(['"a,b"', '"\\\\\\"]"', '{"k": "v"}', '["x", "y"]']), min_size=1, max_size=3),
    st.integers(1, 9),
)
def test_list_goes_round_wherever_its_tokens_end(cycle: list[str], size: int) -> None:
    copies = max(4, -(-160 // len(",".join(cycle)))) + 1
    begun = f'{{"first": [1, 2], "second": ["z", {", ".join(cycle * copies)}'
    answer = begun + ", " + ", ".join(cycle * 9)
    for start in range(0, len(answer), size):
        if repeats_list(answer[:start], answer[start : start + size]):
            assert start <= len(begun)
            return
    raise AssertionError("the list goes on")


def test_list_of_numbers_and_list_with_another_entry_go_on() -> None:
    members = [f'"a{number}": "b"' for number in range(4)]
    for entries in (["0"] * 999, ["[0, 0]"] * 200, [*['"spam"'] * 20, '"ham"', *['"spam"'] * 20], members * 20):
        assert not repeats_list("", f"[{', '.join(entries)}")
    assert not repeats_list("", '["' + "a, b, " * 200)
