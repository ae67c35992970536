"""The Hub of the tests: what the real client, `huggingface_hub`, sees of it, and its faults.

The tests of `pull` cover tokens, commits, refusals and downloads that are resumed.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hub_exchange import Fault, Step
from hub_server import SERVER_ERROR, HubServer

pytestmark = pytest.mark.slow

MODEL = bytes(range(256)) * 4096  # 1 MiB
FILES = {"README.md": b"# Model\n", "model.gguf": MODEL, "more/parts/model-2.gguf": MODEL[:1000]}

# Calls functions of huggingface_hub by their names and says as JSON what each returned or raised, a line for a line.
CLIENT = """
import json, sys
import huggingface_hub
for line in sys.stdin:
    name, arguments = json.loads(line)
    try:
        said = getattr(huggingface_hub, name)(**arguments)
        said = list(said) if hasattr(said, "__next__") else said
    except Exception as error:
        said = type(error).__name__
    plain = lambda each: list(each) if isinstance(each, frozenset) else getattr(each, "__dict__", None) or str(each)
    print(json.dumps(said, default=plain), flush=True)
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.repository("owner/model", FILES)
        yield server


class Client:
    """A process with `huggingface_hub`, for a user whose cache lies in `home`."""

    def __init__(self, hub: HubServer, home: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            env={**inherited, **hub.environment(home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def ask(self, name: str, **arguments: Any) -> Any:
        """Return what a function says, or the name of what it raises."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([name, arguments]).encode() + b"\n")
        self.process.stdin.flush()
        assert select.select([self.process.stdout], [], [], 30)[0], f"{name} is silent"
        return json.loads(self.process.stdout.readline())


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Iterator[Client]:
    each = Client(hub, tmp_path)
    with each.process:
        yield each
        each.process.kill()


def fetch(url: str, *, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    """Return an answer and its body, of one request on a connection of its own."""
    place = urlsplit(url)
    with closing(http.client.HTTPConnection(place.netloc, timeout=10)) as connection:
        connection.request(method, f"{place.path}?{place.query}", headers=headers)
        response = connection.getresponse()
        return response, response.read()


def on_the_cdn(hub: HubServer, filename: str = "model.gguf") -> str:
    """Return where the Hub sends those who ask for a file."""
    response, _ = fetch(f"{hub.url}/owner/model/resolve/main/{filename}")
    return response.headers["Location"]


def test_hub_model_info_has_sizes_and_digests(hub: HubServer, client: Client) -> None:
    info = client.ask("model_info", repo_id="owner/model", files_metadata=True)
    assert info["sha"] == hub.repositories["owner/model"].branches["main"].hash
    assert info["card_data"]["license"] == "apache-2.0"
    assert (info["private"], info["gated"]) == (False, False)
    readme, model, _ = info["siblings"]
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 1048576\n"
    written = pointer % hashlib.sha256(MODEL).hexdigest().encode()
    assert readme == {
        "rfilename": "README.md",
        "size": 8,
        "blob_id": hashlib.sha1(b"blob 8\0# Model\n").hexdigest(),
        "lfs": None,
    }
    assert model == {
        "rfilename": "model.gguf",
        "size": len(MODEL),
        "blob_id": hashlib.sha1(b"blob %d\0%s" % (len(written), written)).hexdigest(),
        "lfs": {"size": len(MODEL), "sha256": hashlib.sha256(MODEL).hexdigest(), "pointer_size": len(written)},
    }


def test_hf_download_stores_the_file_in_the_cache(hub: HubServer, client: Client) -> None:
    path = Path(client.ask("hf_hub_download", repo_id="owner/model", filename="more/parts/model-2.gguf"))
    commit = hub.repositories["owner/model"].branches["main"].hash
    assert path.read_bytes() == MODEL[:1000]
    assert path.resolve().name == hashlib.sha256(MODEL[:1000]).hexdigest()
    assert [(each.part, each.method, each.status) for each in hub.log.requests()] == [
        ("resolve", "HEAD", 302),
        ("cdn", "GET", 200),
    ]
    assert hub.log.requests("cdn")[0].sent == 1000
    assert not hub.log.requests("other")
    [repository] = client.ask("scan_cache_dir")["repos"]
    assert (repository["repo_id"], repository["size_on_disk"]) == ("owner/model", 1000)
    assert [revision["commit_hash"] for revision in repository["revisions"]] == [commit]


def test_hub_serves_files_from_disk(hub: HubServer, tmp_path: Path) -> None:
    on_disk = tmp_path / "model.gguf"
    on_disk.write_bytes(MODEL)
    in_memory = hub.repositories["owner/model"].branches["main"].files["model.gguf"]
    hub.repository("owner/model", {"model.gguf": on_disk})
    read = hub.repositories["owner/model"].branches["main"].files["model.gguf"]
    assert (read.size, read.sha256, read.blob_id) == (in_memory.size, in_memory.sha256, in_memory.blob_id)
    assert fetch(on_the_cdn(hub))[1] == MODEL
    hub.arm(Fault(part="cdn", flip_at=0))
    assert fetch(on_the_cdn(hub), Range="bytes=0-1")[1] == b"\xff\x01"


def test_hub_commit_ids_depend_on_content_only() -> None:
    with HubServer() as one, HubServer() as other:
        commits = {hub.repository("owner/model", FILES).branches["main"].hash for hub in (one, other)}
    [commit] = commits
    assert len(commit) == 40


def test_hub_cdn_rejects_unsigned_urls(hub: HubServer) -> None:
    response, _ = fetch(on_the_cdn(hub).partition("?")[0])
    assert response.status == 403


@pytest.mark.parametrize(
    ("asked", "status", "within", "start", "stop"),
    [
        ("bytes=0-", 206, "bytes 0-1048575/1048576", 0, 1048576),
        ("bytes=1000-1999", 206, "bytes 1000-1999/1048576", 1000, 2000),
        ("bytes=1048000-9999999", 206, "bytes 1048000-1048575/1048576", 1048000, 1048576),
        ("bytes=-10", 206, "bytes 1048566-1048575/1048576", 1048566, 1048576),
        ("bytes=0-1,5-6", 200, None, 0, 1048576),
        ("lines=1-2", 200, None, 0, 1048576),
    ],
)
def test_hub_serves_a_range(hub: HubServer, asked: str, status: int, within: str | None, start: int, stop: int) -> None:
    response, body = fetch(on_the_cdn(hub), Range=asked)
    assert (response.status, response.headers["Content-Range"]) == (status, within)
    assert body == MODEL[start:stop]
    head, nothing = fetch(on_the_cdn(hub), method="HEAD", Range=asked)
    assert (head.status, head.headers["Content-Length"], nothing) == (status, str(stop - start), b"")


def test_hub_rejects_a_range_beyond_the_end(hub: HubServer) -> None:
    response, _ = fetch(on_the_cdn(hub), Range="bytes=1048576-")
    assert (response.status, response.headers["Content-Range"]) == (416, "bytes */1048576")


def test_hub_fault_occurs_the_given_number_of_times(hub: HubServer) -> None:
    page = f"{hub.url}/api/models/owner/model"
    armed = hub.arm(Fault(part="api", times=2, let_through=1, method="GET", refusal=SERVER_ERROR))
    assert [fetch(page, method="HEAD")[0].status for _ in range(2)] == [200, 200]
    assert [fetch(page)[0].status for _ in range(4)] == [200, 500, 500, 200]
    assert armed.struck == 2


@pytest.mark.parametrize(
    ("fault", "steps"),
    [
        (Fault(part="cdn"), [("send", 10, 50)]),
        (Fault(part="cdn", flip_at=10), [("flip", 10, 11), ("send", 11, 50)]),
        (Fault(part="cdn", flip_at=49), [("send", 10, 49), ("flip", 49, 50)]),
        (Fault(part="cdn", flip_at=50), [("send", 10, 50)]),
        (Fault(part="cdn", cut_after=0), [("cut", 10, 10)]),
        (Fault(part="cdn", cut_after=100), [("send", 10, 50), ("cut", 50, 50)]),
        (Fault(part="cdn", hang_after=0), [("hang", 10, 10), ("send", 10, 50)]),
        (Fault(part="cdn", hang_after=5, cut_after=5), [("send", 10, 15), ("hang", 15, 15), ("cut", 15, 15)]),
    ],
)
def test_hub_fault_sets_how_bytes_are_sent(fault: Fault, steps: list[Step]) -> None:
    assert list(fault.steps(10, 50)) == steps


def test_hub_close_ends_all_threads() -> None:
    before = threading.enumerate()
    with HubServer() as hub:
        hub.repository("owner/model", FILES)
        hub.arm(Fault(part="api", hang_after="request"))
        idle, waiting = (http.client.HTTPConnection(urlsplit(hub.url).netloc) for _ in range(2))
        idle.connect()
        waiting.request("GET", "/api/models/owner/model")
        hub.log.wait_for(lambda request: request.part == "api")
    assert threading.enumerate() == before
    idle.close()
    waiting.close()


def test_hub_reports_its_own_bugs(tmp_path: Path) -> None:
    vanishing = tmp_path / "model.gguf"
    vanishing.write_bytes(MODEL)
    with pytest.raises(FileNotFoundError), HubServer() as hub:
        hub.repository("owner/model", {"model.gguf": vanishing})
        place = on_the_cdn(hub)
        vanishing.unlink()
        with pytest.raises(http.client.IncompleteRead):
            fetch(place)
