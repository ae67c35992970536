"""The Hub of the tests is one to the real client, `huggingface_hub`, in a process that knows no other."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hub_exchange import Fault, Refusal, Step
from hub_server import RATE_LIMITED, SERVER_ERROR, HubServer

pytestmark = pytest.mark.slow

READER, OTHER, UNKNOWN = "hf_reader", "hf_other", "hf_unknown"
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
    with HubServer(tokens=(READER, OTHER)) as server:
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

    def begin(self, name: str, **arguments: Any) -> None:
        """Have a function called."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps([name, arguments]).encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, name: str, **arguments: Any) -> Any:
        """Return what a function says, or the name of what it raises."""
        self.begin(name, **arguments)
        assert self.process.stdout
        assert select.select([self.process.stdout], [], [], 30)[0], f"{name} is silent"
        return json.loads(self.process.stdout.readline())

    def download(self, filename: str = "model.gguf", **arguments: Any) -> str:
        """Return the path of a downloaded file of owner/model."""
        path = self.ask("hf_hub_download", repo_id="owner/model", filename=filename, **arguments)
        assert isinstance(path, str)
        return path


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


def test_hub_model_info_has_names_only_by_default(client: Client) -> None:
    info = client.ask("model_info", repo_id="owner/model")
    assert info["siblings"][1] == {"rfilename": "model.gguf", "size": None, "blob_id": None, "lfs": None}


def test_hub_lists_a_tree_in_pages(hub: HubServer, client: Client) -> None:
    hub.page_size = 2
    tree = client.ask("list_repo_tree", repo_id="owner/model", recursive=True)
    assert [row["path"] for row in tree] == [
        "README.md",
        "model.gguf",
        "more",
        "more/parts",
        "more/parts/model-2.gguf",
    ]
    assert tree[4]["size"] == 1000
    assert tree[4]["lfs"]["sha256"] == hashlib.sha256(MODEL[:1000]).hexdigest()
    assert "tree_id" in tree[3]
    assert len(hub.log.requests("api")) == 3


def test_hub_lists_a_tree_without_recursion(client: Client) -> None:
    tree = client.ask("list_repo_tree", repo_id="owner/model")
    assert [row["path"] for row in tree] == ["README.md", "model.gguf", "more"]


def test_hf_download_stores_the_file_in_the_cache(hub: HubServer, client: Client) -> None:
    path = Path(client.download("more/parts/model-2.gguf"))
    commit = hub.repositories["owner/model"].branches["main"].hash
    assert path.read_bytes() == MODEL[:1000]
    assert path.resolve().name == hashlib.sha256(MODEL[:1000]).hexdigest()
    assert [(each.part, each.method, each.status) for each in hub.log.requests()] == [
        ("resolve", "HEAD", 302),
        ("cdn", "GET", 200),
    ]
    assert hub.log.requests("cdn")[0].sent == 1000
    [repository] = client.ask("scan_cache_dir")["repos"]
    assert (repository["repo_id"], repository["size_on_disk"]) == ("owner/model", 1000)
    assert [revision["commit_hash"] for revision in repository["revisions"]] == [commit]


def test_hub_serves_small_files_itself(hub: HubServer, client: Client) -> None:
    path = Path(client.download("README.md"))
    assert path.read_bytes() == b"# Model\n"
    assert path.resolve().name == hashlib.sha1(b"blob 8\0# Model\n").hexdigest()
    assert not hub.log.requests("cdn")


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


def test_hub_keeps_old_commits_when_main_moves(hub: HubServer, client: Client) -> None:
    repository = hub.repositories["owner/model"]
    old = repository.branches["main"].hash
    new = repository.commit({"README.md": b"# Better\n", "more/parts/model-2.gguf": None})
    assert client.ask("model_info", repo_id="owner/model")["sha"] == new
    assert [each["rfilename"] for each in client.ask("model_info", repo_id="owner/model")["siblings"]] == [
        "README.md",
        "model.gguf",
    ]
    assert Path(client.download("README.md")).read_bytes() == b"# Better\n"
    assert Path(client.download("README.md", revision=old)).read_bytes() == b"# Model\n"


