"""Model references, and the files of a repository as models: what names state, and what is none."""

import timeit
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from cerebrum_cli.core.errors import ModelFileError, UsageError
from cerebrum_cli.library.installed import model_paths
from cerebrum_cli.library.reference import (
    ModelReference,
    OllamaReference,
    Reference,
    Variant,
    parse_reference,
    quantization_of,
    same_quantization,
    variants,
)

HUB = "https://huggingface.co"
REPO = "bartowski/Cerebrum-1.0-7b-GGUF"
FILE = "Cerebrum-1.0-7b-Q4_K_M.gguf"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MAIN_FILE = ModelReference(REPO, file=FILE, revision="main")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("cerebrum-7b", ModelReference("cerebrum-7b")),
        ("cerebrum-7b:Q4_K_M", ModelReference("cerebrum-7b", "Q4_K_M")),
        ("hf.co", ModelReference("hf.co")),
        ("_o/r_:Q8_0", ModelReference("_o/r_", "Q8_0")),
        ("hf.co/o/model.gguf", ModelReference("o/model.gguf")),
        *((f"{host}{REPO}", ModelReference(REPO)) for host in ("", "hf.co/", "HTTPS://HuggingFace.CO/", f"{HUB}/")),
        *((f"{host}{REPO}:Q4_K_M", ModelReference(REPO, "Q4_K_M")) for host in ("", "hf.co/", "HF.co/")),
        *((f"{REPO}{end}", ModelReference(REPO)) for end in ("/", " ", "\n")),
        (f"{REPO}:IQ4_XS-4.05bpw", ModelReference(REPO, "IQ4_XS-4.05bpw")),
        (f"{REPO}@v1.0:Q4_K_M", ModelReference(REPO, "Q4_K_M", revision="v1.0")),
        (f"{REPO}@refs/pr/12:Q4_K_M", ModelReference(REPO, "Q4_K_M", revision="refs/pr/12")),
        (f"{HUB}/{REPO}/tree/main", ModelReference(REPO, revision="main")),
        *((f"{HUB}/{REPO}/{page}/main/{FILE}", MAIN_FILE) for page in ("resolve", "blob")),
        (f"hf.co/{REPO}/resolve/main/{FILE}?download=true", MAIN_FILE),
        (f"{HUB}/{REPO}/resolve/{COMMIT}/{FILE}", ModelReference(REPO, file=FILE, revision=COMMIT)),
        (f"{HUB}/{REPO}/resolve/refs%2Fpr%2F1/{FILE}", ModelReference(REPO, file=FILE, revision="refs/pr/1")),
        (f"{HUB}/{REPO}/resolve/main/Q4/part/{FILE}", ModelReference(REPO, file=f"Q4/part/{FILE}", revision="main")),
        (f"{HUB}/{REPO}/resolve/main/a%20b%3F%23.gguf", ModelReference(REPO, file="a b?#.gguf", revision="main")),
        (f"{HUB}/{REPO}/resolve/main/%C3%A4%2B.GGUF", ModelReference(REPO, file="ä+.GGUF", revision="main")),
        ("ollama:qwen3:8b", OllamaReference("qwen3:8b")),
        ("ollama:qwen3:latest", OllamaReference("qwen3")),
        *((text, Path(text)) for text in ("/models/a.gguf", "./a", ".", "a.gguf", "o/r.gguf")),
        ("~/a.gguf", Path.home() / "a.gguf"),
        *((text, Path(text)) for text in ("C:\\models\\a.gguf", "ä \udcff.gguf")),
    ],
)
def test_reference_parses_every_form(text: str, meant: Reference) -> None:
    assert parse_reference(text) == meant
    if not isinstance(meant, Path):
        assert parse_reference(str(meant)) == meant


@pytest.mark.parametrize("endpoint", ["https://hub.example", "http://localhost:8080/hf/", f"{HUB}/"])
def test_reference_accepts_urls_of_the_configured_hub(endpoint: str) -> None:
    for hub in (endpoint.removesuffix("/"), HUB):
        assert parse_reference(f"{hub}/{REPO}/blob/main/{FILE}", endpoint) == MAIN_FILE


