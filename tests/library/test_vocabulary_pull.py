"""`cerebrum pull --vocabulary` downloads a model's header alone, from which llama.cpp reads the vocabulary."""

from pathlib import Path

import pytest
from gguf_files import write_model
from hub_server import UNAVAILABLE, Fault
from hub_user import OFFLINE, HubUser, cleaned
from vocabularies import open_vocabulary

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.gguf.header import parse_tables

REPO, FILE = "owner/large", "large-Q4_K_M.gguf"
REFERENCE = f"{REPO}:Q4_K_M"
NOT_HERE = f"error: {REFERENCE} is not downloaded\n hint: cerebrum pull {REFERENCE}\n"
DISABLED = f"error: {REPO} is not downloaded, and the network is disabled\n"
TEXT = "Hello world,\n 12 + 3 = 15: é \U0001f600 <s>"


@pytest.fixture(autouse=True)
def repository(hub_user: HubUser, mistral_model: Path) -> None:
    hub_user.hub.repository(REPO, {FILE: mistral_model})


def stored(hub_user: HubUser) -> Path:
    return hub_user.command.home / "data" / "cerebrum" / "models" / "vocabularies"


def blobs(hub_user: HubUser) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in stored(hub_user).glob("*/blobs/*")}


def path_of(hub_user: HubUser, file: str = FILE, repo_id: str = REPO) -> Path:
    return stored(hub_user) / hub_user.path(file, repo_id).relative_to(hub_user.cache)


def pulled(hub_user: HubUser) -> str:
    return f"installed the vocabulary of {REFERENCE}: {path_of(hub_user)}\n"


def tokens(path: Path) -> tuple[int, ...]:
    with open_vocabulary(path) as backend:
        return tuple(backend.tokenize([Text(TEXT), Text(TEXT, trusted=False)]))


def ranges(hub_user: HubUser) -> list[str | None]:
    return [each.range for each in hub_user.hub.log.requests("cdn")]


@pytest.mark.slow
def test_vocabulary_pull_fetches_the_header_alone(hub_user: HubUser, mistral_model: Path) -> None:
    assert hub_user.pull("--vocabulary", REPO).err == pulled(hub_user)
    assert ranges(hub_user) == ["bytes=0-1048575"]
    path, whole = path_of(hub_user), mistral_model.read_bytes()
    length = parse_tables(mistral_model, whole, len(whole)).length
    assert path.read_bytes() == whole[:length] + bytes(len(whole) - length)
    assert path.stat().st_blocks * 512 < length + 65_536
    assert blobs(hub_user) == {hub_user.digest(FILE, REPO): len(whole)}
    assert tokens(path) == tokens(mistral_model)


def test_vocabulary_is_no_installed_model(hub_user: HubUser) -> None:
    hub_user.pull("--vocabulary", REPO)
    assert hub_user.listed() == []
    assert f"vocabulary only, for --endpoint: {REFERENCE}\n" in hub_user.run("list").err
    done = hub_user.run("ask", "-m", REFERENCE, "Why?")
    assert (done.code, done.out, done.err) == (3, "", NOT_HERE)
    assert hub_user.run("ask", "Why?").code == 3
    env = {"_CEREBRUM_COMPLETE": "complete_bash", "COMP_WORDS": "cerebrum rm o", "COMP_CWORD": "2"}
    assert hub_user.run(**env).out.split() == [REFERENCE]
    shown = hub_user.run("show", REPO, "--json").object
    assert (shown["source"], shown["path"]) == ("vocabulary", str(path_of(hub_user)))
    assert (shown["sha256"], shown["repo_id"]) == (hub_user.digest(FILE, REPO), REPO)
    assert (shown["revision"], shown["default"]) == (hub_user.commit(REPO), False)
    assert hub_user.run("show", REPO).err == (
        f"only its vocabulary is installed, for --endpoint; {REPO} is not downloaded;"
        f" to install it: cerebrum pull {REPO}\n"
    )


def test_vocabulary_pull_of_an_installed_model_needs_no_hub(hub_user: HubUser) -> None:
    hub_user.pull(REPO)
    hub_user.hub.log.clear()
    done = hub_user.pull("--vocabulary", REPO)
    assert done.err == f"the vocabulary is part of the installed {REFERENCE}: {hub_user.path(FILE, REPO)}\n"
    assert not hub_user.hub.log.requests()


