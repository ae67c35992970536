"""Majority votes of `ask` and `batch`: samples of one prompt, early stopping, and programs that vote, too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking import running_engine
from command_line import CommandLine, Finished
from installations import model_on
from scripted_backend import ScriptedBackend, ScriptedSampler
from scripted_command import backend_for, run_here
from templates import chosen_format

from cerebrum_cli.core.ask import Ask, parse_votes
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.events import Event, FinishEvent, PromptEvent, TallyEvent
from cerebrum_cli.core.settings import fold
from cerebrum_cli.replies import checking
from cerebrum_cli.replies.concurrent_rows import vote_events
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.majority_vote import MajorityVote

LONG = "".join(f"{chr(97 + n // 10)}{chr(107 + n % 10)}" for n in range(100))  # without a cycle


def reply(answer: object, before: str = "") -> str:
    return f"{before}The answer is {answer}."


class VoteRunner:
    """Runs votes on a scripted model: the sample with seed n is the n-th of `replies`, repeated as needed."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home = home
        self.model = model
        self.script: dict[str, Any] = {"rows": {}, "seeds": [], "backends": []}

    def run(self, *arguments: str | Path, replies: list[str] | None = None, command: str = "ask") -> Finished:
        """Run one command with --seed 0, so that samples are in the order of `replies`."""
        self.script["seeds"] = replies or self.script["seeds"]
        return run_here(self.script, self.home, command, "-m", self.model, "--seed", "0", *arguments)

    def vote(self, votes: str, *arguments: str | Path, replies: list[str]) -> Any:
        done = self.run("q", "--json", "-q", "--votes", votes, *arguments, replies=replies)
        assert (done.code, done.err) == (0, "")
        return done.object

    @property
    def backend(self) -> ScriptedBackend:
        backend: ScriptedBackend = self.script["backends"][-1]
        return backend


@pytest.fixture
def runner(tmp_path: Path, chatml_model: Path) -> VoteRunner:
    return VoteRunner(tmp_path, chatml_model)


