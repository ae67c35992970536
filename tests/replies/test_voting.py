"""Majority votes of `ask` and `batch`: samples of one prompt, early stopping, and programs that vote, too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking import running_engine
from command_line import CommandLine, Finished
from installations import model_on
from scripted_backend import ScriptedSampler
from scripted_command import RecordingBackend, batch_backend, run_here
from templates import chosen_format

from cerebrum_cli.core.ask import ASK_FOR_ANSWER, Ask, parse_votes
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.events import Event, FinishEvent, PromptEvent, TallyEvent
from cerebrum_cli.core.settings import fold
from cerebrum_cli.replies import checking
from cerebrum_cli.replies.concurrent_rows import vote_events
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.majority_vote import MajorityVote

VOTES_KEYS = ["sample_count", "winner", "tie", "tally", "agreement", "samples"]
SAMPLE_KEYS = ["seed", "text", "final_answer", "finish_reason"]
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

    def batch(self, rows: list[dict[str, Any]], *arguments: str, replies: list[str]) -> tuple[Finished, list[Any]]:
        """Run a batch; also return its rows."""
        source = self.home / "in.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        done = self.run(source, "-o", "-", *arguments, replies=replies, command="batch")
        return done, [json.loads(line) for line in done.out.splitlines()]

    @property
    def backend(self) -> RecordingBackend:
        backend: RecordingBackend = self.script["backends"][-1]
        return backend


@pytest.fixture
def runner(tmp_path: Path, chatml_model: Path) -> VoteRunner:
    return VoteRunner(tmp_path, chatml_model)


SPLIT_VOTE = [reply(4, "zz "), reply("4.0", "yyyyyyyy "), reply(5), "no idea", reply(4)]


def test_vote_prints_the_winning_sample_or_answer_and_tally(runner: VoteRunner) -> None:
    done = runner.run("q", "--votes", "5", replies=SPLIT_VOTE)
    assert (done.code, done.out, done.err) == (0, "zz The answer is 4.\n", "")  # the first of three
    done = runner.run("q", "--votes", "5", "--final", "--stats")
    assert (done.code, done.out) == (0, "4\n")
    stats, tally = done.err.splitlines()
    assert "| seed 0 |" in stats
    assert tally == "4: 3 of 5 votes (60%); runner-up 5: 1"
    assert runner.run("q", "--votes", "5", "--final", "-q").err == ""
    done = runner.run("q", "--votes", "5", "--final", replies=[reply(number) for number in (4, 5, 4, 6, 7)])
    assert (done.code, done.out) == (0, "4\n")
    assert "the winner has only 2 of 5 votes" in done.err


def test_vote_json_lists_samples_in_seed_order(runner: VoteRunner) -> None:
    answer = runner.vote("5", replies=SPLIT_VOTE)
    votes = answer["votes"]
    assert list(votes) == VOTES_KEYS
    assert [list(sample) for sample in votes["samples"]] == [SAMPLE_KEYS] * 5
    assert [tuple(sample.values()) for sample in votes["samples"]] == [
        (0, "zz The answer is 4.", "4", "stop"),
        (1, "yyyyyyyy The answer is 4.0.", "4.0", "stop"),
        (2, "The answer is 5.", "5", "stop"),
        (3, "no idea", None, "stop"),
        (4, "The answer is 4.", "4", "stop"),
    ]
    assert votes["tally"] == [{"answer": "4", "count": 3}, {"answer": "5", "count": 1}]
    assert (votes["sample_count"], votes["winner"], votes["agreement"]) == (5, "4", 0.6)
    assert (answer["text"], answer["final_answer"], answer["seed"]) == ("zz The answer is 4.", "4", 0)
    assert answer["completion_tokens"] == len("zz The answer is 4.")


@pytest.mark.parametrize("arguments", [(), ("--final",), ("--json",)])
def test_vote_without_a_final_answer_exits_5(runner: VoteRunner, arguments: tuple[str, ...]) -> None:
    done = runner.run("q", "--votes", "3", *arguments, replies=["I cannot say. " * 3, "I am not sure, and"])
    assert done.code == 5
    saved = "; read the reply: cerebrum sessions show q" if "--final" in arguments else ""
    assert done.err == f"error: no final answer in 3 samples\n hint: {ASK_FOR_ANSWER}{saved}\n"
    assert "no final answer in 1 sample\n" in runner.run("q", "--votes", "1").err
    if "--json" in arguments:
        votes = done.object["votes"]
        assert (votes["winner"], votes["tally"], votes["agreement"], votes["sample_count"]) == (None, [], 0.0, 3)
    else:
        assert bool(done.out) is not bool(arguments)  # the first sample, or nothing with --final


def test_vote_reports_a_tie_and_has_no_final_answer_in_it(runner: VoteRunner) -> None:
    replies = [reply(answer) for answer in (1, 2, 3, 4, 5)]
    done = runner.run("q", "--votes", "5", replies=replies)
    assert (done.code, done.out) == (0, "The answer is 1.\n")
    problem, hint = "5 answers are tied with 1 of 5 votes each", "take more samples, or ask a more specific question"
    assert done.err == f"note: {problem}\n      {hint}\n"
    done = runner.run("q", "--votes", "5", "--final")
    assert (done.code, done.out, done.err) == (5, "", f"error: {problem}\n hint: {hint}\n")
    assert runner.run("q", "--votes", "5", "--final", "--json").object["votes"]["tie"] is True
    assert runner.vote("5", replies=SPLIT_VOTE)["votes"]["tie"] is False


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


def test_adaptive_vote_stops_when_the_lead_is_sure(runner: VoteRunner) -> None:
    for replies, samples, code in (([reply(4)], 3, 0), (["no idea"], 16, 5)):
        done = runner.run("q", "--json", "--votes", "auto:3..16", replies=replies)
        votes = done.object["votes"]
        assert (done.code, votes["sample_count"]) == (code, samples)
        assert [sample["seed"] for sample in votes["samples"]] == list(range(samples))


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


def test_session_saves_and_continues_the_winning_sample(runner: VoteRunner) -> None:
    runner.run("q", "--votes", "5", replies=SPLIT_VOTE)
    shown = run_here(runner.script, runner.home, "sessions", "show", "--json", "q")
    assert [message["content"] for message in shown.object["messages"]] == ["q", "zz The answer is 4."]
    prompt = runner.run("-c", "and then?", "--dry-run").out
    assert "assistant\nzz The answer is 4.<|im_end|>\n<|im_start|>user\nand then?" in prompt
    again = runner.run("-c", "and then?", "--votes", "3", "--json", replies=[reply(8)])
    assert again.object["final_answer"] == "8"
    assert runner.run("-c", "x", "--dry-run").out.count("<|im_start|>user") == 3


def test_batch_votes_on_every_row(runner: VoteRunner) -> None:
    rows = [{"prompt": "a", "seed": 0}, {"prompt": "b", "seed": 2}, {"prompt": "c", "temperature": 0}]
    replies = [reply(4, "zz "), reply(4), reply(5), reply(5), reply(4, LONG)]
    done, [first, second, third] = runner.batch(rows, "--votes", "3", replies=replies)
    assert done.code == 6
    assert (first["text"], first["final_answer"], first["seed"]) == ("zz The answer is 4.", "4", 0)
    assert first["votes"]["tally"] == [{"answer": "4", "count": 2}]  # without the third sample, with the answer 5
    assert list(first["votes"]) == VOTES_KEYS
    assert first["completion_tokens"] == len("zz The answer is 4.The answer is 4.")  # of both samples
    assert (second["final_answer"], second["votes"]["sample_count"], second["error"]) == ("5", 2, None)
    assert (third["text"], third["votes"], third["error"]["type"]) == (None, None, "invalid_request")
    assert third["error"]["message"].startswith("--votes needs a temperature above 0: at 0 all samples are the same")


PRIME = ["Yes, 7 is a prime number.", "No: 7 = 2 * 3 + 1.", "**Yes**, its divisors are 1 and 7.", "7 has 2 divisors."]


def test_question_of_yes_and_no_has_such_answers_and_no_numbers(runner: VoteRunner) -> None:
    question = "Is 7 a prime number?"
    done = runner.run(question, "--votes", "4", "--final", "--stats", replies=PRIME)
    assert (done.code, done.out, done.err.splitlines()[-1]) == (0, "yes\n", "yes: 2 of 4 votes (50%); runner-up no: 1")
    assert runner.run(question, "--final", replies=PRIME[1:2]).out == "no\n"
    assert runner.run(question, "--final", replies=PRIME[3:]).code == 5
    _, [row] = runner.batch([{"n": 7}], "--template", "Is {n} a prime number?", "--votes", "4", replies=PRIME)
    answers = [sample["final_answer"] for sample in row["votes"]["samples"]]
    assert (row["final_answer"], answers) == ("yes", ["yes", "no", "yes", None])


def test_question_with_choices_counts_letters(runner: VoteRunner) -> None:
    replies = ["B) Venus", "It is 3 times as large: A", "The answer is (B)."]
    done = runner.run("Which is larger?\nA) Mars\nB) Venus", "--votes", "3", "--json", replies=replies)
    assert [sample["final_answer"] for sample in done.object["votes"]["samples"]] == ["B", "A", "B"]


@pytest.mark.parametrize(
    ("options", "replies", "answer", "samples"),
    [(("--votes", "auto"), ["no idea"], None, 16), (("--votes", "2"), [reply(1), reply(2)], "1", 2)],
)
def test_batch_counts_undecided_votes(
    runner: VoteRunner, options: tuple[str, ...], replies: list[str], answer: str | None, samples: int
) -> None:
    done, rows = runner.batch([{"prompt": "a"}, {"prompt": "b"}], *options, replies=replies)
    assert (done.code, len(rows), "2 of 2 done, 2 undecided" in done.err) == (6, 2, True)
    for row in rows:
        assert (row["final_answer"], row["error"], row["votes"]["sample_count"]) == (answer, None, samples)


def events_of(
    replies: list[str], votes: str, on_tally: Callable[[Model], object] = lambda _: None
) -> tuple[MajorityVote, list[Event]]:
    """Run a vote on an engine, collect its events, and call `on_tally` for each TallyEvent."""
    vote, seen = MajorityVote(parse_votes(votes)), list[Event]()
    backend = batch_backend({"rows": {}, "seeds": replies}, vote.tally.votes.maximum)
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
