"""Model references: what each form names, what is none, and that whatever is read can be said again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.models.reference import HubReference, NameReference, PathReference, Reference, parse_reference

HUB = "https://huggingface.co"
REPO = "bartowski/Cerebrum-1.0-7b-GGUF"
FILE = "Cerebrum-1.0-7b-Q4_K_M.gguf"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("cerebrum-7b", NameReference("cerebrum-7b")),
        ("cerebrum-7b:Q4_K_M", NameReference("cerebrum-7b", "Q4_K_M")),
        ("hf.co", NameReference("hf.co")),
        (REPO, HubReference(REPO)),
        (f"{REPO}:Q4_K_M", HubReference(REPO, "Q4_K_M")),
        ("_o/r_:Q8_0", HubReference("_o/r_", "Q8_0")),
        (f"hf.co/{REPO}:Q4_K_M", HubReference(REPO, "Q4_K_M")),
        (f"HF.co/{REPO}:Q4_K_M", HubReference(REPO, "Q4_K_M")),
        (f"www.huggingface.co/{REPO}", HubReference(REPO)),
        (f"hf.co/{REPO}/resolve/main/{FILE}", HubReference(REPO, file=FILE, revision="main")),
        (f"hf://{REPO}", HubReference(REPO)),
        (f"{HUB}/{REPO}", HubReference(REPO)),
        (f"HTTPS://HuggingFace.CO/{REPO}", HubReference(REPO)),
        (f"{HUB}/{REPO}\n", HubReference(REPO)),
        (f"{HUB}/{REPO}/resolve/main/{FILE}", HubReference(REPO, file=FILE, revision="main")),
        (f"{HUB}/{REPO}/blob/main/{FILE}", HubReference(REPO, file=FILE, revision="main")),
        (f"{HUB}/{REPO}/resolve/{COMMIT}/{FILE}", HubReference(REPO, file=FILE, revision=COMMIT)),
        (f"{HUB}/{REPO}/resolve/refs%2Fpr%2F1/{FILE}", HubReference(REPO, file=FILE, revision="refs/pr/1")),
        (f"{HUB}/{REPO}/resolve/main/Q4/part/{FILE}", HubReference(REPO, file=f"Q4/part/{FILE}", revision="main")),
        (f"{HUB}/{REPO}/resolve/main/Q4%2F{FILE}", HubReference(REPO, file=f"Q4/{FILE}", revision="main")),
        (f"{HUB}/{REPO}/resolve/main/a%20b%3F%23.gguf", HubReference(REPO, file="a b?#.gguf", revision="main")),
        (f"{HUB}/{REPO}/resolve/main/%C3%A4%2B.GGUF", HubReference(REPO, file="ä+.GGUF", revision="main")),
        (f"{HUB}/{REPO}/resolve/main/1..2.gguf", HubReference(REPO, file="1..2.gguf", revision="main")),
        (f"{HUB}/{REPO}/tree/main", HubReference(REPO, revision="main")),
        (f"{HUB}/{REPO}/tree/v1.0:Q4_K_M", HubReference(REPO, "Q4_K_M", revision="v1.0")),
        (f"{HUB}/{REPO}/tree/refs%2Fpr%2F1:Q4_K_M", HubReference(REPO, "Q4_K_M", revision="refs/pr/1")),
        ("/models/a.gguf", PathReference(Path("/models/a.gguf"))),
        ("./a", PathReference(Path("a"))),
        (".", PathReference(Path())),
        ("~/a.gguf", PathReference(Path("~/a.gguf"))),
        ("a.gguf", PathReference(Path("a.gguf"))),
        ("o/r.gguf", PathReference(Path("o/r.gguf"))),
        ("C:\\models\\a.gguf", PathReference(Path("C:\\models\\a.gguf"))),
        ("ä \udcff.gguf", PathReference(Path("ä \udcff.gguf"))),
    ],
)
def test_reference_parses_every_form(text: str, meant: Reference) -> None:
    assert parse_reference(text) == meant


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        ("https://hub.example", f"https://hub.example/{REPO}/resolve/main/{FILE}"),
        ("http://localhost:8080/", f"http://LOCALHOST:8080/{REPO}/blob/main/{FILE}?download=true"),
        ("https://hub.example", f"{HUB}/{REPO}/resolve/main/{FILE}"),
        ("https://hub.example", f"https://hub.example/{REPO}?show_file_info={FILE}"),
        ("https://mirror.example/hf", f"{HUB}/{REPO}/resolve/main/{FILE}"),
        ("https://huggingface.co/", f"{HUB}/{REPO}/resolve/main/{FILE}"),
    ],
)
def test_reference_accepts_urls_of_the_configured_hub(endpoint: str, text: str) -> None:
    assert parse_reference(text, endpoint) == HubReference(REPO, file=FILE, revision="main")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a model reference"),
        ("cerebrum 7b", "is not a model reference"),
        (".hidden", "is not a model reference"),
        ("a\\b", "is not a model reference"),
        ("a/b/c", "is not a model reference"),
        ("a/b..c", "is not a model reference"),
        ("a:", "has no quantization after the colon"),
        ("a:b:c", "has no quantization after the colon"),
        ("hf.co/", "does not name a repository"),
        ("hf.co/../b", "does not name a repository"),
        ("hf.co/a/b/c.gguf", "is not the URL of a .gguf file"),
        ("a.gguf\0.gguf", "is not a path"),
        ("https://", "does not name a repository"),
        ("https://[/a/b", "is not a URL"),
        ("://a/b", "can only pull from the Hugging Face Hub"),
        ("https://example.com/a/b.gguf", "can only pull from the Hugging Face Hub"),
        ("https://huggingface.co.example.com/a/b", "can only pull from the Hugging Face Hub"),
        ("https://user:secret@huggingface.co/a/b", "can only pull from the Hugging Face Hub"),
        (f"{HUB}/a", "does not name a repository"),
        (f"{HUB}/datasets/a/b", "is not the URL of a .gguf file"),
        (f"{HUB}/a/b/tree", "is not the URL of a .gguf file"),
        (f"{HUB}/a/b/resolve/main/config.json", "is not the URL of a .gguf file"),
        ("hf.co/a/b/resolve/main/a\nb", "is not the URL of a .gguf file"),
        (f"{HUB}/a/b/resolve/main/../c.gguf", "is not a URL of the Hub"),
        (f"{HUB}/a/b/resolve/main/%2e%2e/c.gguf", "is not a URL of the Hub"),
        (f"{HUB}/a/b/resolve/main/a%5Cc.gguf", "is not a URL of the Hub"),
        (f"{HUB}/a/b/resolve/main/%FF.gguf", "is not a URL of the Hub"),
        (f"{HUB}/a/b/resolve/%2e%2e/c.gguf", "is not a URL of the Hub"),
        (f"{HUB}/a/b/tree/a%5Cb", "is not a URL of the Hub"),
    ],
)
def test_reference_error_has_problem_and_hint(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference(text)
    assert said in caught.value.message
    assert len(caught.value.message.splitlines()) == 1
    assert len(caught.value.hint.splitlines()) == 1


LETTERS = "abzABZ019"
WORDS = st.text(LETTERS + "_", min_size=1, max_size=8)


def joined(separators: str, words: st.SearchStrategy[str] = WORDS) -> st.SearchStrategy[str]:
    return st.lists(words, min_size=1, max_size=3).flatmap(
        lambda found: st.sampled_from(separators).map(lambda separator: separator.join(found))
    )


names = st.builds(str.__add__, st.sampled_from(LETTERS), st.text(LETTERS + "._-", max_size=12)).filter(
    lambda name: not name.endswith(".gguf")
)
repo_ids = st.builds("{}/{}".format, joined("-_"), joined(".-_"))
plain = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x24F, exclude_characters="/\\").filter(str.isprintable), min_size=1
)
folders = plain.filter(lambda part: not part.startswith("."))
revisions = st.lists(folders, min_size=1, max_size=3).map("/".join)
files = st.builds(
    "{}{}".format, st.lists(folders, min_size=1, max_size=3).map("/".join), st.sampled_from([".gguf", ".GGUF"])
)
paths = st.lists(
    st.sampled_from(["..", "~", "a", "a.gguf", "ä \udcff", "a:b", "hf:", "\\", "\n"]) | WORDS, min_size=1, max_size=4
).map(lambda parts: Path(*parts))

references: st.SearchStrategy[Reference] = st.one_of(
    st.builds(NameReference, names, st.none() | names),
    st.builds(HubReference, repo_ids, st.none() | names),
    st.builds(HubReference, repo_ids, st.none() | names, revision=revisions),
    st.builds(HubReference, repo_ids, file=files, revision=revisions),
    st.builds(PathReference, paths | paths.map(Path("/").joinpath)),
)


@example(HubReference("o/model.gguf"))
@example(HubReference("o/model.gguf", "Q4_0"))
@example(HubReference("hf.co/a"))
@example(PathReference(Path("hf.co/a.gguf")))
@example(PathReference(Path("hf.co/o/r.gguf")))
@example(PathReference(Path("huggingface.co/o/r/resolve/main/a.gguf")))
@given(references)
def test_reference_str_parses_to_the_same_value(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference


PIECES = (
    *(":", "/", "//", "\\", ".", "..", "~", "-", "--", "@", "?", "#", " ", "\n", "\t", "\0", "\x1b[31m", "\u2028"),
    *("%2e%2e", "%2F", "%5C", "%00", "%0A", "%FF", "%", "ä", "\udcff", "[", "]", "１"),
    *("a", "b", "main", ".gguf", ".GGUF", "Q4_0", "tree/", "resolve/", "blob/", "a/b/resolve/main/", "a/b/tree/"),
    *("hf.co", "hf://", "https://", "huggingface.co/", "https://huggingface.co/", "https://huggingface.co/a/b/"),
)
texts = st.text() | st.text(st.characters()) | st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


views = st.sampled_from([f"{HUB}/a/b/{view}/" for view in ("resolve", "blob", "raw", "tree")] + ["hf.co/a/b/resolve/"])
addresses = st.builds("{}{}{}".format, views, texts, st.sampled_from(["", "/x.gguf", "%2Fx.gguf", ".gguf"]))


@given(st.builds("{}{}".format, st.sampled_from(["", "hf.co/", "https://huggingface.co/a/b/"]), texts) | addresses)
def test_reference_of_any_text_is_refused_or_round_trips(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UsageError as error:
        assert len(error.message.splitlines()) == len(error.hint.splitlines()) == 1
        return
    assert parse_reference(str(reference)) == reference
    if isinstance(reference, HubReference):
        for part in filter(None, (reference.file, reference.revision)):
            assert not {"", ".", ".."}.intersection(part.split("/")), part
            assert "\\" not in part
            assert part.isprintable()
