"""Grammars and stop strings that apply once the answer starts: after reasoning, its markup, and white space."""

import json
import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import dumps, loads
from typing import Any

import pytest
from asking import collect_replies, generate
from command_line import SOUND_MODELS, CommandLine, Finished, assert_error
from llama_engines import open_engine
from tiny_models import CHATML_TEMPLATE, write_bigrams

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.formats.markup import REASONING_MARKUPS
from cerebrum_cli.formats.prompt_format import ReasoningMarkup
from cerebrum_cli.formats.reply_text import MAX_BLANKS, ReplyRules, ReplyText

# Where the answer starts, by the tokens of a reply.

OPENS = {markup.open: (markup,) for markup in REASONING_MARKUPS}
QWEN, MISTRAL, GEMMA = OPENS["<think>"], OPENS["[THINK]"], OPENS["<|channel>thought"]
COHERE = OPENS["<|START_THINKING|>"]
SOLAR = tuple(markup for markup in REASONING_MARKUPS if "<|think|>" in markup.open)
HARMONY = tuple(markup for markup in REASONING_MARKUPS if "<|message|>" in markup.open)
SPECIAL = ("<|channel|>", "<|message|>", "<|start|>", "<|channel>", "[THINK]", "<|think|>", "<|begin|>", "<|content|>")
SPECIAL_TAGS = (*SPECIAL, "<think>", "</think>")
ANALYSIS = "<|channel|> analysis <|message|> H m <|end|>"
NEXT_CHANNEL = "<|start|> assistant <|channel|> final <|message|>"


@dataclass(frozen=True)
class Case:
    """Tokens of a reply, and for each whether it is reasoning, passes, or is the answer's.

    Where the answer starts, `held` may be a part of it, and `rest` would complete the markup.
    """

    tokens: str
    stages: str
    markups: tuple[ReasoningMarkup, ...] = QWEN
    special: tuple[str, ...] = SPECIAL
    opened: bool = False
    held: str = ""
    rest: str = ""


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case("<think> ␤ H </think> ␤␤ {", "ptttpa", special=SPECIAL_TAGS), id="special tokens"),
        pytest.param(Case("H m </think> ␤␤ {", "tttpa", special=SPECIAL_TAGS, opened=True), id="opened in the prompt"),
        pytest.param(Case("␤ <think> H </think> {", "pptta", special=SPECIAL_TAGS), id="white space before it"),
        pytest.param(Case("< think >␤ H </ think > ␤ {", "pppttttpa"), id="spelled"),
        pytest.param(
            Case("<| START_THINKING|> H <|END_THINKING|>< |START_ RESPONSE|> {", "ppttppa", COHERE), id="header"
        ),
        pytest.param(Case("< person", "pa", held="<", rest="think>"), id="spelled in part"),
        pytest.param(Case("< person", "aa", special=SPECIAL_TAGS), id="text like a special token"),
        pytest.param(Case("[ 1", "aa", MISTRAL), id="bracket"),
        pytest.param(Case("[THINK] H [/THINK] [", "ptta", MISTRAL), id="brackets"),
        pytest.param(Case("<|channel> thought ␤ H <channel|> {", "ppttta", GEMMA), id="special token and text"),
        pytest.param(Case(f"{ANALYSIS} {NEXT_CHANNEL} {{", "ppptttpppppa", HARMONY), id="channels"),
        pytest.param(Case("<|channel|> final <|message|> {", "pppa", HARMONY), id="final channel alone"),
        pytest.param(Case("<|think|> H <|end|> <|begin|> assistant <|content|> {", "pttpppa", SOLAR), id="turns"),
        pytest.param(Case("<|content|> {", "pa", SOLAR), id="content alone"),
        pytest.param(Case("<|channel|> final json", "ppa", HARMONY, rest="<|message|>"), id="unknown header"),
        pytest.param(Case(" ".join("␤" * (MAX_BLANKS + 1)), "p" * MAX_BLANKS + "a"), id="much white space"),
        pytest.param(Case("{ <think>", "aa", special=SPECIAL_TAGS), id="no reasoning"),
        pytest.param(Case("</think> {", "aa", special=SPECIAL_TAGS), id="end of no reasoning"),
        pytest.param(Case("H </think>{ a", "tta", opened=True, held="{"), id="in the token that ends reasoning"),
    ],
)
def test_answer_starts_after_reasoning_and_its_markup(case: Case) -> None:
    ids = {text: id for id, text in enumerate(case.special)}
    markers = [each.header for each in case.markups if each.header] + [each.open for each in case.markups]
    tokens = {marker: frozenset(id for text, id in ids.items() if text in marker) for marker in markers}
    rules = ReplyRules(case.markups, case.markups[0] if case.opened else None, stops_anywhere=False, markers=tokens)
    reader, stages, ends = ReplyText(loads(dumps(rules))), "", []
    for text in case.tokens.replace("␤", "\n").split(" "):
        token = ids.get(text, 100)
        if reader.stage == "thinking":
            stages += "t"
        elif reader.stage == "undecided" and reader.precedes_answer(token, text):
            stages += "p"
        else:
            stages += "a"
            ends.append((reader.answer_start, reader.missing_markup))
            reader.begin_answer()
        reader.feed(text.encode(), (token,))
    assert (stages, ends[0]) == (case.stages, (case.held, case.rest))


