"""Replies that are concluded: where, with which tokens, and what the readers of a reply make of it."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from pathlib import Path
from pickle import dumps, loads
from typing import Any

import pytest
from asking import FREE_ROWS, collect_replies, running_engine
from command_line import CommandLine, Finished
from concluding import AFTER, BRIDGE, concluding, thinker
from nano.measure import MODEL_FILE
from scripted_backend import ScriptedBackend, tokens
from scripted_command import batch_here, run_here

from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.control import Force
from cerebrum_cli.engine.drafts.costs import StepCosts
from cerebrum_cli.engine.loop_check import MIN_TOKENS, LoopCheck
from cerebrum_cli.engine.sentences import SENTENCE_TOKENS
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.inference.conclude import ANSWER_TOKENS

THOUGHT = "Let me think. Let me think."
HIDDEN = "x" * len(BRIDGE)  # what the model would have generated in place of the bridge


def ask(reply: str, model: Path, home: Path, *options: str | Path) -> Finished:
    """Ask a model that generates this reply, whatever is forced into it."""
    return run_here({"reply": reply}, home, "ask", "Why?", "-m", model, "--conclude", str(AFTER), *options)


def test_ask_concludes_at_the_end_of_a_sentence(chatml_model: Path, tmp_path: Path) -> None:
    answer = ask(THOUGHT + HIDDEN + " 42. Done.", chatml_model, tmp_path, "--json").object
    assert answer["text"] == f"{THOUGHT}{BRIDGE} 42. Done."
    assert (answer["final_answer"], answer["finish_reason"]) == ("42", "stop")
    assert (answer["concluded_at"], answer["completion_tokens"]) == (len(THOUGHT), len(answer["text"]))


def test_ask_concludes_within_a_long_sentence(chatml_model: Path, tmp_path: Path) -> None:
    at = AFTER + SENTENCE_TOKENS
    answer = ask("and so " * 5 + "a" + HIDDEN + " 42.", chatml_model, tmp_path, "--json").object
    assert answer["text"] == f"{('and so ' * 5 + 'a')[:at]}{BRIDGE} 42."
    assert answer["concluded_at"] == at


def test_ask_truncates_what_follows_a_conclusion(chatml_model: Path, tmp_path: Path) -> None:
    done = ask(THOUGHT + HIDDEN + " 42. And then, after that, and so forth.", chatml_model, tmp_path, "--json")
    answer, length = done.object, len(THOUGHT + BRIDGE) + ANSWER_TOKENS
    assert (answer["finish_reason"], answer["completion_tokens"], answer["final_answer"]) == ("length", length, "42")
    assert done.err == ""


def test_ask_reports_a_conclusion_without_an_answer(chatml_model: Path, tmp_path: Path) -> None:
    done = ask(THOUGHT + HIDDEN + "...", chatml_model, tmp_path)
    assert (done.code, done.err) == (0, "")
    done = ask(THOUGHT + HIDDEN + " " * 60, chatml_model, tmp_path)
    assert f"concluded after {len(THOUGHT)} tokens, but states no answer" in done.err and "raise --conclude" in done.err


@pytest.mark.parametrize(
    "reply", ["The answer is 42. But why? Let me think. " * 2, "Short.", "Let me think. The answer is 5. " * 2]
)
def test_ask_leaves_a_reply_that_states_its_answer(chatml_model: Path, tmp_path: Path, reply: str) -> None:
    answer = ask(reply, chatml_model, tmp_path, "--json").object
    assert (answer["text"], answer["concluded_at"], answer["finish_reason"]) == (reply.strip(), None, "stop")


def test_ask_ends_an_open_thought_before_the_conclusion(chatml_model: Path, tmp_path: Path) -> None:
    thought = "<think>The answer is five."
    closing = f"\n</think>\n\n{BRIDGE.strip()}"
    answer = ask(thought + "x" * len(closing) + " 42.", chatml_model, tmp_path, "--json").object
    assert (answer["text"], answer["reasoning"]) == ("The answer is 42.", "The answer is five.")
    assert answer["concluded_at"] == len(thought)


def test_ask_refuses_to_conclude_within_a_grammar(chatml_model: Path, tmp_path: Path) -> None:
    (tmp_path / "rule.gbnf").write_text('root ::= "x"')
    done = ask("x", chatml_model, tmp_path, "--grammar", tmp_path / "rule.gbnf")
    assert (done.code, done.err.splitlines()[0]) == (2, "error: --conclude and --grammar cannot be used together")


@pytest.mark.parametrize("source", ["config", "variable", "prompt", "session"])
def test_conclude_that_cannot_apply_is_refused_only_where_typed(
    chatml_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    rule = tmp_path / "rule.gbnf"
    rule.write_text('root ::= "Short."')
    config = {"config": f"conclude = {AFTER}\n", "prompt": f"[prompts.saved]\nconclude = {AFTER}\n"}.get(source, "")
    (tmp_path / "config/cerebrum").mkdir(parents=True)
    (tmp_path / "config/cerebrum/config.toml").write_text(config)
    if source == "variable":
        monkeypatch.setenv("CEREBRUM_CONCLUDE", str(AFTER))
    if source == "session":
        ask("Short.", chatml_model, tmp_path)
    given = ["-m", str(chatml_model), *{"prompt": ["-p", "saved"], "session": ["-c"]}.get(source, [])]
    for conflict, options in (
        (f"--conclude {AFTER} has no effect on replies of at most {AFTER} tokens", ["-n", str(AFTER)]),
        ("--conclude and --grammar cannot be used together", ["--grammar", str(rule)]),
    ):
        left_out = run_here({"reply": "Short."}, tmp_path, "ask", "Why?", *given, *options)
        assert (left_out.code, left_out.out, left_out.err) == (0, "Short.\n", "")
        typed = run_here({"reply": "Short."}, tmp_path, "ask", "Why?", *given, *options, "--conclude", str(AFTER))
        assert (typed.code, typed.err.splitlines()[0]) == (2, f"error: {conflict}")
    off = run_here({"reply": THOUGHT * 2}, tmp_path, "ask", "Why?", *given, "--conclude", "0", "--json").object
    assert (off["text"], off["concluded_at"]) == (THOUGHT * 2, None)


@pytest.mark.parametrize("command", [("batch", "-o", "-"), ("eval",), ("chat",)])
def test_commands_refuse_a_conclusion_beyond_the_limit(
    chatml_model: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "one", "question": "one", "answer": "1"}\n')
    arguments = [*command, *([] if command == ("chat",) else [str(source)]), "-m", str(chatml_model)]
    done = run_here({"reply": "x"}, tmp_path, *arguments, "--conclude", "30", "-n", "20", piped=b"")
    assert done.code == 2
    assert done.err.startswith("error: --conclude 30 has no effect on replies of at most 20 tokens\n")


@pytest.mark.parametrize("command", [("ask", "Why?"), ("chat",)])
def test_refused_options_free_the_session(chatml_model: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    ask("Short.", chatml_model, tmp_path)
    gc.disable()  # which would free it, too
    try:
        refused = run_here({}, tmp_path, *command, "-c", "--conclude", "30", "-n", "20", piped=b"")
        again = run_here({"reply": "x"}, tmp_path, "chat", "-c", piped=b"")
    finally:
        gc.enable()
    assert (refused.code, again.code, again.err) == (2, 0, "")


def test_vote_counts_concluded_samples(chatml_model: Path, tmp_path: Path) -> None:
    concluded = THOUGHT + HIDDEN + " 42."
    script = {"rows": {}, "seeds": [concluded, "The answer is 7.", concluded]}
    options = ("--votes", "3", "--no-early-stop", "--seed", "0", "--json", "-n", "60", "--conclude", str(AFTER))
    answer = run_here(script, tmp_path, "ask", "Why?", "-m", chatml_model, *options).object
    assert answer["concluded_at"] == len(THOUGHT)
    chains = answer["votes"]["chains"]
    assert [(each["final_answer"], each["concluded_at"]) for each in chains] == [
        ("42", len(THOUGHT)),
        ("7", None),
        ("42", len(THOUGHT)),
    ]


def test_batch_rows_state_where_they_were_concluded(chatml_model: Path, tmp_path: Path) -> None:
    script = {"rows": {"two": "Two."}, "seeds": [THOUGHT + HIDDEN + " 42."]}
    rows: list[dict[str, Any]] = [{"prompt": "one", "conclude": 20}, {"prompt": "two"}, {"prompt": ""}]
    done, [one, two, three] = batch_here(script, tmp_path, chatml_model, *rows)
    assert done.code == 6, done.err
    assert (one["concluded_at"], one["final_answer"], list(one)[-1]) == (len(THOUGHT), "42", "concluded_at")
    assert "concluded_at" not in two and "concluded_at" not in three
    assert "conclude" not in json.loads((tmp_path / "out.jsonl.meta.json").read_text())["fingerprint"]


@pytest.mark.parametrize("costs", [None, FREE_ROWS])
def test_engine_concludes_each_sample_by_itself(costs: StepCosts | None) -> None:
    backend = ScriptedBackend(thinker("I see {seed}. "), slots=3, context_size=400)
    factory = loads(dumps(concluding()))  # as it is sent to the nodes of a cluster
    request = Request(tokens("go"), SamplingParams(seed=7), n=3, step_costs=costs, controls=(LoopCheck, factory))
    with running_engine(backend) as engine:
        replies = list(collect_replies(engine.generate([request])).values())
    assert [reply.text for reply in replies] == [
        f"I see {n}. I see {n}. I see {n}. The answer is {n}." for n in (7, 8, 9)
    ]
    assert all(reply.finish and reply.finish.completion_tokens == len(reply.ids) for reply in replies)


@pytest.mark.parametrize(("limit", "context", "reason"), [(30, 400, "length"), (None, 32, "context")])
def test_engine_cuts_a_conclusion_at_the_limits(limit: int | None, context: int, reason: str) -> None:
    backend = ScriptedBackend(thinker("I see {seed}. "), context_size=context)
    request = Request(tokens("go"), SamplingParams(seed=7, max_tokens=limit), controls=(concluding(),))
    with running_engine(backend) as engine:
        [reply] = collect_replies(engine.generate([request])).values()
    assert (reply.reason, len(reply.ids)) == (reason, 30)
    assert reply.text == "I see 7. I see 7. I see 7. The"


def test_engine_ends_the_sentence_of_a_long_prefix_before_it_concludes() -> None:
    factory = concluding(prefix_text="and so " * 9, prefix_length=63)
    request = Request(tokens("go"), SamplingParams(seed=7), controls=(factory,))
    with running_engine(ScriptedBackend(thinker("I see {seed}. "), context_size=400)) as engine:
        [reply] = collect_replies(engine.generate([request])).values()
    assert reply.text.startswith(f"I see 7.{BRIDGE}")


@dataclass
class Interrupt:
    """A control that forces a text once, and sets no limit."""

    count: int = 0
    horizon: int | None = None

    def feed(self, token: int, text: str) -> None:
        self.count += 1

    def intervene(self) -> Force | None:
        return Force("conclusion", tokens("But: ")) if self.count == 5 else None


def test_engine_lets_several_controls_intervene() -> None:
    backend = ScriptedBackend(lambda held, seed: b"ab"[len(held) % 2], context_size=400)
    with running_engine(backend) as engine:
        request = Request(tokens("go"), SamplingParams(), controls=(LoopCheck, Interrupt))
        [reply] = collect_replies(engine.generate([request])).values()
    assert reply.text == "ababa" + "But: " + "ab" * (MIN_TOKENS // 2)
    assert reply.reason == "repetition"
    assert reply.finish and reply.finish.forced[0].at == 5


@pytest.mark.parametrize("penalty", ["1", "1.3"])
def test_nano_concludes_in_its_own_tokens(new_user: CommandLine, penalty: str) -> None:
    new_user.run("pull", MODEL_FILE, "--name", "nano")
    question = ("What is 17 + 25 - 8 + 3?", "-m", "nano", "--format", "cerebrum", "--repeat-penalty", penalty)
    answer = new_user.run("ask", *question, "--conclude", "4", "--json").object
    assert answer["concluded_at"] <= 4 + SENTENCE_TOKENS
    assert answer["text"].count("The answer is") == 1 and answer["final_answer"]
