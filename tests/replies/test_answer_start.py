"""When reasoning ends and the answer starts: its grammars and stop strings, budgets, and when the user asks for it."""

import json
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from pickle import dumps, loads
from typing import Any

import pytest
from asking import Reply, collect_replies, generate, running_engine
from cases import rows
from command_line import SOUND_MODELS, CommandLine, Finished, assert_error
from installations import model_on
from llama_engines import open_engine
from scripted_backend import END, ScriptedBackend, tokens
from scripted_command import run_here
from templates import TEMPLATES, chosen_format
from thinkers import ENDING, LIMIT, CountingControl, budget, reply_around, speaker, thinking
from tiny_models import CHATML_TEMPLATE, write_bigrams, write_chatml

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.core.settings import EMBEDDED, Settings
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.repetition import MIN_TOKENS
from cerebrum_cli.engine.requests import Force, Request
from cerebrum_cli.formats.markup import HARMONY_FINAL, REASONING_MARKUPS, closing_sentence
from cerebrum_cli.formats.reply_text import ReplyRules, ReplyText
from cerebrum_cli.replies.reply_controls import MAX_BIAS, endings

# Where the answer starts, by the tokens of a reply.

OPENS = {markup.open: (markup,) for markup in REASONING_MARKUPS}
QWEN = OPENS["<think>"]
MARKUPS = {
    "qwen": QWEN,
    "mistral": OPENS["[THINK]"],
    "gemma": OPENS["<|channel>thought"],
    "cohere": OPENS["<|START_THINKING|>"],
    "solar": tuple(markup for markup in REASONING_MARKUPS if "<|think|>" in markup.open),
    "harmony": tuple(markup for markup in REASONING_MARKUPS if "<|message|>" in markup.open),
}
SPECIAL = ("<|channel|>", "<|message|>", "<|start|>", "<|channel>", "[THINK]", "<|think|>", "<|begin|>", "<|content|>")
ANSWER_STARTS = rows("answer_starts")


@pytest.mark.parametrize("case", ANSWER_STARTS.values(), ids=ANSWER_STARTS)
def test_answer_starts_after_reasoning_and_its_markup(case: dict[str, Any]) -> None:
    """By tokens of a reply, of which each is reasoning (t), passes (p), or is the answer's (a).

    Where the answer starts, `held` may be a part of it, and `rest` would complete the markup.
    """
    special = (*SPECIAL, "<think>", "</think>") if case.get("has_tags") else SPECIAL
    ids = {text: id for id, text in enumerate(special)}
    markups = MARKUPS[case.get("markups", "qwen")]
    markers = [each.header for each in markups if each.header] + [each.open for each in markups]
    tokens = {marker: frozenset(id for text, id in ids.items() if text in marker) for marker in markers}
    rules = ReplyRules(markups, markups[0] if case.get("opened") else None, stops_anywhere=False, markers=tokens)
    reader, stages, ends = ReplyText(loads(dumps(rules))), "", []
    for text in case["tokens"].replace("␤", "\n").split(" "):
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
    assert (stages, ends[0]) == (case["stages"], (case.get("held", ""), case.get("rest", "")))


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


@pytest.mark.parametrize(("model", "options", "reasoning", "closed_at"), rows("answers_after_reasoning"))
def test_answer_after_reasoning_matches_its_schema(
    new_user: CommandLine, models: dict[str, Path], model: str, options: list[str], reasoning: Any, closed_at: Any
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


MATCHING = rows("answers_under_grammars")


@pytest.mark.parametrize(("model", "rule", "options", "reasoning", "text"), MATCHING.values(), ids=MATCHING)
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
    command = ("ask", "Why?", "-m", models[model], "--json", "--no-log", "--stop", "m", "--stop", " ", "--stop", "y")
    answer = new_user.run(*command).object
    assert (answer["reasoning"], answer["text"], answer["finish_reason"]) == ("Hm.", "x", "stop")


INCOMPLETE = rows("incomplete_answers")


@pytest.mark.parametrize("name", INCOMPLETE)
def test_answer_that_does_not_match_is_an_error(new_user: CommandLine, models: dict[str, Path], name: str) -> None:
    rule, options, text, problem, more = INCOMPLETE[name]
    done = ask(new_user, models["own"], rule, *options)
    assert_error(done, 5, problem, *more)
    assert (done.object["text"], done.object["reasoning"]) == (text, "Hm." if text else "Hm")
    assert ask(new_user, models["own"], rule, *options, "--votes", "2").object["votes"]["tally"] == []
    (new_user.home / "in.txt").write_text("Why?\n")
    command = ("batch", "in.txt", "-o", "-", "-m", models["own"], *constrained(new_user.home, rule), *options)
    for votes in ((), ("--votes", "2")):
        done = new_user.run(*command, *votes)
        assert (done.code, done.object["text"], done.object["error"]["type"]) == (6, text, "incomplete_output")
        assert done.object["error"]["message"].startswith(problem)


def test_ask_checks_reasoning_under_a_grammar_for_loops(new_user: CommandLine, tmp_path: Path) -> None:
    endless = write_bigrams(tmp_path / "endless.gguf", ":", "<think>", "H", "m", "H", chat_template=AFTER_COLON)
    SOUND_MODELS.append(endless)
    done = ask(new_user, endless, OBJECT)
    assert_error(done, 5, "the reply repeats itself", "--set loop_check=off")
    assert done.object["finish_reason"] == "repetition"
    looped = ask(new_user, endless, '"ab"{200}', "--think", "1").object
    assert (looped["text"], looped["finish_reason"]) == ("ab" * 200, "stop")


@pytest.mark.slow
def test_vote_counts_answers_after_reasoning_only(new_user: CommandLine, models: dict[str, Path]) -> None:
    votes = ask(new_user, models["own"], '"The answer is " [1-3] "."', "--votes", "6").object["votes"]
    assert sum(count["count"] for count in votes["tally"]) == len(votes["samples"]) > 3  # until it is decided


SWITCHLESS = CHATML_TEMPLATE.replace("{% endfor %}", "{# <think> #}{% endfor %}", 1)
IN_PROMPT = CHATML_TEMPLATE.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}").replace(
    "assistant\n' }}", "assistant\n<think>\n' }}"
)
LET_ME_SEE = "<think>\nLet me see. "


