"""The library: `open_model` and its replies; the examples of its page run as printed, also beside an event loop."""

import asyncio
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import ROOT, environment_of, start_python
from installations import model_on
from scripted_command import backend_for
from server_kinds import LlamaServer
from templates import chosen_format
from vocabularies import open_vocabulary

import cerebrum_cli
from cerebrum_cli import CerebrumError, Conversation, Model, Reply, open_model
from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.errors import ModelNotFound, NoAnswer, PromptTooLong, UsageError
from cerebrum_cli.core.events import RefusedEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.library.installed import NANO
from cerebrum_cli.replies.concurrent_rows import run_rows
from cerebrum_cli.replies.interface import Question
from cerebrum_cli.replies.majority_vote import Outcome, Row

TEXT = "".join(
    (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in ("ask", "batch", "votes", "decide")
)
EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
SUM, ANSWER = "What is 12 plus 30?", "12 plus 30 makes 42. The answer is 42."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    home = tmp_path_factory.mktemp("library")
    with environment_of({"HOME": str(home), "PATH": ""}), open_model("nano", threads=1) as model:
        yield model


def runnable(example: str) -> str:
    return example.replace("qwen2.5-coder-1.5b", "nano").replace("cerebrum-7b", "nano")


@pytest.mark.parametrize("beside_a_loop", [False, True])
def test_library_examples_run_as_printed(model: Model, beside_a_loop: bool, capsys: pytest.CaptureFixture[str]) -> None:
    run = [each for each in EXAMPLES if "localhost" not in each and not (beside_a_loop and "asyncio.run" in each)]

    def run_examples() -> list[str]:
        printed = []
        for example in run:
            exec(runnable(example), {"open_model": open_model, "model": model})
            printed.append(capsys.readouterr().out.strip())
        return printed

    async def main() -> list[str]:
        return run_examples()

    assert len(run) == len(EXAMPLES) - 1 - beside_a_loop
    assert all(asyncio.run(main()) if beside_a_loop else run_examples())


def test_library_uses_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [example] = [example for example in EXAMPLES if "localhost" in example]
    with open_vocabulary(NANO) as vocabulary:
        reply = iter(vocabulary.tokenize([]) or ())
        [end] = vocabulary.special_token_ids([vocabulary.special_token_text("eos")])
        with (
            LlamaServer(lambda held, seed: next(reply, end), vocabulary=vocabulary, context_size=512) as server,
            environment_of({"HOME": str(tmp_path), "PATH": ""}),
        ):
            exec(runnable(example).replace("http://localhost:8080", server.url), {"open_model": open_model})
            assert server.completions()
    assert capsys.readouterr().out == "\n"


def test_library_reply_is_iterated_or_read(model: Model) -> None:
    reply = model.reply(SUM)
    assert "".join(reply) == reply.text == ANSWER
    read = model.reply(SUM)
    assert (read.text, read.final_answer, read.finish_reason, read.reasoning) == (ANSWER, "42", "stop", None)
    assert read.usage.completion_tokens == len(read.sampled) and list(read) == []
    again = model.reply(read.conversation.user("What is 5 plus 6?"))
    assert again.final_answer == "11"
    assert again.usage.cached_tokens >= read.usage.prompt_tokens  # the first turn is not evaluated again


def test_library_reply_that_is_left_frees_its_slot(model: Model) -> None:
    reply = model.reply(SUM)
    for _ in reply:
        break
    assert ANSWER.startswith(reply.text) and reply.finish_reason == "cancelled"
    assert model.reply(SUM).text == ANSWER


def test_library_answers_many_questions_as_they_finish(model: Model) -> None:
    numbers = range(3, 40)
    replies = list(model.replies(f"What is {number} plus 2?" for number in numbers))
    assert sorted(reply.index for reply in replies) == list(range(len(numbers)))
    votes = list(model.replies([SUM, "What is 3 plus 4?"], samples=3, seed=2))
    assert {vote.index: vote.final_answer for vote in votes} == {0: "42", 1: "7"}
    vote = model.vote(SUM, 3, seed=2)
    for reply in (replies[0], vote.reply):
        assert isinstance(reply, Reply)
        assert model.reply(reply.conversation.user(SUM)).text
    malformed = [{"role": "bogus", "content": "?"}]
    refusals: list[tuple[Question, type[Exception]]] = [("x" * 100_000, PromptTooLong), (malformed, UsageError)]
    for invalid, error in refusals:
        answered = []
        with pytest.raises(error):  # once all others are answered
            for reply in model.replies([SUM, invalid, SUM]):
                answered.append(reply.index)
        assert sorted(answered) == [0, 2]


def test_library_checks_samples_with_programs(model: Model) -> None:
    vote = model.vote(SUM, 3, check="python", seed=2)
    assert vote.final_answer == "42" and not any(count.is_checked for count in vote.tally.counts)
    assert {reply.program and reply.program.output for reply in vote.replies.values()} == {None}


def test_library_refuses_votes_at_a_chosen_temperature_0() -> None:
    with open_model("nano", temperature=0) as cold:
        with pytest.raises(UsageError, match="a vote needs a temperature above 0"):
            cold.vote(SUM, 3)
        assert len(cold.vote(SUM, 2, temperature=0.5, max_tokens=1).replies) == 2


def test_library_raises_for_an_answer_that_its_schema_does_not_accept(model: Model) -> None:
    no_day = {"const": "2025-02-29T00:00:00Z", "format": "date-time"}  # checked only once it is complete
    reply = model.reply(SUM, schema=no_day)
    with pytest.raises(NoAnswer, match="does not match the schema: '2025-02-29T00:00:00Z' is not a "):
        list(reply)
    assert (reply.text, reply.is_finished) == ('"2025-02-29T00:00:00Z"', True)
    for samples in (None, 2):
        with pytest.raises(NoAnswer, match="is not a 'date-time'"):
            list(model.replies([SUM], samples, schema=no_day))
    assert model.reply(SUM, schema={"const": 1}).text == "1"


REFUSED: list[tuple[Callable[[Model], object], type[CerebrumError], str]] = [
    (lambda model: model.reply(SUM, temprature=1), UsageError, "unknown setting 'temprature'"),
    (lambda model: model.reply(SUM, temperature="hot"), UsageError, "invalid temperature: 'hot'"),
    (lambda model: model.reply(SUM, ctx=512), UsageError, "ctx is set when a model is opened"),
    (lambda model: model.reply(SUM, schema={}, grammar="root"), UsageError, "schema and grammar"),
    *((lambda model, no=no: model.reply(SUM, grammar=no), UsageError, "invalid grammar") for no in (5, ["root"], b"a")),
    (lambda model: model.reply(None), UsageError, "messages has no messages"),  # type: ignore[arg-type]
    (lambda model: model.reply([{"role": "system", "content": "S"}]), UsageError, "no question to answer"),
    (lambda model: model.reply("x" * 100_000).wait(), PromptTooLong, "the prompt has "),
    (lambda model: model.vote(SUM, 3, temperature=0), UsageError, "a vote needs a temperature above 0"),
    (lambda model: list(model.replies([SUM], check="python")), UsageError, "programs check only votes"),
    (lambda model: open_model("missing"), ModelNotFound, "missing"),
    (lambda model: open_model("nano", foo=1), UsageError, "unknown setting 'foo'"),
    (lambda model: open_model("nano", parallel=0), UsageError, "invalid parallel: 0"),
]


@pytest.mark.parametrize(("use", "error", "problem"), REFUSED)
def test_library_refuses(
    model: Model, use: Callable[[Model], object], error: type[CerebrumError], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        use(model)
    assert model.reply(Conversation(system_prompt="S").user(SUM)).text  # it still works


def test_library_lets_an_event_loop_run_on(model: Model) -> None:
    async def read() -> str:
        return "".join([piece async for piece in model.reply(SUM)])

    async def main() -> tuple[str, int]:
        reading, ticks = asyncio.create_task(read()), 0
        while not reading.done():
            ticks += 1
            await asyncio.sleep(0)
        return reading.result(), ticks

    text, ticks = asyncio.run(main())
    assert text == ANSWER and ticks > 10


def test_library_cancelled_task_ends_a_reply_that_still_reasons() -> None:
    async def read(reply: Reply) -> None:
        async for _ in reply:
            pass

    async def read_in_part(reply: Reply) -> None:
        task = asyncio.create_task(read(reply))
        while not reply.sampled:
            await asyncio.sleep(0)
        task.cancel()
        await task

    backend = backend_for({"reply": "[THINK]" + "t" * 50_000}, 1)
    with model_on(LocalEngine(backend.open), chosen_format("chatml")) as model:
        reply = model.reply(SUM, loop_check=False)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(read_in_part(reply))
        assert (reply.finish_reason, reply.text) == ("cancelled", "")
        assert 0 < len(reply.sampled) < 25_000


INTERRUPTED = """
import signal, sys
from cerebrum_cli import open_model
with open_model("nano", threads=1) as model:
    list(model.reply("What is 1 plus 1?"))
    try:
        for piece in model.reply("What is 12 plus 30?"):
            print("piece", flush=True)
            sys.stdin.readline()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    print(model.reply("What is 12 plus 30?").text)
"""


@pytest.mark.slow
def test_library_ctrl_c_ends_a_reply_and_not_the_model(tmp_path: Path) -> None:
    process = start_python(INTERRUPTED, home=tmp_path)
    assert process.stdout and process.stdout.readline() == "piece\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == (f"interrupted\n{ANSWER}\n", "", 0)


FORKED = """
import faulthandler, os, sys
from cerebrum_cli import CerebrumError, open_model

model = open_model("nano", threads=1)
running = iter(model.reply("Hi", grammar="root ::= [a-z ] root", max_tokens=500))
next(running)
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
    print(len("".join(running)) > 100)
    sys.exit()
faulthandler.dump_traceback_later(20, exit=True)
for use in (lambda: list(running), lambda: model.reply("Hi").text, lambda: model.score("a", ["b"])):
    try:
        use()
        sys.exit("no error")
    except CerebrumError as error:
        assert "before a fork" in error.message, error
model.close()
sys.exit()
"""


def test_library_model_is_refused_in_a_forked_process(tmp_path: Path) -> None:
    with start_python(FORKED, home=tmp_path) as program:
        out, err = program.communicate()
    assert (program.returncode, out) == (0, "True\n"), err


def test_library_token_of_another_model_refuses_one_row(model: Model) -> None:
    question = Conversation().user(SUM)
    rows = [Row(0, Ask(question, Settings(), prefix_tokens=(10**6,))), Row(1, Ask(question, Settings()))]
    results = {event.row.key: event.result for event in run_rows(model, rows) if isinstance(event, Outcome)}
    refused, reply = results[0], results[1]
    assert isinstance(refused, RefusedEvent) and "token 1000000 is not in this model" in refused.error.message
    assert isinstance(reply, Reply) and reply.text == ANSWER


def test_library_has_the_names_it_lists() -> None:
    assert all(getattr(cerebrum_cli, name).__doc__ for name in cerebrum_cli.__all__)
    with pytest.raises(ImportError, match="cannot import name 'missing'"):
        exec("from cerebrum_cli import missing")
