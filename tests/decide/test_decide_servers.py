"""Decisions on servers, by the likeliest first tokens of their replies."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from math import exp, inf, log, nan

import pytest
from installations import source_of
from model_servers import ModelServer
from remote_engines import remote_engine, serving_kind, set_patience
from scripted_backend import END
from server_kinds import KINDS, LlamaServer, OllamaServer
from templates import chosen_format

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.decision import Decision
from cerebrum_cli.core.errors import CerebrumError, EndpointError, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.decide.choice_questions import ChoiceQuestion, DecisionEvent
from cerebrum_cli.decide.deciding import decide
from cerebrum_cli.decide.given_choices import YES_OR_NO, GivenChoices, parse_choices, parse_score
from cerebrum_cli.formats.choice import SERVER, ChosenFormat
from cerebrum_cli.library.installed import NANO
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.servers.endpoint import Endpoint, Servers

YES = {"y": -0.2, "n": -2.0, "x": -3.0}  # bytes: the first tokens of "yes", "no" and something else


@contextmanager
def asking(kind: type[ModelServer], openings: dict[str, float]) -> Iterator[tuple[Model, ModelServer]]:
    is_chat = issubclass(kind, OllamaServer)
    chosen = ChosenFormat(SERVER) if is_chat else chosen_format("raw")
    with serving_kind(kind, lambda held, seed: END, context_size=10_000) as [server]:
        server.openings = openings
        source = source_of(NANO, servers=Servers((Endpoint(server.url, server.url),)))
        with Model(source, remote_engine(server, messages=is_chat), chosen) as model:
            yield model, server


def found(model: Model, choices: GivenChoices = YES_OR_NO, by_letter: bool = False) -> Decision | CerebrumError:
    question = ChoiceQuestion(Conversation().user("Is it?"), choices, by_letter)
    [decided] = [event for event in decide(model, [(None, question)]) if isinstance(event, DecisionEvent)]
    assert decided.key is None
    return decided.result


def decision(model: Model, choices: GivenChoices = YES_OR_NO, by_letter: bool = False) -> Decision:
    result = found(model, choices, by_letter)
    assert isinstance(result, Decision)
    return result


@pytest.mark.parametrize("kind", [*KINDS, OllamaServer])
def test_servers_decide_by_the_first_token(kind: type[ModelServer]) -> None:
    with asking(kind, YES) as (model, server):
        for choices, orders in ((YES_OR_NO, 1), (parse_choices("yes,never"), 2)):
            before = len(server.completions())
            result = decision(model, choices)
            assert result.answer == "yes"
            assert result.probability == pytest.approx(exp(-0.2) / (exp(-0.2) + exp(-2.0)))
            assert len(server.completions()) - before == orders


@pytest.mark.parametrize("kind", [LlamaServer, OllamaServer])
def test_what_servers_do_not_tell_is_an_error(kind: type[ModelServer]) -> None:
    with asking(kind, {}) as (model, server):
        with pytest.raises(EndpointError, match="no log probabilities"):
            found(model)
        server.openings = {"x": -0.1}
        error = found(model)
        assert isinstance(error, EndpointError) and "20 likeliest" in error.message


@pytest.mark.parametrize("kind", [LlamaServer, OllamaServer])
def test_a_choice_that_is_not_listed_counts_as_likely_as_it_can_be(kind: type[ModelServer]) -> None:
    with asking(kind, {"y": log(0.62)}) as (model, server):
        assert decision(model).answer == "yes"
        assert decision(model).probability == pytest.approx(0.62)
        server.openings = {"y": log(0.9), "x": log(0.001)}
        assert 0.99 < decision(model).probability < 0.9999


def test_a_model_that_would_answer_something_else_is_noticed() -> None:
    with asking(LlamaServer, {"y": log(0.002), "n": log(0.001), "x": log(0.9)}) as (model, server):
        questions = [(None, ChoiceQuestion(Conversation().user("Is it?"), YES_OR_NO))] * 2
        notice = [*decide(model, questions)][-1]
        assert isinstance(notice, NoticeEvent) and notice.message.endswith("than a choice (2 of 2 questions)")
        server.openings = YES
        assert not any(isinstance(event, NoticeEvent) for event in decide(model, questions))


@pytest.mark.parametrize("kind", [LlamaServer, OllamaServer])
@pytest.mark.parametrize(("logprob", "is_possible"), [(800.0, False), (nan, False), (1e-7, True), (-inf, True)])
def test_impossible_log_probabilities_are_a_damaged_reply(
    kind: type[ModelServer], logprob: float, is_possible: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_patience(monkeypatch)
    with asking(kind, {"y": logprob, "n": -2.0}) as (model, _):
        for _ in range(2):  # after which the server is not asked again
            with nullcontext() if is_possible else pytest.raises(EndpointError, match="damaged reply"):
                decision(model)


@pytest.mark.parametrize("finish", ["stop", "content_filter"])
def test_only_the_first_token_of_a_reply_decides(finish: str) -> None:
    events = b""
    for listed in ([("yes", -0.2), ("no", -2.0), ("yes", -9.0)], [("no", -0.1), ("yes", -9.0)]):
        likeliest = [{"token": text, "logprob": logprob} for text, logprob in listed]
        logprobs = {"content": [{"top_logprobs": likeliest}]}
        choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": finish, "logprobs": logprobs}
        events += b"data: %s\n\n" % json.dumps({"choices": [choice]}).encode()
    with asking(OllamaServer, {}) as (model, server):
        server.arm(body=events, times=None)
        result = found(model)
    if finish == "stop":
        assert isinstance(result, Decision)
        assert result.probability == pytest.approx(exp(-0.2) / (exp(-0.2) + exp(-2.0)), abs=1e-4)
    else:
        assert isinstance(result, EndpointError) and "content_filter" in result.message


def test_a_server_that_ends_is_replaced_by_another() -> None:
    chosen = chosen_format("raw")
    with serving_kind(LlamaServer, lambda held, seed: END, 2, context_size=10_000) as servers:
        for server in servers:
            server.openings = YES
        servers[0].arm(status=503, times=2)
        source = source_of(NANO, servers=Servers(tuple(Endpoint(server.url, server.url) for server in servers)))
        with Model(source, remote_engine(*servers), chosen) as model:
            texts = (Conversation().user(f"Is it {number}?") for number in range(30))
            questions = [(number, ChoiceQuestion(text, YES_OR_NO)) for number, text in enumerate(texts)]
            results: dict[int, object] = {}
            for event in decide(model, questions):
                if isinstance(event, DecisionEvent):
                    assert event.key not in results
                    results[event.key] = event.result
                    if len(results) == 5:
                        servers[1].kill()
    assert len(results) == 30 and all(isinstance(result, Decision) for result in results.values())


def test_choices_that_begin_alike_get_letters_on_servers() -> None:
    choices = parse_choices("card lost,card stolen,other")
    with asking(LlamaServer, {"A": -0.1, "B": -3.0, "C": -4.0}) as (model, _):
        for by_letter in (True, False):
            result = decision(model, choices, by_letter)
            assert result.method == "letters, averaged prompts"
            assert result.probabilities == pytest.approx([1 / 3] * 3)
        error = found(model, parse_choices(",".join(f"card {number}" for number in range(27))))
        assert isinstance(error, UsageError) and "does not tell" in error.message
    with asking(OllamaServer, {"card": -0.7, "other": -0.7}) as (model, server):
        error = found(model, choices)
        assert isinstance(error, EndpointError) and "begin with the same likely token" in error.message
        server.openings = {"other": -0.1, "card": -9.0}
        assert decision(model, choices).answer == "other"


def test_a_number_that_begins_another_is_clear_if_both_are_tokens() -> None:
    with asking(OllamaServer, {"1": -0.5, "2": -1.0}) as (model, server):
        error = found(model, parse_score("1..10"))
        assert isinstance(error, EndpointError) and error.hint == "score with fewer numbers, or take votes: --votes 8"
        server.openings = {"1": -0.5, "2": -1.0, "10": -2.0}
        assert decision(model, parse_score("1..10")).answer == "1"
