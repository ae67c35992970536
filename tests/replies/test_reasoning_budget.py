"""Reasoning that is ended after a number of tokens, or when the user asks for the answer."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from asking import collect_replies, generate, running_engine
from command_line import Finished
from installations import model_on
from scripted_backend import END, ScriptedBackend, tokens
from scripted_command import run_here
from templates import TEMPLATES, chosen_format
from thinkers import ENDING, LIMIT, CountingControl, budget, reply_around, speaker, thinking
from tiny_models import CHATML_TEMPLATE, write_chatml

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.core.settings import EMBEDDED, Settings
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.repetition import MIN_TOKENS
from cerebrum_cli.engine.requests import Force, Request
from cerebrum_cli.formats.markup import HARMONY_FINAL, REASONING_MARKUPS, closing_sentence
from cerebrum_cli.replies.reply_controls import MAX_BIAS, SENTENCE_TOKENS, endings

SWITCHLESS = CHATML_TEMPLATE.replace("{% endfor %}", "{# <think> #}{% endfor %}", 1)
IN_PROMPT = CHATML_TEMPLATE.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}").replace(
    "assistant\n' }}", "assistant\n<think>\n' }}"
)
REASONING = "<think>\nLet me see. "
ENDED = reply_around("<think>\nI can see {seed}!", ENDING, "It is {seed}. So there.")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
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


def ask(model: Path, home: Path, reply: str, think: str | int, *options: str | Path) -> Finished:
    return run_here({"reply": reply}, home, "ask", "Why?", "-m", model, "--think", str(think), *options)


SENTENCE = REASONING.rstrip()
LONG = "<think>" + ("and so on " * 9)[: LIMIT + SENTENCE_TOKENS]
COMMENT = "<|channel|>reflection<|message|>Hm.<|end|><|start|>assistant"
ANALYSIS = "<|channel|>analysis<|message|>Let me see."
FINAL = "<|end|>" + HARMONY_FINAL
ANSWER = "It is a long answer, with two sentences. Yes."


@dataclass(frozen=True)
class Case:
    """A reply whose reasoning is ended `at` a number of tokens by a `forced` text, or by itself if there is none."""

    model: str
    raw_reasoning: str
    forced: str = ""
    answer: str = "Yes."
    reasoning: str | None = "Let me see."
    at: int | None = None
    think: str | int = LIMIT


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case("switch", SENTENCE, ENDING, at=len(SENTENCE)), id="end of a sentence"),
        pytest.param(Case("none", SENTENCE, ENDING, at=len(SENTENCE)), id="without a switch"),
        pytest.param(Case("none", LONG, ENDING, reasoning=LONG[7:].rstrip(), at=len(LONG)), id="long sentence"),
        pytest.param(Case("in prompt", "Let me see.", ENDING, at=11), id="reasoning in the prompt"),
        pytest.param(Case("none", "<think>", "\n\n</think>\n\n", reasoning=None, at=7, think="off"), id="off"),
        pytest.param(Case("in prompt", "", reasoning=None, think="off"), id="off in the prompt"),
        pytest.param(Case("gpt-oss", ANALYSIS, FINAL, at=len(ANALYSIS)), id="channels"),
        pytest.param(
            Case("gpt-oss", COMMENT + ANALYSIS, FINAL, reasoning="Hm.Let me see.", at=len(COMMENT + ANALYSIS)),
            id="several channels",
        ),
        pytest.param(
            Case("none", reply_around(SENTENCE, ENDING, "<think>"), "\n" + ENDING, at=len(SENTENCE)),
            id="reasoning that begins again",
        ),
        pytest.param(
            Case(
                "none",
                "<think>" + ("and so " * 4)[: LIMIT + SENTENCE_TOKENS - 3] + "</think>\n\n",
                reasoning="and so " * 3 + "an",
            ),
            id="marker that the model has started",
        ),
        pytest.param(Case("none", "<think>\nShort.\n</think>\n\n", answer=ANSWER, reasoning="Short."), id="short"),
        pytest.param(Case("none", "", answer="An answer, without any thought. It is long.", reasoning=None), id="none"),
        pytest.param(
            Case("none", "<think>\nLet me see</think>\n\n", answer="A long answer.", reasoning="Let me see"),
            id="closed while it was waited for",
        ),
    ],
)
def test_ask_ends_reasoning(models: dict[str, Path], tmp_path: Path, case: Case) -> None:
    reply = reply_around(case.raw_reasoning, case.forced, case.answer)
    answer = ask(models[case.model], tmp_path, reply, case.think, "--json").object
    assert (answer["reasoning"], answer["reasoning_closed_at"], answer["text"]) == (
        case.reasoning,
        case.at,
        case.answer,
    )
    assert (answer["finish_reason"], answer["completion_tokens"]) == ("stop", len(reply))


def test_ask_continues_a_conversation_whose_reasoning_was_ended(models: dict[str, Path], tmp_path: Path) -> None:
    ask(models["none"], tmp_path, reply_around(SENTENCE, ENDING, "Yes."), LIMIT)
    shown = ask(models["none"], tmp_path, "", LIMIT, "-c", "--dry-run").out
    assert f"assistant\n{SENTENCE}{ENDING}Yes.<|im_end|>" in shown


def test_rows_of_eval_state_where_reasoning_was_ended(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"question": "Why?", "answer": "42"}\n')
    script = {"rows": {}, "seeds": [reply_around(SENTENCE, ENDING, "The answer is 42.")]}
    options = ("-m", models["none"], "--think", str(LIMIT), "-o", tmp_path / "run.jsonl")
    done = run_here(script, tmp_path, "eval", tmp_path / "in.jsonl", *options)
    assert done.code == 0, done.err
    [row] = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    assert (row["final_answer"], row["reasoning_closed_at"]) == ("42", len(SENTENCE))


def test_reasoning_ends_with_the_special_tokens_of_a_vocabulary(chatml: LlamaBackend) -> None:
    tokens_of = endings(chatml)
    [close] = chatml.special_token_ids(["</think>"])
    assert tokens_of(ENDING).count(close) == 1
    assert b"".join(chatml.piece(token, special=True) for token in tokens_of(ENDING)) == ENDING.encode()
    ends, final = chatml.special_token_ids(["<|end|>"]), tokens_of("<|end|>" + HARMONY_FINAL)
    assert final[0] in ends and len(final) < len("<|end|>" + HARMONY_FINAL)


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("<think>", "\n\n</think>\n\n"),
        ("<think>\n", "\n</think>\n\n"),
        ("so.", "\n</think>\n\n"),
        ("so.\n", "</think>\n\n"),
        ("so.\n\n", "</think>\n\n"),
    ],
)
def test_reasoning_ends_on_a_line_of_its_own(text: str, ending: str) -> None:
    assert REASONING_MARKUPS[0].ending(text) == ending


def test_qwen3_ends_reasoning_with_the_sentence_of_its_report(models: dict[str, Path], tmp_path: Path) -> None:
    sentence = closing_sentence("qwen3")
    model = tmp_path / "qwen3.gguf"
    model.write_bytes(models["none"].read_bytes().replace(b"llama", b"qwen3"))
    reply = reply_around(SENTENCE, f"\n\n{sentence}{ENDING}", "Yes.")
    answer = ask(model, tmp_path, reply, LIMIT, "--json").object
    assert (answer["reasoning"], answer["text"]) == (f"Let me see.\n\n{sentence}", "Yes.")
    assert closing_sentence("qwen35moe") == sentence and closing_sentence("llama") == ""


@pytest.mark.parametrize(("limit", "context", "reason"), [(26, 400, "length"), (None, 28, "context")])
def test_engine_truncates_forced_tokens_at_the_limits(limit: int | None, context: int, reason: str) -> None:
    backend = ScriptedBackend(speaker(lambda seed: ENDED.format(seed=seed)), context_size=context)
    request = Request(tokens("go"), SamplingParams(seed=7, max_tokens=limit), controls=(budget(),), rules=thinking())
    with running_engine(backend) as engine:
        [reply] = collect_replies(generate(engine, [request])).values()
    assert (reply.reason, reply.text) == (reason, "\nI can see 7!\n</thi")


def test_engine_counts_the_reasoning_of_a_prefix() -> None:
    rules = thinking(prefix="<think>" + "and so " * 9, prefix_tokens=70)
    request = Request(tokens("go"), SamplingParams(seed=7), controls=(budget(),), rules=rules)
    with running_engine(ScriptedBackend(speaker(lambda seed: "I see. " * 20), context_size=400)) as engine:
        [reply] = collect_replies(generate(engine, [request])).values()
    assert reply.finish and 70 <= reply.finish.forced[0].at < 82


def test_engine_lets_several_controls_intervene() -> None:
    backend = ScriptedBackend(lambda held, seed: b"ab"[len(held) % 2], context_size=3000)
    with running_engine(backend) as engine:
        interrupt = partial(CountingControl, lambda count: Force(tokens("But: ")) if count == 5 else None)
        request = Request(tokens("go"), SamplingParams(), loop_check=True, controls=(interrupt,))
        [reply] = collect_replies(generate(engine, [request])).values()
    assert reply.text.startswith("ababaBut: " + "ab" * (MIN_TOKENS // 2)) and len(reply.text) < MIN_TOKENS + 50
    assert reply.reason == "repetition"
    assert reply.finish and reply.finish.forced[0].at == 5
    assert [len(step) for step in backend.steps if len(step) > 1] == [len("go"), len("aBut: ")]


def test_ends_of_reasoning_become_likelier_close_to_the_limit() -> None:
    backend = ScriptedBackend(speaker(lambda seed: "<think>" + "a. " * 40), context_size=400)
    request = Request(tokens("go"), SamplingParams(), controls=(budget(limit=100),), rules=thinking())
    with running_engine(backend) as engine:
        [reply] = collect_replies(generate(engine, [request])).values()
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