@pytest.mark.slow
def test_rm_deletes_a_vocabulary_after_the_model(hub_user: HubUser) -> None:
    hub_user.pull(REPO)
    hub_user.hub.repositories[REPO].commit({"large-Q2_K.gguf": hub_user.path(FILE, REPO)})
    hub_user.pull("--vocabulary", f"{REPO}:Q2_K")
    assert hub_user.run("rm", "-y", REPO).err.startswith(f"deleted {REFERENCE}, freed 9 MB")
    assert len(blobs(hub_user)) == 1
    assert hub_user.run("rm", REPO).err == f"{REPO}:Q2_K not deleted; confirm with -y\n"
    assert hub_user.run("rm", "-y", REPO).err == f"deleted the vocabulary of {REPO}:Q2_K\n"
    assert blobs(hub_user) == {}
    assert hub_user.run("rm", "-y", REPO).code == 3


@pytest.mark.slow
def test_vocabulary_pull_fetches_as_much_as_the_header_needs(hub_user: HubUser, tmp_path: Path) -> None:
    words = [f"word number {number:06}" for number in range(150_000)]
    model = write_model(tmp_path / "words.gguf", lambda writer: writer.add_token_list(words))
    size = model.stat().st_size
    hub_user.hub.repository("owner/words", {"words-F32.gguf": model})
    hub_user.pull("--vocabulary", "owner/words")
    assert ranges(hub_user) == ["bytes=0-1048575", f"bytes=1048576-{min(1 << 22, size) - 1}"]
    assert path_of(hub_user, "words-F32.gguf", "owner/words").stat().st_size == size


def test_vocabulary_pull_retries_and_works_without_range_support(hub_user: HubUser, mistral_model: Path) -> None:
    hub_user.hub.arm(Fault(part="cdn", cut_after=100_000, ignore_range=True))
    hub_user.hub.arm(Fault(part="cdn", times=None, ignore_range=True))
    note, installed = cleaned(hub_user.pull("--vocabulary", REPO)).splitlines(keepends=True)
    assert note.endswith("connection lost: retrying in 1 s\n")
    assert installed == pulled(hub_user)
    assert tokens(path_of(hub_user)) == tokens(mistral_model)
    assert path_of(hub_user).stat().st_blocks * 512 < 1 << 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bytes_left", "problem"),
    [(100_000, "truncated or damaged: its header does not end before byte 100,000"), (-1000, "truncated: its tensors")],
)
def test_vocabulary_pull_stores_no_damaged_header(
    hub_user: HubUser, mistral_model: Path, bytes_left: int, problem: str
) -> None:
    hub_user.hub.repositories[REPO].commit({FILE: mistral_model.read_bytes()[:bytes_left]})
    done = hub_user.run("pull", "--vocabulary", REPO)
    assert (done.code, done.out) == (2, "")
    assert f"error: {REPO}/{FILE}: {problem}" in done.err
    assert blobs(hub_user) == {}


@pytest.mark.slow
def test_vocabulary_pull_of_a_split_model_has_all_tables(
    hub_user: HubUser, parts: dict[str, Path], chatml_model: Path
) -> None:
    hub_user.hub.repository("owner/split", dict(parts))
    hub_user.pull("--vocabulary", "owner/split")
    path = path_of(hub_user, next(iter(parts)), "owner/split")
    assert tokens(path) == tokens(chatml_model)
    assert sorted(blobs(hub_user).values()) == sorted(each.stat().st_size for each in parts.values())
    assert len(ranges(hub_user)) == 3
    assert hub_user.run("rm", "-y", "owner/split").code == 0
    assert blobs(hub_user) == {}


@pytest.mark.parametrize(("offline", "more"), OFFLINE)
def test_vocabulary_pull_uses_the_stored_one_without_the_hub(
    hub_user: HubUser, offline: tuple[str, ...], more: dict[str, str]
) -> None:
    done = hub_user.run("pull", "--vocabulary", REPO, *offline, **more)
    hint = "pull it without --offline or HF_HUB_OFFLINE; a file needs no network: cerebrum pull ./model.gguf"
    if not offline:
        hint += "; starter needs no Hub: cerebrum pull starter"
    assert (done.code, done.err) == (3, f"{DISABLED} hint: {hint}\n")
    hub_user.pull("--vocabulary", REPO)
    hub_user.hub.log.clear()
    assert hub_user.pull("--vocabulary", REPO, *offline, **more).err == pulled(hub_user)
    assert not hub_user.hub.log.requests()
    hub_user.hub.arm(Fault(part="api", times=None, refusal=UNAVAILABLE.resetting_after(7000)))
    assert hub_user.pull("--vocabulary", REPO).err.endswith(f"using the installed {REFERENCE}\n{pulled(hub_user)}")


@pytest.mark.parametrize("reference", ["starter", "cerebrum-12b"])
def test_vocabulary_pull_names_models_it_cannot_serve(hub_user: HubUser, reference: str) -> None:
    done = hub_user.run("pull", "--vocabulary", reference)
    said = f"error: the vocabulary of {reference} cannot be pulled alone\n hint: cerebrum pull {reference}\n"
    assert (done.code, done.err) == (1, said)