# Real models, each token of which follows from the last.

AFTER_COLON = CHATML_TEMPLATE.replace("assistant\n' }}", "assistant:' }}")
OPENED = AFTER_COLON.replace("assistant:", "assistant:<think>")
SWITCHED = AFTER_COLON.replace("assistant:'", "assistant:' + ('' if enable_thinking | default(true) else ' ')")
SPELLED = AFTER_COLON + "{# [THINK] #}"
REASONING = ("H", "m", ".", "</think>", " ", "x", "y")
OBJECT = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
NO_DAY = {"const": "2025-02-29T00:00:00Z", "format": "date-time"}  # checked only once it is complete
LIST = {"type": "array", "items": {"type": "boolean"}, "minItems": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that reason by themselves, as the prompt says, unless that is turned off, and in spelled markup.

    The last only begins its markup, which is completed for it, and reasons for one token.
    """
    folder = tmp_path_factory.mktemp("bigrams")
    own = (":", "<think>", *REASONING)
    models = {
        "own": write_bigrams(folder / "own.gguf", *own, chat_template=AFTER_COLON),
        "opened": write_bigrams(folder / "opened.gguf", *own[1:], chat_template=OPENED),
        "ended": write_bigrams(folder / "ended.gguf", ":", "<think>", "H", "<|im_end|>", chat_template=AFTER_COLON),
        "switched": write_bigrams(folder / "switched.gguf", *own, chat_template=SWITCHED),
        "spelled": write_bigrams(folder / "spelled.gguf", ":", *"[/THINK]m[", chat_template=SPELLED),
    }
    SOUND_MODELS.extend(models.values())
    return models


def constrained(home: Path, rule: Any) -> tuple[str | Path, ...]:
    """Options for a JSON Schema, or for a grammar's root."""
    path = home / "constraint"
    path.write_text(f"root ::= {rule}" if isinstance(rule, str) else json.dumps(rule))
    return "--grammar" if isinstance(rule, str) else "--schema", path


def ask(user: CommandLine, model: Path, rule: Any, *options: str) -> Finished:
    command = ("ask", "Why?", "-m", model, "--json", "--no-log", "--temperature", "1", "--seed", "1")
    return user.run(*command, *constrained(user.home, rule), *options)


@pytest.mark.parametrize(
    ("model", "options", "reasoning", "closed_at"),
    [
        ("own", (), "Hm.", None),
        ("opened", (), "Hm.", None),
        ("switched", (), "Hm.", None),
        ("spelled", (), "m", None),
        ("own", ("--set", "speculative=on"), "Hm.", None),
        ("ended", (), "H", 2),
        ("ended", ("--set", "speculative=on"), "H", 2),
        ("own", ("--think", "2"), "Hm.", 4),
        ("opened", ("--think", "1"), "Hm.", 3),
        ("own", ("--think", "off"), None, 1),
        ("opened", ("--think", "off"), None, None),
        ("switched", ("--think", "off"), None, None),
    ],
)
def test_answer_after_reasoning_matches_its_schema(
    new_user: CommandLine,
    models: dict[str, Path],
    model: str,
    options: tuple[str, ...],
    reasoning: str | None,
    closed_at: int | None,
) -> None:
    answer = ask(new_user, models[model], OBJECT, *options).object
    assert (answer["reasoning"], answer["reasoning_closed_at"]) == (reasoning, closed_at)
    assert type(json.loads(answer["text"])["ok"]) is bool
    assert answer["finish_reason"] == "stop"


def test_drafts_leave_reasoning_and_answer_as_they_are(new_user: CommandLine, models: dict[str, Path]) -> None:
    schema = {**LIST, "minItems": 12, "maxItems": 12}
    plain = ask(new_user, models["own"], schema, "--temperature", "0").object["text"]
    command = ("ask", f"Hm. {plain} {plain}", "-m", models["own"], "--json", *constrained(new_user.home, schema))
    answer = new_user.run(*command, "--set", "speculative=on").object
    assert (answer["reasoning"], answer["text"]) == ("Hm.", plain)
    assert answer["timings"]["draft_n_accepted"] > 0


GREEDY = ("--temperature", "0")
NO_REASONING = ("--think", "off", "-n", "12")


@pytest.mark.parametrize(
    ("model", "rule", "options", "reasoning", "text"),
    [
        pytest.param("spelled", LIST, (), None, r"\[ *(true|false)\b.*\]", id="begins like spelled markup"),
        pytest.param("own", r"[^\x00]*", ("-n", "7"), "Hm.", "x", id="any text after reasoning"),
        pytest.param("switched", '"<" [a-z]+ ">"', NO_REASONING, None, "<.*", id="begins with a tag, and no reasoning"),
        pytest.param("own", '"H" | "z"', GREEDY, "Hm.", "H", id="no penalty"),
        pytest.param("own", '"H" | "z"', (*GREEDY, "--set", "presence_penalty=2"), "Hm.", "z", id="penalties"),
    ],
)
def test_answer_matches_its_grammar(
    new_user: CommandLine, models: dict[str, Path], model: str, rule: Any, options: Any, reasoning: Any, text: str
) -> None:
    answer = ask(new_user, models[model], rule, *options).object
    assert answer["reasoning"] == reasoning and re.fullmatch(text, answer["text"], re.DOTALL)


@pytest.mark.parametrize(("held", "text"), [("a", "bc"), ("z", None)])
def test_answer_that_begins_in_the_last_token_of_its_reasoning(chatml_model: Path, held: str, text: str | None) -> None:
    rules = ReplyRules(QWEN, QWEN[0], f"H</think>{held}", stops_anywhere=False)
    with open_engine(chatml_model) as engine:
        request = Request((97,), SamplingParams(), Ask(grammar=Grammar("gbnf", 'root ::= "abc"')), rules=rules)
        with pytest.raises(GrammarError, match=r"rejects 'z'") if text is None else nullcontext():
            [reply] = collect_replies(generate(engine, [request])).values()
            assert reply.text == text


@pytest.mark.parametrize("model", ["own", "opened"])
def test_stop_strings_count_in_the_answer_only(new_user: CommandLine, models: dict[str, Path], model: str) -> None:
    command = ("ask", "Why?", "-m", models[model], "--json", "--no-log", "--stop", "m", "--stop", " ")
    answer = new_user.run(*command, "--stop", "y").object
    assert (answer["reasoning"], answer["text"], answer["finish_reason"]) == ("Hm.", "x", "stop")
    limited = new_user.run(*command, "--stop", ".", "--think", "1").object
    assert (limited["reasoning"], limited["reasoning_closed_at"] is None) == ("Hm.", False)


def test_ask_reports_a_reply_that_ended_in_its_reasoning(new_user: CommandLine, models: dict[str, Path]) -> None:
    still = "the reply ended while reasoning, before an answer, so it does not match the"
    for rule, name in ((OBJECT, "schema"), ('"x"', "grammar")):
        done = ask(new_user, models["own"], rule, "-n", "3")
        assert_error(done, 5, f"{still} {name}", "raise --max-tokens, or limit reasoning with --think N or --think off")
        assert done.object["reasoning"] == "Hm"


def test_ask_checks_reasoning_under_a_grammar_for_loops(new_user: CommandLine, tmp_path: Path) -> None:
    endless = write_bigrams(tmp_path / "endless.gguf", ":", "<think>", "H", "m", "H", chat_template=AFTER_COLON)
    SOUND_MODELS.append(endless)
    done = ask(new_user, endless, OBJECT)
    assert (done.code, done.object["finish_reason"]) == (5, "repetition")
    assert_error(done, 5, "the reply repeats itself", "--set loop_check=off")
    looped = ask(new_user, endless, '"ab"{200}', "--think", "1")
    assert (looped.object["text"], looped.object["finish_reason"]) == ("ab" * 200, "stop")
    repeated = ask(new_user, endless, LIST, "--temperature", "0", "--think", "1")
    assert_error(repeated, 5, "the reply repeats itself and was stopped after", "--set loop_check=off lets it repeat")
    assert repeated.object["finish_reason"] == "repetition"
    longer = ask(new_user, endless, LIST, "--temperature", "0", "--think", "1", "--set", "loop_check=off")
    assert (longer.code, longer.object["finish_reason"]) == (5, "context")


def test_complete_answer_that_its_schema_does_not_accept_is_an_error(
    new_user: CommandLine, models: dict[str, Path]
) -> None:
    problem = "the reply does not match the schema: '2025-02-29T00:00:00Z' is not a 'date-time'"
    done = ask(new_user, models["own"], NO_DAY)
    assert_error(done, 5, problem, "ask again, or simplify the schema")
    assert (done.object["text"], done.object["finish_reason"]) == (f'"{NO_DAY["const"]}"', "stop")
    assert_error(ask(new_user, models["own"], NO_DAY, "--votes", "2"), 5, problem)
    (new_user.home / "in.txt").write_text("Why?\n")
    command = ("batch", new_user.home / "in.txt", "-o", "-", "-m", models["own"], *constrained(new_user.home, NO_DAY))
    for votes in ((), ("--votes", "2")):
        done = new_user.run(*command, *votes)
        [row] = map(json.loads, done.out.splitlines())
        assert (done.code, row["text"], row["error"]["type"]) == (6, f'"{NO_DAY["const"]}"', "incomplete_output")
        assert problem in row["error"]["message"]


def test_stop_string_within_json_is_an_error(new_user: CommandLine, models: dict[str, Path]) -> None:
    done = ask(new_user, models["own"], OBJECT, "--stop", ":")
    assert_error(done, 5, "a stop string ended the answer, so it does not match the schema", "omit --stop")
    assert done.object["text"] == '{"ok"'
    rows, output = new_user.home / "in.txt", new_user.home / "out.jsonl"
    rows.write_text("Why?\n")
    command = ("batch", rows, "-o", output, "-m", models["own"], "--stop", ":")
    assert new_user.run(*command, *constrained(new_user.home, OBJECT)).code == 6
    row = json.loads(output.read_text())
    assert (row["text"], row["error"]["type"]) == ('{"ok"', "incomplete_output")
    votes = ask(new_user, models["own"], OBJECT, "--stop", ":", "--votes", "3").object["votes"]
    assert votes["tally"] == []  # what is cut has no vote


@pytest.mark.slow
def test_batch_rows_match_their_schema_after_reasoning(new_user: CommandLine, models: dict[str, Path]) -> None:
    rows, output = new_user.home / "in.jsonl", new_user.home / "out.jsonl"
    given = [{"prompt": f"Q{at}", "temperature": at % 3} for at in range(16)]
    given += [{"prompt": "short", "max_tokens": 3}, {"prompt": "limited", "think": 1}]
    rows.write_text("".join(json.dumps(row) + "\n" for row in given))
    command = ("batch", rows, "-o", output, "-m", models["own"], "--seed", "1", "--parallel", "16")
    assert new_user.run(*command, *constrained(new_user.home, OBJECT)).code == 6
    *answers, short, limited = map(json.loads, output.read_text().splitlines())
    assert all(type(json.loads(answer["text"])["ok"]) is bool for answer in (*answers, limited))
    assert {answer["reasoning"] for answer in answers} == {"Hm."}
    assert limited["reasoning_closed_at"] == 4
    problem = (
        "the reply ended while reasoning, before an answer: raise --max-tokens, or limit reasoning with --think N or"
    )
    assert short["error"] == {"type": "incomplete_output", "message": f"{problem} --think off"}


@pytest.mark.slow
def test_vote_counts_answers_after_reasoning_only(new_user: CommandLine, models: dict[str, Path]) -> None:
    rule = '"The answer is " [1-3] "."'
    votes = ask(new_user, models["own"], rule, "--votes", "6").object["votes"]
    assert sum(count["count"] for count in votes["tally"]) == len(votes["samples"]) > 3  # until it is decided
    unfinished = ask(new_user, models["own"], rule, "--votes", "3", "-n", "3")
    assert (unfinished.code, unfinished.object["votes"]["tally"]) == (5, [])