def test_hub_branch_names_may_contain_a_slash(hub: HubServer, client: Client) -> None:
    hub.repositories["owner/model"].commit({"README.md": b"# Proposed\n"}, branch="refs/pr/1")
    assert Path(client.download("README.md", revision="refs/pr/1")).read_bytes() == b"# Proposed\n"
    assert Path(client.download("README.md")).read_bytes() == b"# Model\n"


def test_hub_commit_ids_depend_on_content_only() -> None:
    with HubServer() as one, HubServer() as other:
        commits = {hub.repository("owner/model", FILES).branches["main"].hash for hub in (one, other)}
    [commit] = commits
    assert len(commit) == 40


def test_hub_token_is_not_sent_to_the_cdn(hub: HubServer, client: Client) -> None:
    client.download(token=READER)
    [asked], [fetched] = hub.log.requests("resolve"), hub.log.requests("cdn")
    assert asked.token == READER
    assert fetched.authorization is None


def test_hub_cdn_rejects_unsigned_urls(hub: HubServer) -> None:
    response, _ = fetch(on_the_cdn(hub).partition("?")[0])
    assert response.status == 403


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (False, "RepositoryNotFoundError"),
        (OTHER, "RepositoryNotFoundError"),
        (UNKNOWN, "HfHubHTTPError"),
        (READER, "owner/private"),
    ],
)
def test_hub_private_repository_is_visible_to_readers(
    hub: HubServer, client: Client, token: str | bool, said: str
) -> None:
    hub.repository("owner/private", FILES, private=True, readers=(READER,))
    info = client.ask("model_info", repo_id="owner/private", token=token)
    assert (info if isinstance(info, str) else info["id"]) == said


@pytest.mark.parametrize(
    ("token", "said", "status"), [(False, "GatedRepoError", 401), (OTHER, "GatedRepoError", 403), (READER, "", 302)]
)
def test_hub_gated_repository_lists_files_but_restricts_downloads(
    hub: HubServer, client: Client, token: str | bool, said: str, status: int
) -> None:
    hub.repository("owner/gated", FILES, gated="manual", readers=(READER,))
    assert client.ask("model_info", repo_id="owner/gated", token=token)["gated"] == "manual"
    answer = client.ask("hf_hub_download", repo_id="owner/gated", filename="model.gguf", token=token)
    assert said in answer
    assert hub.log.requests("resolve")[0].status == status


def test_hub_missing_objects_have_error_codes(client: Client) -> None:
    def download(repo_id: str, filename: str, **arguments: Any) -> Any:
        return client.ask("hf_hub_download", repo_id=repo_id, filename=filename, **arguments)

    assert download("owner/missing", "model.gguf") == "RepositoryNotFoundError"
    assert download("owner/missing", "model.gguf", token=READER) == "RepositoryNotFoundError"
    assert download("owner/model", "modèle.gguf") == "RemoteEntryNotFoundError"
    assert download("owner/model", "model.gguf", revision="v7") == "RevisionNotFoundError"


def test_hub_rejects_an_unknown_token(hub: HubServer, client: Client) -> None:
    assert client.ask("model_info", repo_id="owner/model", token=UNKNOWN) == "HfHubHTTPError"
    assert [each.status for each in hub.log.requests()] == [401]


def test_hub_rate_limit_passes(hub: HubServer, client: Client) -> None:
    armed = hub.arm(Fault(part="api", path="/tree/", refusal=RATE_LIMITED.with_header("Retry-After", "0")))
    assert len(client.ask("list_repo_tree", repo_id="owner/model")) == 3
    assert armed.struck == 1
    assert [each.status for each in hub.log.requests("api")] == [429, 200]


def test_hub_server_error_passes(hub: HubServer, client: Client) -> None:
    hub.arm(Fault(part="resolve", refusal=SERVER_ERROR))
    assert Path(client.download()).read_bytes() == MODEL
    assert [each.status for each in hub.log.requests("resolve")] == [500, 302]


def test_hf_download_resumes_after_the_last_complete_chunk(hub: HubServer, client: Client) -> None:
    """The client reads chunks of 10 MiB and loses the one that it has a part of."""
    chunk = 10 * 1024 * 1024
    large = MODEL * 11
    hub.repositories["owner/model"].commit({"large.gguf": large})
    hub.arm(Fault(part="cdn", cut_after=chunk + 300_000))
    assert Path(client.download("large.gguf")).read_bytes() == large
    first, second = hub.log.requests("cdn")
    assert (first.status, first.sent, first.range) == (200, chunk + 300_000, None)
    assert (second.status, second.sent, second.range) == (206, len(large) - chunk, f"bytes={chunk}-")


