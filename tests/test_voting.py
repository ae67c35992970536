"""`--votes`, in `ask` and in `batch`: many chains of one prompt, the answer most of them come to, and when to stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from command_line import CommandLine, Finished
from scripted_command import Many, many, run_here

from cerebrum_cli.answers.vote import parse_votes
from cerebrum_cli.application.inference.format_choice import format_builder
from cerebrum_cli.application.inference.responder import GenerationRequest, LocalResponder
from cerebrum_cli.application.inference.voting import MajorityVote, vote
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import Event, FinishEvent, PromptEvent, TallyEvent, TokenEvent
from cerebrum_cli.core.settings import fold
from cerebrum_cli.engine.engine import Engine

VOTES_KEYS = ["samples", "winner", "tally", "agreement", "chains"]
CHAIN_KEYS = ["seed", "text", "final_answer", "finish_reason"]
LONG = "x" * 200


def stating(answer: object, before: str = "") -> str:
    """Return a chain that comes to an answer."""
    return f"{before}The answer is {answer}."


class Booth:
    """Where votes are taken on a scripted model; the chain of seed n is the n-th of `chains`, over and over."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home = home
        self.model = model
        self.script: dict[str, Any] = {"rows": {}, "seeds": [], "backends": []}

    def run(self, *arguments: str | Path, chains: list[str] | None = None, command: str = "ask") -> Finished:
        """Run one command; --seed 0 so that chains come as they are written."""
        self.script["seeds"] = chains or self.script["seeds"]
        return run_here(self.script, self.home, command, "-m", self.model, "--seed", "0", *arguments)

    def vote(self, votes: str, *arguments: str | Path, chains: list[str]) -> Any:
        """Return the object of a vote."""
        done = self.run("q", "--json", "--votes", votes, *arguments, chains=chains)
        assert done.err == ""
        return done.object

    @property
    def backend(self) -> Many:
        """The model that was loaded last."""
        backend: Many = self.script["backends"][-1]
        return backend


@pytest.fixture
def booth(tmp_path: Path, chatml_model: Path) -> Booth:
    """Return where votes are taken."""
    return Booth(tmp_path, chatml_model)


SPLIT = [stating(4, "zz "), stating("4.0", "yyyyyyyy "), stating(5), "no idea", stating(4)]


# What comes out.


def test_the_chain_that_won_is_printed_and_nothing_else(booth: Booth) -> None:
    done = booth.run("q", "--votes", "5", chains=SPLIT)
    assert (done.code, done.out, done.err) == (0, "The answer is 4.\n", "")  # of the three the most probable


def test_final_prints_the_answer_alone_and_stats_how_it_stands(booth: Booth) -> None:
    done = booth.run("q", "--votes", "5", "--final", "--stats", "--no-early-stop", chains=SPLIT)
    assert (done.code, done.out) == (0, "4\n")
    stats, tally = done.err.splitlines()
    assert "| seed 4 |" in stats
    assert tally == "4 3 of 5, 5 1 of 5"
    assert booth.run("q", "--votes", "5", "--final", "-q").err == ""


def test_json_carries_every_chain_in_the_order_of_their_seeds(booth: Booth) -> None:
    answer = booth.vote("5", "--no-early-stop", chains=SPLIT)
    votes = answer["votes"]
    assert list(votes) == VOTES_KEYS
    assert [list(chain) for chain in votes["chains"]] == [CHAIN_KEYS] * 5
    assert [tuple(chain.values()) for chain in votes["chains"]] == [
        (0, "zz The answer is 4.", "4", "stop"),
        (1, "yyyyyyyy The answer is 4.0.", "4.0", "stop"),
        (2, "The answer is 5.", "5", "stop"),
        (3, "no idea", None, "stop"),
        (4, "The answer is 4.", "4", "stop"),
    ]
    assert votes["tally"] == [{"answer": "4", "count": 3}, {"answer": "5", "count": 1}]
    assert (votes["samples"], votes["winner"], votes["agreement"]) == (5, "4", 0.6)
    assert (answer["text"], answer["final_answer"], answer["seed"]) == ("The answer is 4.", "4", 4)
    assert answer["completion_tokens"] == len("The answer is 4.")


def test_without_votes_there_is_no_object_of_them(booth: Booth) -> None:
    assert booth.run("q", "--json", chains=["ok"]).object["votes"] is None