REFUSED = {
    "is not a model reference": ["a.gguf\0.gguf", "", "cerebrum 7b", ".hidden", "a\\b"],
    "is not a quantization": ["a:", "a:b:c", "a/b:", "hf.co/a/b: ", "a/b@main:"],
    "does not name a repository of the Hub, or a .gguf file in one": [
        *("hf.co/", "hf.co/../b", f"{HUB}/a", "a/b/c", "a/b..c", "a/b/c.safetensors", "a/.git", "a/b@../c"),
        *(f"{HUB}/datasets/a/b", f"{HUB}/a/b/tree", f"{HUB}/a/b/resolve/main/config.json", "a/b/resolve/main/a\nb"),
        *(f"{HUB}/a/b/resolve/main/{file}" for file in ("../c.gguf", "%2e%2e/c.gguf", "a%5Cc.gguf")),
        f"{HUB}/a/b/resolve/%2e%2e/c.gguf",
    ],
    "can only pull from the Hugging Face Hub": [
        *("://a/b", "https://", "https://example.com/a/b.gguf", "https://huggingface.co.example.com/a/b"),
        *("https://user:secret@huggingface.co/a/b", "https://[/a/b"),
    ],
}


@pytest.mark.parametrize(("problem", "text"), [(problem, text) for problem, texts in REFUSED.items() for text in texts])
def test_reference_error_has_problem_and_hint(problem: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference(text)
    assert problem in caught.value.message
    assert len(caught.value.message.splitlines()) == len(caught.value.hint.splitlines()) == 1


PIECES = (
    *(":", "/", "//", "\\", ".", "..", "~", "-", "--", "@", "?", "#", " ", "\n", "\t", "\0", "\x1b[31m", "\u2028"),
    *("%2e%2e", "%2F", "%5C", "%00", "%0A", "%FF", "%", "ä", "\udcff", "[", "]", "１"),
    *("a", "b", "main", ".gguf", ".GGUF", "Q4_0", "tree/", "resolve/", "blob/", "a/b/resolve/main/", "a/b/tree/"),
    *("hf.co", "https://", "huggingface.co/", "https://huggingface.co/", "https://huggingface.co/a/b/"),
)
texts = st.text() | st.text(st.characters()) | st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


views = st.sampled_from([f"{HUB}/a/b/{view}/" for view in ("resolve", "blob", "tree")] + ["hf.co/a/b/resolve/"])
addresses = st.builds("{}{}{}".format, views, texts, st.sampled_from(["", "/x.gguf", "%2Fx.gguf", ".gguf"]))


@given(st.builds("{}{}".format, st.sampled_from(["", "hf.co/", "https://huggingface.co/a/b/"]), texts) | addresses)
def test_reference_of_any_text_is_refused_or_round_trips(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UsageError as error:
        assert len(error.message.splitlines()) == len(error.hint.splitlines()) == 1
        return
    if isinstance(reference, ModelReference):
        assert parse_reference(str(reference)) == reference
        for part in filter(None, (reference.file, reference.revision)):
            assert not {"", ".", ".."}.intersection(part.split("/")), part
            assert "\\" not in part
            assert part.isprintable()


def parts(stem: str, count: int, ending: str = ".gguf") -> tuple[str, ...]:
    return tuple(f"{stem}-{number:05}-of-{count:05}{ending}" for number in range(1, count + 1))


QUANTIZATIONS = {
    "Q4_K_M": ("Cerebrum-1.0-7b-Q4_K_M.gguf", "collectivecognition-v1-mistral-7b.Q4_K_M.gguf", "Q4_K_M.gguf"),
    "Q4_KS": ("Cerebrum-1.0-7b-Q4_KS.gguf",),
    "Q4_0_4_8": ("Meta-Llama-3.1-8B-Instruct-Q4_0_4_8.gguf",),
    "IQ3_XXS": ("x.i1-IQ3_XXS.gguf",),
    "UD-IQ1_S": ("UD-IQ1_S/DeepSeek-R1-UD-IQ1_S-00001-of-00003.gguf",),
    "Q5_1": ("ggml-model_q5_1.gguf",),
    "FP16": ("x-fp16.gguf",),
    "BF16": ("x.BF16.gguf",),
    "IQ4_XS-4.05bpw": ("x-IQ4_XS-4.05bpw.gguf", "x-iq4_xs-4.05BPW-00001-of-00002.gguf"),
    "MXFP4_MOE": ("gpt-oss-20b-MXFP4_MOE.gguf",),
    "NVFP4": ("x-NVFP4.gguf",),
    "Q8_0": ("Cerebrum-1.0-7b-Q8_0-00002-of-00003.GGUF",),
    "F16": ("x-Q6_K-f16.gguf",),
    "Q4_0": ("gemma-4-E4B_q4_0-it.gguf",),
    "UD-Q4_K_XL": ("x.UD-Q4_K_XL.v2.gguf",),
    **{name: (f"{name}.gguf",) for name in ("model", "Llama-Q4-instruct", "FAQ4")},
    "Q5_K_M": ("Q5_K_M/model-v2.gguf", "x-q5_k_m/part/x-00001-of-00002.gguf", "Q8_0/x-Q5_K_M.gguf"),
}


def test_variants_quantization_of_a_file_name() -> None:
    for quantization, names in QUANTIZATIONS.items():
        assert [quantization_of(name) for name in names] == [quantization] * len(names)


def test_variants_compare_quantizations_loosely() -> None:
    same = (
        ("Q4_K_M", "Q4_K_M"),
        ("Q4_K_S", "Q4_KS"),
        ("q4ks", "Q4_K_S"),
        ("UD-Q4_K_XL", "ud-q4_k_xl"),
        ("IQ4_XS-4.05bpw", "iq4_xs"),
        ("F16", "FP16"),
    )
    different = (
        ("UD-Q4_K_XL", "Q4_K_XL"),
        ("Q4_K", "Q4_K_M"),
        ("FP16", "BF16"),
        ("", "Q4_0"),
        ("Q4-4.05bpw", "Q4-4.5bpw"),
    )
    assert all(same_quantization(*pair) and same_quantization(*pair[::-1]) for pair in same)
    assert not any(same_quantization(*pair) or same_quantization(*pair[::-1]) for pair in different)


IN_TWO, IN_THREE = parts("x-Q8_0", 2), parts("x-Q8_0", 3)
WHOLE = Variant("Q4_0", ("x-Q4_0.gguf",))
AUXILIARY = ("mmproj-F16.gguf", "mmproj-model-f16.gguf", "x.mmproj-Q8_0.gguf", "folder/MMPROJ-x.gguf", "imatrix.gguf")
OF_OTHERS = ("Ministral-3-8B-Instruct-2512-BF16-mmproj.gguf", "gemma-4-26B-it-mmproj.gguf", "mtp-Qwen3.5-4B-Q8_0.gguf")
NO_MODELS = ("x-imatrix.gguf", "imatrix_unsloth.gguf", "x-Q4_0.gguf.part", "x-Q4_0.bin", "README.md", "config.json")
INVALID_PARTS = ("x-Q4_0-00000-of-00000.gguf", "x-Q4_0-00001-of-00000.gguf", "x-Q4_0-00003-of-00002.gguf")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ((), ()),
        ((*AUXILIARY, *OF_OTHERS, *NO_MODELS, *INVALID_PARTS), ()),
        (
            ("x-Q8_0.gguf", "old/x.q4_0.gguf"),
            (Variant("Q4_0", ("old/x.q4_0.gguf",)), Variant("Q8_0", ("x-Q8_0.gguf",))),
        ),
        ((IN_THREE[2], "x-Q4_0.gguf", *IN_THREE[:2]), (WHOLE, Variant("Q8_0", IN_THREE))),
        *((("x-Q4_0.gguf", *IN_THREE[:at], *IN_THREE[at + 1 :]), (WHOLE,)) for at in range(3)),
        ((*parts("Q8_0/x", 2), *parts("x", 2)), (Variant("Q8_0", parts("Q8_0/x", 2)), Variant("x", parts("x", 2)))),
        ((*IN_THREE, *IN_TWO), (Variant("Q8_0", IN_TWO), Variant("Q8_0", IN_THREE))),
        ((*IN_THREE[1:], *IN_TWO), (Variant("Q8_0", IN_TWO),)),
        (("x.gguf", "x.GGUF"), (Variant("x", ("x.GGUF",)), Variant("x", ("x.gguf",)))),
        *(((name,), (Variant("Q4_0", (name,)),)) for name in ("mmprojected-Q4_0.gguf", "imatrixed-7b-Q4_0.gguf")),
        *(
            ((name,), (Variant("Q4_0", (name,)),))
            for name in ("mmproj/x-Q4_0.gguf", "x-mtp-Q4_0.gguf", "mtp/x-Q4_0.gguf")
        ),
    ],
)
def test_variants_group_files_into_models(files: tuple[str, ...], found: tuple[Variant, ...]) -> None:
    assert variants(files) == found


def test_variants_model_paths_require_the_first_part(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in parts("x", 2))
    assert model_paths(first) == (first, second)
    with pytest.raises(ModelFileError) as caught:
        model_paths(second)
    assert caught.value.hint == f"use {first}"
    unsplit = tmp_path / "x-00001-of-00000.gguf"
    assert model_paths(unsplit) == (unsplit,)


@pytest.mark.parametrize("piece", ["Q4_", "-Q4_K", "-1.", "_imat", "UD-Q4_K_XL-", "mtp-", "00001-of-00002-"])
def test_names_of_any_length_are_read_in_linear_time(piece: str) -> None:
    def seconds(n: int) -> float:
        name = f"{(piece * n)[:n]}!.gguf"
        return min(timeit.repeat(lambda: (variants([name]), quantization_of(name)), number=1, repeat=3))

    assert seconds(40_000) < 20 * seconds(10_000) + 0.1