def test_hf_download_restarts_without_range_support(hub: HubServer, client: Client) -> None:
    large = MODEL * 11
    hub.repositories["owner/model"].commit({"large.gguf": large})
    hub.arm(Fault(part="cdn", cut_after=len(large) - 1))
    hub.arm(Fault(part="cdn", ignore_range=True))
    assert Path(client.download("large.gguf")).read_bytes() == large
    first, second = hub.log.requests("cdn")
    assert (first.status, first.sent) == (200, len(large) - 1)
    assert (second.status, second.sent, second.range) == (200, len(large), "bytes=10485760-")


def test_hub_fault_alters_bytes(hub: HubServer, client: Client) -> None:
    hub.arm(Fault(part="cdn", flip_at=500_000))
    read = Path(client.download()).read_bytes()
    assert [at for at, (one, other) in enumerate(zip(read, MODEL, strict=True)) if one != other] == [500_000]


def test_hub_survives_a_killed_client(hub: HubServer, client: Client) -> None:
    hub.arm(Fault(part="cdn", bytes_per_second=1_000_000))
    client.begin("hf_hub_download", repo_id="owner/model", filename="model.gguf")
    hub.log.wait_for(lambda request: request.sent >= 100_000)
    client.process.kill()
    time.sleep(0.2)
    assert hub.log.requests("cdn")[0].sent < 500_000


def test_hub_environment_isolates_the_client(hub: HubServer, client: Client) -> None:
    client.download("README.md")
    assert not hub.log.requests("other")


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


def test_hub_if_range_of_another_file_sends_all(hub: HubServer) -> None:
    response, body = fetch(on_the_cdn(hub), **{"Range": "bytes=1000-", "If-Range": '"another"'})
    assert (response.status, len(body)) == (200, len(MODEL))


def test_hub_fault_occurs_the_given_number_of_times(hub: HubServer) -> None:
    page = f"{hub.url}/api/models/owner/model"
    armed = hub.arm(Fault(part="api", times=2, let_through=1, method="GET", refusal=SERVER_ERROR))
    assert [fetch(page, method="HEAD")[0].status for _ in range(2)] == [200, 200]
    assert [fetch(page)[0].status for _ in range(4)] == [200, 500, 500, 200]
    assert armed.struck == 2


def test_hub_fault_without_a_count_lasts_until_disarmed(hub: HubServer) -> None:
    page = f"{hub.url}/api/models/owner/model"
    armed = hub.arm(Fault(part="api", times=None, refusal=Refusal(403, "Not you.")))
    assert [fetch(page)[0].status for _ in range(3)] == [403, 403, 403]
    armed.disarm()
    assert fetch(page)[0].status == 200


@pytest.mark.parametrize(("after", "sent"), [("request", 0), (0, 0), (700_000, 700_000)])
def test_hub_response_hangs_until_released(hub: HubServer, after: Any, sent: int) -> None:
    place = on_the_cdn(hub)
    armed = hub.arm(Fault(part="cdn", hang_after=after))
    bodies: list[bytes] = []
    reading = threading.Thread(target=lambda: bodies.append(fetch(place)[1]))
    reading.start()
    request = hub.log.wait_for(lambda request: request.part == "cdn" and request.sent == sent)
    time.sleep(0.1)
    assert request == hub.log.requests("cdn")[0] or after == 0
    assert bodies == []
    armed.release()
    reading.join()
    assert bodies == [MODEL]


def test_hub_fault_closes_the_connection(hub: HubServer) -> None:
    hub.arm(Fault(part="api", cut_after="request"))
    with pytest.raises(http.client.RemoteDisconnected):
        fetch(f"{hub.url}/api/models/owner/model")


def test_hub_fault_resets_the_connection(hub: HubServer) -> None:
    place = on_the_cdn(hub)
    hub.arm(Fault(part="cdn", cut_after=10, reset=True))
    with pytest.raises(ConnectionResetError):
        fetch(place)


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