@pytest.mark.parametrize("arguments", [(), ("--final",), ("--json",)])
def test_where_no_chain_has_an_answer_it_is_exit_5(booth: Booth, arguments: tuple[str, ...]) -> None:
    done = booth.run("q", "--votes", "3", *arguments, chains=["I went on and on. " * 3, "so it goes on, and"])
    assert done.code == 5
    assert done.err == "error: none of 3 chains states a final answer\n  try: --json shows all of them\n"
    if "--json" in arguments:
        votes = done.object["votes"]
        assert (votes["winner"], votes["tally"], votes["agreement"], votes["samples"]) == (None, [], 0.0, 3)
    else:
        assert bool(done.out) is not bool(arguments)  # the most probable chain, or no answer at all


def test_equal_counts_go_to_the_answer_with_more_probability(booth: Booth) -> None:
    # a token costs a thousandth of its number: smaller bytes are likelier
    assert booth.vote("4", chains=[stating(9), stating(1), stating(9), stating(1)])["final_answer"] == "1"
    assert booth.vote("2", chains=[stating("b"), stating("a")])["votes"]["tally"] == [
        {"answer": "a", "count": 1},
        {"answer": "b", "count": 1},
    ]


def test_one_vote_is_a_vote_too(booth: Booth) -> None:
    answer = booth.vote("1", chains=[stating(7)])
    assert (answer["final_answer"], answer["votes"]["samples"], answer["votes"]["agreement"]) == ("7", 1, 1.0)


def test_thought_that_is_marked_is_no_part_of_a_chains_text(booth: Booth) -> None:
    answer = booth.vote("2", chains=[f"<think>{stating(5)}</think>{stating(4)}"])
    assert (answer["text"], answer["reasoning"]) == ("The answer is 4.", "The answer is 5.")
    assert answer["votes"]["winner"] == "4"


# When to stop.


def test_chains_that_cannot_change_the_outcome_are_ended(booth: Booth) -> None:
    chains = [stating(4), stating(4), stating(4), stating(5, LONG), stating(5, LONG)]
    early = booth.vote("5", chains=chains)
    steps = len(booth.backend.steps)
    assert [chain["seed"] for chain in early["votes"]["chains"]] == [0, 1, 2]
    assert (early["votes"]["samples"], early["votes"]["agreement"], early["final_answer"]) == (3, 1.0, "4")
    assert steps < 60  # what was running is not said to its end
    late = booth.vote("5", "--no-early-stop", chains=chains)
    assert (late["votes"]["samples"], late["votes"]["agreement"], late["final_answer"]) == (5, 0.6, "4")
    assert len(booth.backend.steps) > 200


def test_a_prompt_is_evaluated_once_for_all_its_chains(booth: Booth) -> None:
    prompt = "q" * 300
    booth.run(prompt, "--votes", "8", "--no-early-stop", chains=[stating(4)])
    assert booth.backend.evaluated < 300 + 100 + 8 * len(stating(4))
    assert booth.backend.slots == 8


@pytest.mark.parametrize(
    ("chains", "samples"),
    [
        ([stating(4)], 3),  # of one mind
        ([stating(4), stating(4), stating(5), stating(4), stating(4)], 6),
        ([stating(number) for number in range(16)], 16),  # of sixteen
        (["no idea"], 16),
    ],
)
def test_an_adaptive_vote_samples_until_the_lead_is_sure(booth: Booth, chains: list[str], samples: int) -> None:
    done = booth.run("q", "--json", "--votes", "auto:3..16", chains=chains)
    votes = done.object["votes"]
    assert votes["samples"] == len(votes["chains"]) == samples
    assert [chain["seed"] for chain in votes["chains"]] == list(range(samples))
    assert done.code == (5 if chains == ["no idea"] else 0)


def test_an_adaptive_vote_that_may_not_stop_early_samples_all(booth: Booth) -> None:
    assert booth.vote("auto:2..5", "--no-early-stop", chains=[stating(4)])["votes"]["samples"] == 5


# At which temperature.


def test_a_vote_samples_at_0_7_unless_something_else_is_given(booth: Booth, monkeypatch: pytest.MonkeyPatch) -> None:
    def temperature(*arguments: str) -> float:
        booth.vote("2", *arguments, chains=[stating(4)])
        assert len({params.temperature for params in booth.backend.params}) == 1
        return booth.backend.params[0].temperature

    assert temperature() == 0.7
    assert temperature("--temperature", "1.5") == 1.5
    monkeypatch.setenv("CEREBRUM_TEMPERATURE", "0.9")
    assert temperature() == 0.9
    monkeypatch.delenv("CEREBRUM_TEMPERATURE")
    config = booth.home / "config" / "cerebrum" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("temperature = 0.3\n")
    assert temperature() == 0.3
    booth.run("q", chains=["ok"])
    assert booth.backend.params[0].temperature == 0.3