@pytest.fixture(scope="module")
def thinkers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models by their templates: with a switch, without one, with reasoning opened in the prompt, and of gpt-oss."""
    folder = tmp_path_factory.mktemp("models")
    templates = {
        "switch": TEMPLATES["qwen3"],
        "none": SWITCHLESS,
        "in prompt": IN_PROMPT,
        "gpt-oss": TEMPLATES["gpt-oss"] + "{# <|channel|>analysis<|message|> #}",
    }
    return {
        name: write_chatml(folder / f"{number}.gguf", chat_template=template)
        for number, (name, template) in enumerate(templates.items())
    }


def ask_thinker(model: Path, home: Path, reply: str, think: str | int, *options: str | Path) -> Finished:
    return run_here({"reply": reply}, home, "ask", "Why?", "-m", model, "--think", str(think), *options)


SENTENCE = LET_ME_SEE.rstrip()
CASES = rows("ended_reasoning")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ask_ends_reasoning(thinkers: dict[str, Path], tmp_path: Path, case: dict[str, Any]) -> None:
    """A reply whose reasoning is ended `at` a number of tokens by a `forced` text, or by itself if there is none."""
    said = case.get("answer", "Yes.")
    reply = reply_around(case["raw_reasoning"], case.get("forced", ""), said)
    answer = ask_thinker(thinkers[case["model"]], tmp_path, reply, case.get("think", LIMIT), "--json").object
    reasoning = case.get("reasoning", "Let me see.")
    assert (answer["reasoning"], answer["reasoning_closed_at"], answer["text"]) == (reasoning, case.get("at"), said)
    assert (answer["finish_reason"], answer["completion_tokens"]) == ("stop", len(reply))


def test_ask_continues_a_conversation_whose_reasoning_was_ended(thinkers: dict[str, Path], tmp_path: Path) -> None:
    ask_thinker(thinkers["none"], tmp_path, reply_around(SENTENCE, ENDING, "Yes."), LIMIT)
    shown = ask_thinker(thinkers["none"], tmp_path, "", LIMIT, "-c", "--dry-run").out
    assert f"assistant\n{SENTENCE}{ENDING}Yes.<|im_end|>" in shown


def test_reasoning_ends_with_the_special_tokens_of_a_vocabulary(chatml: LlamaBackend) -> None:
    tokens_of = endings(chatml)
    [close] = chatml.special_token_ids(["</think>"])
    assert tokens_of(ENDING).count(close) == 1
    assert b"".join(chatml.piece(token, special=True) for token in tokens_of(ENDING)) == ENDING.encode()
    ends, final = chatml.special_token_ids(["<|end|>"]), tokens_of("<|end|>" + HARMONY_FINAL)
    assert final[0] in ends and len(final) < len("<|end|>" + HARMONY_FINAL)


def test_reasoning_ends_on_a_line_of_its_own() -> None:
    lines = {"<think>": "\n\n", "<think>\n": "\n", "so.": "\n", "so.\n": "", "so.\n\n": ""}
    assert {text: REASONING_MARKUPS[0].ending(text) for text in lines} == {
        text: f"{before}</think>\n\n" for text, before in lines.items()
    }


def test_qwen3_ends_reasoning_with_the_sentence_of_its_report(thinkers: dict[str, Path], tmp_path: Path) -> None:
    sentence = closing_sentence("qwen3")
    model = tmp_path / "qwen3.gguf"
    model.write_bytes(thinkers["none"].read_bytes().replace(b"llama", b"qwen3"))
    reply = reply_around(SENTENCE, f"\n\n{sentence}{ENDING}", "Yes.")
    answer = ask_thinker(model, tmp_path, reply, LIMIT, "--json").object
    assert (answer["reasoning"], answer["text"]) == (f"Let me see.\n\n{sentence}", "Yes.")
    assert closing_sentence("qwen35moe") == sentence and closing_sentence("llama") == ""


def reply_of(backend: ScriptedBackend, *, limit: int | None = None, **controls: Any) -> Reply:
    with running_engine(backend) as engine:
        request = Request(tokens("go"), SamplingParams(seed=7, max_tokens=limit), **controls)
        [reply] = collect_replies(generate(engine, [request])).values()
    return reply


def saying(text: str, context: int = 400) -> ScriptedBackend:
    return ScriptedBackend(speaker(lambda seed: text), context_size=context)


@pytest.mark.parametrize(("limit", "context", "reason"), [(26, 400, "length"), (None, 28, "context")])
def test_engine_truncates_forced_tokens_at_the_limits(limit: int | None, context: int, reason: str) -> None:
    backend = saying(reply_around("<think>\nI can see it!", ENDING, "It is."), context)
    reply = reply_of(backend, limit=limit, controls=(budget(),), rules=thinking())
    assert (reply.reason, reply.text) == (reason, "\nI can see it!\n</th")


def test_engine_counts_the_reasoning_of_a_prefix() -> None:
    rules = thinking(prefix="<think>" + "and so " * 9, prefix_tokens=70)
    reply = reply_of(saying("I see. " * 20), controls=(budget(),), rules=rules)
    assert reply.finish and 70 <= reply.finish.forced[0].at < 82


def test_engine_lets_several_controls_intervene() -> None:
    backend = ScriptedBackend(lambda held, seed: b"ab"[len(held) % 2], context_size=3000)
    interrupt = partial(CountingControl, lambda count: Force(tokens("But: ")) if count == 5 else None)
    reply = reply_of(backend, loop_check=True, controls=(interrupt,))
    assert reply.text.startswith("ababaBut: " + "ab" * (MIN_TOKENS // 2)) and len(reply.text) < MIN_TOKENS + 50
    assert reply.reason == "repetition"
    assert reply.finish and reply.finish.forced[0].at == 5
    assert [len(step) for step in backend.steps if len(step) > 1] == [len("go"), len("aBut: ")]


def test_ends_of_reasoning_become_likelier_close_to_the_limit() -> None:
    backend = saying("<think>" + "a. " * 40)
    reply = reply_of(backend, controls=(budget(limit=100),), rules=thinking())
    assert reply.finish and 100 < reply.finish.forced[0].at < 110  # no end came, so that one was forced
    biases = [bias.bias for bias in backend.biases]
    assert {bias.token for bias in backend.biases} == {tokens("</think>")[0]}
    assert biases == sorted(biases) and 0 < biases[0] < 2 < 18 < biases[-1] <= MAX_BIAS


# Answers that the user asks for.


@pytest.mark.parametrize(("think", "grammar"), [(None, None), ("500", None), (None, "root ::= .*")])
def test_responder_answers_when_asked_to(think: str | None, grammar: str | None) -> None:
    asked_after = b"<think>\nAnd so"

    def model(held: tuple[int, ...], seed: int) -> int:
        text = bytes(held)
        if text.endswith(asked_after):
            loaded.answer_now.request()  # before the next token, which follows from this
        reasoning, closed, answer = text.partition(b"</think>\n\n")
        if not closed:
            return b"And so on, "[(len(held) - len(reasoning.partition(b"<think>\n")[0]) - 8) % 11]
        return b"Yes."[len(answer)] if len(answer) < len("Yes.") else END

    constraint = Grammar("gbnf", grammar) if grammar else None
    with running_engine(ScriptedBackend(model, context_size=1000)) as engine:
        loaded = model_on(engine, chosen_format(EMBEDDED, IN_PROMPT))
        for question in ("Why?", "Who?"):
            reply = loaded.respond(Ask(Conversation().user(question), Settings(think=think), constraint))
            assert (reply.reasoning, reply.text) == ("And so", "Yes.")
            assert reply.reasoning_closed_at == len("And so ")


def test_responder_asked_too_late_leaves_the_answer() -> None:
    def model(held: tuple[int, ...], seed: int) -> int:
        generated = bytes(held).rpartition(b"assistant\n")[2]
        if generated == b"<think>Hm.</think>Ye":
            loaded.answer_now.request()
        reply = b"<think>Hm.</think>Yes. <think> is text."
        return reply[len(generated)] if len(generated) < len(reply) else END

    with running_engine(ScriptedBackend(model, context_size=1000)) as engine:
        loaded = model_on(engine, chosen_format(EMBEDDED, SWITCHLESS))
        reply = loaded.respond(Ask(Conversation().user("Why?"), Settings())).wait()
    assert (reply.reasoning, reply.text) == ("Hm.", "Yes. <think> is text.")