def test_vote_counts_a_failed_sample_as_one_without_an_answer(
    runner: VoteRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = ScriptedSampler.sample

    def rejecting(sampler: ScriptedSampler, row: int) -> int:
        if sampler.seed in failing:
            raise GrammarError("no token is allowed", "check the grammar")
        return sample(sampler, row)

    monkeypatch.setattr(ScriptedSampler, "sample", rejecting)
    failing = {0, 2}
    done = runner.run("q", "--votes", "4", replies=[reply(5), reply(4), reply(5), reply(4)])
    assert (done.code, done.out) == (0, reply(4) + "\n")
    assert done.err == "note: 2 of 4 samples failed: no token is allowed\n      check the grammar\n"
    failing = {0, 1, 2, 3}
    done = runner.run("q", "--votes", "4")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith("no token is allowed\n hint: check the grammar\n")


def test_vote_stops_samples_that_cannot_change_the_outcome(runner: VoteRunner) -> None:
    longest = reply(5, LONG * 10)
    replies = [reply(4), reply(4), reply(4), longest, longest]
    early = runner.vote("5", replies=replies)
    steps = len(runner.backend.steps)
    assert [sample["seed"] for sample in early["votes"]["samples"]] == [0, 1, 2]
    assert (early["votes"]["sample_count"], early["votes"]["agreement"], early["final_answer"]) == (3, 1.0, "4")
    assert steps < len(longest) / 4  # running samples are not completed


@pytest.mark.parametrize(
    ("config", "options", "used"),
    [("", (), 0.7), ("temperature = 0.3\n", (), 0.3), ("temperature = 0.3\n", ("--temperature", "1.5"), 1.5)],
)
def test_vote_temperature_defaults_to_0_7(
    runner: VoteRunner, config: str, options: tuple[str, ...], used: float
) -> None:
    (CommandLine(runner.home).config / "config.toml").write_text(config)
    runner.vote("2", *options, replies=[reply(4)])
    assert {params.temperature for params in runner.backend.params} == {used}


def events_of(
    replies: list[str], votes: str, on_tally: Callable[[Model], object] = lambda _: None
) -> tuple[MajorityVote, list[Event]]:
    """Run a vote on an engine, collect its events, and call `on_tally` for each TallyEvent."""
    vote, seen = MajorityVote(parse_votes(votes)), list[Event]()
    backend = backend_for({"rows": {}, "seeds": replies}, vote.tally.votes.maximum)
    request = Ask(Conversation().user("q"), fold({"seed": 0, "temperature": 0.7, "system": "S"}))
    with running_engine(backend) as engine:
        model = model_on(engine, chosen_format("cerebrum"))
        for event in vote_events(model, request, vote):
            seen.append(event)
            if isinstance(event, TallyEvent):
                on_tally(model)
    return vote, seen


def test_vote_yields_a_tally_event_per_change() -> None:
    _, seen = events_of([reply(4), reply(5, "zzz "), "no idea", reply(5, LONG)], "4")
    tallies = [event for event in seen if isinstance(event, TallyEvent)]
    assert tallies == [
        TallyEvent((("4", 1),), 1, 4, 4),  # "no idea" finishes first, and waits for the samples before it
        TallyEvent((("4", 1), ("5", 1)), 3, 4, 4),
        TallyEvent((("5", 2), ("4", 1)), 4, 4, 4),
    ]
    finished = [event.sequence.sample for event in seen if isinstance(event, FinishEvent)]
    assert sorted(finished) == [0, 1, 2, 3]
    assert any(isinstance(event, PromptEvent) for event in seen)


def test_cancelled_vote_keeps_its_tally() -> None:
    vote, seen = events_of([reply(4), *[reply(5, LONG)] * 4], "5", Model.cancel)
    assert (vote.tally.winner and vote.tally.winner.answer, vote.is_over, vote.running) == ("4", False, 0)
    assert vote.reply and vote.reply.text == reply(4)
    reasons = [event.reason for event in seen if isinstance(event, FinishEvent)]
    assert sorted(reasons) == ["cancelled"] * 4 + ["stop"]


BETWEEN = f"<|im_end|>\n<|im_start|>user\n{checking.QUESTION}"


def program(code: str) -> str:
    return f"```python\n{code}\n```"


# Four samples: 5, whose program fails; 4, to which its program comes; 5 again; and 7, whose program comes to 4.
CHECKED = [reply(5), reply(4), reply(5), reply(7)]
PROGRAMS = {reply(5): program("print("), reply(4): program("print(2 + 2)"), reply(7): program("print(2 + 2)")}


def check(
    runner: VoteRunner, *arguments: str, replies: list[str] = CHECKED, programs: dict[str, str] = PROGRAMS, **more: Any
) -> Finished:
    runner.script["rows"] = {f"{said}{BETWEEN}": text for said, text in programs.items()}
    return runner.run("--check", "python", *arguments, replies=replies, **more)


def test_program_that_prints_true_agrees_with_yes(runner: VoteRunner) -> None:
    replies = ["Yes, it is.", "No, it is 7."]
    programs = dict.fromkeys(replies, program("print(7 % 2 > 0)"))
    arguments = "Is 7 odd?", "--votes", "2", "--json"
    done = check(runner, *arguments, replies=replies, programs=programs)
    assert [sample["checked"] for sample in done.object["votes"]["samples"]] == [True, False]
    assert done.object["final_answer"] == "yes"


def test_check_prefers_an_answer_that_programs_come_to(runner: VoteRunner) -> None:
    done = check(runner, "q", "--votes", "4", "--json", "-q")
    votes = done.object["votes"]
    assert (done.code, votes["winner"], votes["checked"], votes["agreement"]) == (0, "4", True, 0.5)
    assert [(each["answer"], each["count"], each["replies"], each["programs"]) for each in votes["tally"]] == [
        *(("4", 2, 1, 2), ("5", 2, 2, 0), ("7", 1, 1, 0))
    ]
    assert [(sample["final_answer"], sample["program_output"], sample["checked"]) for sample in votes["samples"]] == [
        *(("5", None, False), ("4", "4", True), ("5", None, False), ("7", "4", False))
    ]
    assert [sample["program"].strip() for sample in votes["samples"]] == ["print(", "print(2 + 2)"] * 2
    assert votes["samples"][1]["program_tokens"] == len(program("print(2 + 2)"))
    assert done.object["text"] == reply(4)
    assert done.object["completion_tokens"] == len(reply(4))


def test_check_without_an_agreeing_program_is_a_plain_majority(runner: VoteRunner) -> None:
    programs = dict.fromkeys(PROGRAMS, program("print("))
    done = check(runner, "q", "--votes", "4", "--final", programs=programs)
    assert (done.code, done.out) == (0, "5\n")
    assert "no reply and program agree on an answer, so the winner is not checked" in done.err


def test_check_shows_the_program_that_wins_alone(runner: VoteRunner) -> None:
    programs = dict.fromkeys(PROGRAMS, program("print(2 + 2)"))
    replies = [reply(5), reply(7), reply(7), reply(5)]
    done = check(runner, "q", "--votes", "4", replies=replies, programs=programs)
    assert (done.code, done.out) == (0, f"{reply(5)}\n\n{program('print(2 + 2)')}\n\n4\n")
    assert "the winner is not checked" in done.err
    done = check(runner, "q", "--votes", "4", "--json", "-q", replies=replies, programs=programs)
    assert (done.object["text"], done.object["final_answer"]) == (reply(5), "4")


def test_check_prints_the_last_line_of_a_program(runner: VoteRunner) -> None:
    programs = {reply(7): program("print('so:'); print(7.0)")}
    done = check(runner, "q", "--votes", "2", "--final", replies=[reply(7)] * 2, programs=programs)
    assert (done.code, done.out) == (0, "7\n")


def test_check_of_a_truncated_sample_is_not_asked_for(runner: VoteRunner) -> None:
    done = check(runner, "q", "--votes", "2", "-n", "8", "--json", "-q", replies=[reply(4)])
    assert [(sample["finish_reason"], sample["program"]) for sample in done.object["votes"]["samples"]] == [
        ("length", None)
    ] * 2


def test_check_of_a_batch_writes_the_programs(runner: VoteRunner) -> None:
    (runner.home / "in.txt").write_text("one\ntwo\n")
    done = check(runner, str(runner.home / "in.txt"), "-o", "-", "--votes", "4", "-q", command="batch")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["final_answer"] for row in rows] == ["4", "4"]
    spent = sum(map(len, CHECKED)) + sum(len(PROGRAMS[said]) for said in CHECKED)
    assert [row["completion_tokens"] for row in rows] == [spent] * 2


def test_check_counts_programs_that_monty_does_not_support(runner: VoteRunner) -> None:
    codes = {reply(4): "print(2 + 2)", reply(5): "import fractions\nprint(5)", reply(7): "1 / 0"}
    programs = {said: program(code) for said, code in codes.items()}
    done = check(runner, "q", "--votes", "4", "--json", programs=programs)
    votes = done.object["votes"]
    assert (done.code, votes["winner"], votes["checked"]) == (0, "4", True)
    assert [sample.get("program_unsupported") for sample in votes["samples"]] == [True, None, True, None]
    assert [sample["program_output"] for sample in votes["samples"]] == [None, "4", None, None]
    done = check(runner, "q", "--votes", "4", "--stats", programs=programs)
    result = "4: 1 reply and 1 program of 4 samples; runner-up 5: 2 replies and 0 programs"
    assert f"{result}; 2 programs not supported by Monty\n" in done.err