@pytest.mark.parametrize("where", ["command line", "environment", "config.toml"])
@pytest.mark.parametrize("command", ["ask", "batch"])
def test_a_vote_at_temperature_0_is_refused_wherever_that_was_said(
    booth: Booth, monkeypatch: pytest.MonkeyPatch, where: str, command: str
) -> None:
    (booth.home / "in.txt").write_text("q\n")
    arguments: list[str | Path] = ["--votes", "3"]
    arguments += ["q"] if command == "ask" else [booth.home / "in.txt", "-o", booth.home / "out"]
    if where == "command line":
        arguments += ["--temperature", "0"]
    elif where == "environment":
        monkeypatch.setenv("CEREBRUM_TEMPERATURE", "0")
    else:
        config = booth.home / "config" / "cerebrum" / "config.toml"
        config.parent.mkdir(parents=True)
        config.write_text("temperature = 0\n")
    done = booth.run(*arguments, chains=[stating(4)], command=command)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: --votes samples several chains, and at temperature 0 all are the same\n  try: ")
    assert not booth.script["backends"]
    assert not list(booth.home.glob("out*"))


@pytest.mark.parametrize("votes", ["0", "257", "many", "auto:5..3", "3..5", ""])
def test_other_votes_are_exit_2(booth: Booth, votes: str) -> None:
    done = booth.run("q", "--votes", votes, chains=["ok"])
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: --votes is {votes!r}\n  try: it must be a number of chains from 1 to 256")


# The session.


def test_the_chain_that_won_is_what_the_session_keeps_and_goes_on_from(booth: Booth) -> None:
    booth.run("q", "--votes", "5", chains=SPLIT)
    kept = run_here(booth.script, booth.home, "sessions", "show", "--json", "q")
    assert [message["content"] for message in kept.object["messages"]] == ["q", "The answer is 4."]
    prompt = booth.run("-c", "and then?", "--dry-run").out
    assert "assistant\nThe answer is 4.<|im_end|>\n<|im_start|>user\nand then?" in prompt
    again = booth.run("-c", "and then?", "--votes", "3", "--json", chains=[stating(8)])
    assert again.object["final_answer"] == "8"
    assert booth.run("-c", "x", "--dry-run").out.count("<|im_start|>user") == 3


def test_a_vote_that_is_not_to_be_kept_is_not(booth: Booth) -> None:
    booth.run("q", "--votes", "3", "--no-log", chains=SPLIT)
    assert run_here(booth.script, booth.home, "sessions", "list", "--json").object == []


# In a batch.


