"""`--endpoint`: the commands on servers, compared with those on this machine; servers that come and go; errors."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, assert_error
from remote_engines import set_patience
from served import SEEDS, Served
from server_kinds import BUILD

ROWS = 100


def without_times(reply: dict[str, Any]) -> dict[str, Any]:
    """An object of `ask --json` without what depends on where it was generated."""
    return {key: value for key, value in reply.items() if key not in ("timings", "file", "cached_tokens", "model")}


def rows_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(output).read_text().splitlines()]


def assert_local_rows(remote: str, local: str, origins: set[tuple[str, str]]) -> None:
    """Check that a result of servers is that of a model on this machine, and besides names each of these servers."""
    rows = rows_of(remote)
    assert {(row.pop("server"), row.pop("served_model")) for row in rows} == origins
    assert [list(row.items()) for row in rows] == [list(row.items()) for row in rows_of(local)]


@pytest.mark.parametrize("votes", ["5", "auto:2..7"])
def test_endpoint_vote_has_the_local_tally_in_one_request(served: Served, votes: str) -> None:
    arguments = ("ask", "--json", "--votes", votes, "--seed", "1", "--no-log", "What is 2 + 2?")
    remote, local = served.run(*arguments, servers=2), served.run_alone(*arguments)
    served_name = "tiny.gguf (1000 bytes)"
    assert (remote.code, remote.err) == (0, f"note: the server answers with {served_name}\n")
    assert remote.object["model"] == served_name
    assert without_times(remote.object) == without_times(local.object)
    first, *more = served.asked()
    assert first["n_cmpl"] == int(votes.removeprefix("auto:")[0]) and bool(more) == votes.startswith("auto")
    assert 0 in [len(server.completions()) for server in served.servers]


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--parallel", "2"), ("--votes", "auto:2..5")])
def test_endpoint_batch_writes_the_local_result(served: Served, options: tuple[str, ...]) -> None:
    questions = served.questions(12)
    arguments: tuple[str | Path, ...] = (questions, "--seed", "7", "-q", *options)
    remote = served.run("batch", *arguments, "-o", "remote.jsonl", servers=2)
    local = served.run_alone("batch", *arguments, "-o", "local.jsonl")
    assert (remote.code, remote.err, local.code) == (0, "", 0)
    weights = "tiny.gguf (1000 bytes)"
    assert_local_rows("remote.jsonl", "local.jsonl", {("server 1", weights), ("server 2", weights)})
    for row in rows_of("remote.jsonl"):
        asked = served.servers[int(row["server"][-1]) - 1].completions()
        assert any(f"{row['prompt']}<" in bytes(each.prompt).decode() for each in asked)
    record = Path("remote.jsonl.meta.json").read_text()
    assert json.loads(record)["notes"]["servers"] == [
        {"kind": "llama-server", "build": BUILD, "model": "tiny.gguf (1000 bytes)"}
    ]
    assert "127.0.0.1" not in record and "/srv" not in record


# Several servers that come and go.


def assert_all_answered(output: Path) -> None:
    """Check that a result has every row once, with its seed and the reply to it."""
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["id"], row["seed"], row["error"]) for row in rows] == [(n + 1, n + 7, None) for n in range(ROWS)]
    assert [row["text"] for row in rows] == [SEEDS[(n + 7) % 3] for n in range(ROWS)]


@pytest.mark.slow
def test_endpoint_batch_resumes_on_servers_of_its_model_only(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = served.servers
    command = (served.questions(ROWS), "--seed", "7", "-o", "out.jsonl")
    with monkeypatch.context() as hasty:
        set_patience(hasty, GIVE_UP_S=2.0)
        for server in served.servers:
            server.arm(times=None, let_through=5, status=500)
            server.arm(path="/v1/models", times=None, let_through=1, reset_after=0)
        done = served.run("batch", *command, servers=2)
    assert_error(done, 7, "no server answers", first.url, second.url, "run the same command again")
    for server in served.servers:
        server.disarm()
    finished, asked = Path("out.jsonl.partial").read_bytes(), len(served.asked())
    second.models = ("other.gguf",)
    done = served.run("batch", *command, servers=2)
    problem = f"{second.url} serves other.gguf (1000 bytes) on llama-server instead of tiny.gguf"
    assert_error(done, 1, problem, "--restart")
    assert Path("out.jsonl.partial").read_bytes() == finished
    second.models = first.models
    path = Path("out.jsonl.meta.json")
    record = json.loads(path.read_text())
    earlier = {"servers": [{"kind": "vLLM", "build": "1", "model": "x"}]}
    path.write_text(json.dumps({**record, "notes": {**record["notes"], **earlier}}))
    assert_error(served.run("batch", *command), 1, "on llama-server instead of x on vLLM")
    path.write_text(json.dumps(record))
    assert served.run("batch", *command, "-q", servers=2).code == 0
    assert len(served.asked()) - asked == ROWS - 2 * 5  # those that were let through
    assert_all_answered(Path("out.jsonl"))


# Errors: an exit code, one line for the problem, one for the fix.


def test_endpoint_prompt_too_long_exits_4_or_is_an_error_row(served: Served) -> None:
    served.servers[0].context_size = 90
    assert_error(served.run("ask", "x" * 200), 4)
    questions = served.home / "in.txt"
    questions.write_text(f"{'x' * 200}\nShort?\n")
    done = served.run("batch", questions, "-q", "-o", "-")
    rows = {row["prompt"][0]: row for row in map(json.loads, done.out.splitlines())}
    assert done.code == 6
    assert (rows["x"]["error"]["type"], rows["S"]["error"]) == ("context_length_exceeded", None)


def test_endpoint_results_name_servers_without_their_addresses(served: Served) -> None:
    first, second = served.servers
    served.config(f'[endpoints.big]\nurl = "{first.url}"\n')
    for server in served.servers:
        server.arm(times=1, status=400, message="the prompt exceeds the available context size")
        server.arm(times=3, status=500, let_through=8)
    endpoints = ("--endpoint", "big", "--endpoint", second.url)
    done = served.run_alone("batch", served.questions(12), "-o", "out.jsonl", *endpoints)
    assert done.code == 6
    result = Path("out.jsonl").read_text()
    failed = [row for row in map(json.loads, result.splitlines()) if row["error"]]
    assert {row["error"]["message"].partition(":")[0] for row in failed} >= {"big", "server 2"}
    assert {row["server"] for row in failed} == {"big", "server 2"}
    assert "127.0.0.1" not in result + Path("out.jsonl.meta.json").read_text()


def test_endpoint_reply_of_a_lost_server_is_printed_and_can_be_continued(served: Served) -> None:
    served.servers[0].arm(edit=lambda at, chunk: b"data: {\n\n" if "4" in str(chunk.get("content")) else chunk)
    done = served.run("ask", "--seed", "0", "What is 2 + 2?")
    assert done.out == "The answer is\n"
    saved = (
        f"the answer so far is saved; resume it with /continue in cerebrum chat -c --endpoint {served.servers[0].url}"
    )
    assert_error(done, 1, "the reply is not JSON: {", saved)
    served.servers[0].disarm()
    assert served.run("chat", "-c", "--seed", "0", piped=b"/continue\n").code == 0
    assert CommandLine(served.home).contents("what-is-2-2") == ["What is 2 + 2?", "The answer is 4."]