def test_every_row_of_a_batch_is_voted_on(booth: Booth) -> None:
    source, output = booth.home / "in.jsonl", booth.home / "out"
    rows = [{"prompt": "a", "seed": 0}, {"prompt": "b", "seed": 2}, {"prompt": "c", "temperature": 0}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chains = [stating(4, "zz "), stating(4), stating(5), stating(5), stating(4, LONG)]
    done = booth.run(source, "-o", output, "--votes", "3", chains=chains, command="batch")
    first, second, third = map(json.loads, output.read_text().splitlines())
    assert done.code == 6
    assert (first["text"], first["final_answer"], first["seed"]) == ("The answer is 4.", "4", 1)
    assert first["votes"]["tally"] == [{"answer": "4", "count": 2}]  # the third, which came to 5, was not waited for
    assert list(first["votes"]) == VOTES_KEYS
    assert first["completion_tokens"] == len("zz The answer is 4.The answer is 4.")  # of its chains
    assert (second["final_answer"], second["votes"]["samples"], second["error"]) == ("5", 2, None)
    assert (third["text"], third["votes"], third["error"]["type"]) == (None, None, "invalid_request")
    assert third["error"]["message"].startswith("--votes samples several chains, and at temperature 0 all are the same")


def test_chains_of_a_batch_have_seeds_of_their_own(booth: Booth) -> None:
    (booth.home / "in.txt").write_text("same\n" * 3)
    chains = [stating(4)]
    arguments = (booth.home / "in.txt", "-o", "-", "--votes", "2", "--no-early-stop")
    done = booth.run(*arguments, chains=chains, command="batch")
    seeds = [[chain["seed"] for chain in json.loads(line)["votes"]["chains"]] for line in done.out.splitlines()]
    assert seeds == [[0, 1], [2, 3], [4, 5]]


def test_a_row_without_an_answer_is_no_error(booth: Booth) -> None:
    (booth.home / "in.txt").write_text("a\nb\n")
    done = booth.run(booth.home / "in.txt", "-o", "-", "--votes", "auto", chains=["no idea"], command="batch")
    assert done.code == 0
    for line in done.out.splitlines():
        row = json.loads(line)
        assert (row["final_answer"], row["votes"]["winner"], row["votes"]["samples"], row["error"]) == (
            None,
            None,
            16,
            None,
        )


# What a vote tells while it runs.


def events_of(
    chains: list[str], votes: str, seen: list[Event], on_tally: Callable[[LocalResponder], object] = lambda _: None
) -> MajorityVote:
    """Take a vote on an engine, and note its events; do something whenever a chain has been cast."""
    script: dict[str, Any] = {"rows": {}, "seeds": chains}
    poll = MajorityVote(parse_votes(votes))
    backend = many(script, poll.most)
    engine = Engine(backend.open)
    try:
        responder = LocalResponder(engine, format_builder("cerebrum", None, {}), 1000)
        asked = GenerationRequest(Conversation().user("q"), fold({"seed": 0, "temperature": 0.7, "system": "S"}))
        for event in vote(responder, asked, poll):
            seen.append(event)
            if isinstance(event, TallyEvent):
                on_tally(responder)
    finally:
        engine.close()
    assert backend.closed
    return poll


def test_a_vote_tells_how_it_stands_whenever_a_chain_is_cast() -> None:
    seen: list[Event] = []
    events_of([stating(4), stating(5, "zzz "), "no idea", stating(5, LONG)], "4", seen)
    tallies = [event for event in seen if isinstance(event, TallyEvent)]
    assert tallies == [
        TallyEvent((("4", 1),), 1, 2),  # "no idea" is said first, and held until the chains before it are done
        TallyEvent((("4", 1), ("5", 1)), 3, 1),
        TallyEvent((("5", 2), ("4", 1)), 4, 0),
    ]
    ended = [event.sequence.sample for event in seen if isinstance(event, FinishEvent)]
    assert sorted(ended) == [0, 1, 2, 3]
    assert any(isinstance(event, PromptEvent) for event in seen)
    logprobs = [event.logprob for event in seen if isinstance(event, TokenEvent) and event.token is not None]
    assert None not in logprobs


def test_what_was_cast_before_an_interruption_stands() -> None:
    seen: list[Event] = []
    poll = events_of([stating(4), *[stating(5, LONG)] * 4], "5", seen, LocalResponder.cancel)
    assert (poll.winner and poll.winner.answer, poll.is_over, poll.running) == ("4", False, 0)
    assert poll.reply and poll.reply.text == stating(4)
    reasons = [event.reason for event in seen if isinstance(event, FinishEvent)]
    assert sorted(reasons) == ["cancelled"] * 4 + ["stop"]


def test_a_chain_that_ends_while_the_vote_is_being_closed_does_not_count() -> None:
    seen: list[Event] = []  # whoever counts is slow, so that all chains have ended by themselves when it is decided
    poll = events_of(
        [stating(4), stating(4), stating(4), stating(4, "zz "), stating(5)], "5", seen, lambda _: sleep(0.05)
    )
    assert [event.reason for event in seen if isinstance(event, FinishEvent)] == ["stop"] * 5
    assert (poll.ballot.total, sorted(poll.replies)) == (3, [0, 1, 2])


# The real thing.


def test_a_real_model_is_sampled_by_seeds_in_a_row(tmp_path: Path, mistral_model: Path) -> None:
    grammar = tmp_path / "answers.gbnf"
    grammar.write_text('root ::= "so " [a-z] " the answer is " [1-3] "."\n')
    asked = ("ask", "-m", mistral_model, "--format", "cerebrum", "--votes", "6", "--grammar", grammar, "--seed", "5")
    answer = CommandLine(tmp_path).run(*asked, "--json", "--no-early-stop", "hi").object
    votes = answer["votes"]
    assert [chain["seed"] for chain in votes["chains"]] == [5, 6, 7, 8, 9, 10]
    assert len({chain["text"] for chain in votes["chains"]}) > 1
    assert votes["winner"] == votes["tally"][0]["answer"] == answer["final_answer"]
    assert sum(count["count"] for count in votes["tally"]) == 6
    [won] = [chain for chain in votes["chains"] if chain["seed"] == answer["seed"]]
    assert won["text"] == answer["text"]
