"""Tokenization with real vocabularies: lossless, and untrusted text never becomes markup."""

import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from cases import rows
from hypothesis import given, strategies as st
from vocabularies import MARKS, marked_up, marks_in, markup, open_vocabulary, with_user_defined

from cerebrum_cli.core.conversation import PromptPart, Text, Tokens
from cerebrum_cli.core.errors import UnknownToken
from cerebrum_cli.core.vocabulary import detokenize
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.formats.prompt_format import join_parts

UNK, BOS, EOS = 0, 1, 2  # of Mistral's vocabulary
LINE_BREAK, THINK = 13, 24036

texts = st.text(max_size=30)


@pytest.fixture(scope="module")
def marked_mistral(mistral_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaBackend]:
    """Open a SentencePiece vocabulary in which the word `think` is user-defined."""
    path = tmp_path_factory.mktemp("marked") / "mistral.gguf"
    with open_vocabulary(with_user_defined(mistral_model, path, [THINK])) as backend:
        yield backend


def pieces(backend: LlamaBackend, ids: tuple[int, ...]) -> bytes:
    return b"".join(backend.piece(token) for token in ids)


@given(text=texts | marked_up)
def test_tokenize_round_trips(text: str, mistral: LlamaBackend, chatml: LlamaBackend) -> None:
    for trusted in (False, "<|" not in text):
        assert pieces(chatml, chatml.tokenize((Text(text, trusted),))) == text.encode()
    text = text.replace("\u2581", " ")  # SentencePiece's own spelling of a space
    assert pieces(mistral, mistral.tokenize((Text(text),))) == (b" " + text.encode() if text else b"")


@given(before=texts.filter(bool), said=texts.filter(bool), after=texts)
def test_tokenize_adds_no_space_after_tokens(
    before: str, said: str, after: str, mistral: LlamaBackend, chatml: LlamaBackend
) -> None:
    ids = chatml.tokenize((Text(before), Tokens(chatml.tokenize((Text(said),))), Text(after)))
    assert pieces(chatml, ids).decode() == before + said + after
    before, said, after = (text.replace("\u2581", " ") for text in (before, said, after))
    ids = mistral.tokenize((Text(before), Tokens(mistral.tokenize((Text(said),))[1:]), Text(after)))
    assert pieces(mistral, ids).decode() == f" {before} {said}{after}"


def part_of(given: Any) -> PromptPart:
    """A part of a prompt by its text, its trusted text or its tokens."""
    if isinstance(given, list):
        return Tokens(tuple(given))
    return Text(given["trusted"], True) if isinstance(given, dict) else Text(given)


@pytest.mark.parametrize(("name", "parts", "ids"), rows("tokenized_parts"))
def test_tokenize_continues_text_after_tokens_and_bos(
    name: str, parts: list[Any], ids: list[int], mistral: LlamaBackend
) -> None:
    assert mistral.tokenize(map(part_of, parts)) == tuple(ids)


def test_special_tokens_have_texts_pieces_and_ids(
    chatml: LlamaBackend, mistral: LlamaBackend, marked_mistral: LlamaBackend
) -> None:
    assert (mistral.special_token_text("bos"), mistral.special_token_text("eos")) == ("<s>", "</s>")
    assert (chatml.special_token_text("bos"), chatml.special_token_text("eos")) == ("<|im_start|>", "<|im_end|>")
    end, think = MARKS.index("<|im_end|>"), MARKS.index("<think>")
    assert (chatml.piece(end), chatml.piece(end, special=True), chatml.piece(think)) == (b"", b"<|im_end|>", b"<think>")
    texts = ["<|im_start|>a<|im_end|>", "<thinking><think>", "<think>", "<|IM_END|>", ""]
    assert chatml.special_token_ids(texts) == {MARKS.index("<|im_start|>"), end, think}
    assert mistral.special_token_ids(["a</s><s>think 🙂", "<unk>"]) == {UNK, BOS, EOS}
    assert marked_mistral.special_token_ids(["a</s>think"]) == {EOS, THINK}


# Untrusted text is never markup.


def trusted_marks(parts: list[Text]) -> int:
    """Count the markup spelled by trusted text alone; no markup here starts inside other markup."""
    runs = [""]
    for part in parts:
        if part.trusted:
            runs[-1] += part.value
        else:
            runs.append("")
    return sum(run.count(mark) for run in runs for mark in MARKS)


@given(
    parts=st.lists(st.builds(Text, st.lists(markup, min_size=1, max_size=4).map("".join), st.booleans()), max_size=6)
)
def test_markup_is_special_only_in_trusted_text(parts: list[Text], chatml: LlamaBackend) -> None:
    ids = chatml.tokenize(join_parts(tuple(parts)))
    assert detokenize(chatml, ids) == "".join(part.value for part in parts)
    assert len(marks_in(ids)) == trusted_marks(parts)
    pasted = [Text(part.value) for part in parts]
    assert marks_in(chatml.tokenize(pasted)) == []


@given(text=st.lists(st.sampled_from(["think", "thi", "nk", "t", "h", " ", "\n", "é", "</s>"])).map("".join))
def test_user_defined_word_is_split_without_a_trace(text: str, marked_mistral: LlamaBackend) -> None:
    ids, behind = (marked_mistral.tokenize((*before, Text(text))) for before in ((), (Tokens((LINE_BREAK,)),)))
    assert not {THINK, EOS} & {*ids} and THINK not in behind
    assert pieces(marked_mistral, ids).decode() == (f" {text}" if text else "")
    assert pieces(marked_mistral, behind).decode() == f"\n{text}"
    assert THINK in marked_mistral.tokenize((Text("think", True), Text(text)))


HTML = ("<table>", "</td>", "<b>", "  ", "\n\n", "12")


@pytest.mark.parametrize(
    ("template", "known"), [(None, HTML), ("{{ '<b>' + messages[0].content }}", {*HTML} - {"<b>"})]
)
def test_untrusted_html_keeps_its_tokens_unless_the_template_uses_them(
    template: str | None, known: Iterable[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_defined = (*HTML, "<s>", "</s>", "<user>", "[INST]", "<start_of_turn>", "<unused1>")
    special_tokens = tiny_models.SPECIAL_TOKENS | dict.fromkeys(user_defined, tiny_models.USER_DEFINED)
    monkeypatch.setattr(tiny_models, "SPECIAL_TOKENS", special_tokens)
    names = tuple(tiny_models.SPECIAL_TOKENS)
    with open_vocabulary(tiny_models.write_chatml(tmp_path / "html.gguf", chat_template=template)) as backend:
        for around in ("", "<", "a"):
            text = around.join(names)
            ids = backend.tokenize((Text(text),))
            assert pieces(backend, ids).decode() == text
            assert [names[token] for token in ids if token < len(names)] == [each for each in HTML if each in known]
        trusted = backend.tokenize((Text("".join(user_defined), True),))
        assert [names[token] for token in trusted] == [*user_defined]


@pytest.mark.parametrize("given", [None, 2**32 - 1, 100_000])
def test_missing_or_invalid_bos_and_eos_are_none(
    given: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp has token 11 for them."""
    metadata = {**tiny_models.bpe_metadata(), "tokenizer.ggml.add_bos_token": True}
    for name in ("bos", "eos"):
        del metadata[f"tokenizer.ggml.{name}_token_id"]
        metadata |= {} if given is None else {f"tokenizer.ggml.{name}_token_id": given}
    monkeypatch.setattr(tiny_models, "bpe_metadata", lambda: metadata)
    with open_vocabulary(tiny_models.write_chatml(tmp_path / "none.gguf")) as backend:
        assert (backend.special_token_text("bos"), backend.special_token_text("eos")) == ("", "")
        assert pieces(backend, backend.tokenize((Text("a,"),))) == b"a,"
        assert not backend.is_eog(11) and backend.is_eog(MARKS.index("<|im_end|>"))


def test_tokenize_accepts_broken_and_much_text(mistral: LlamaBackend, chatml: LlamaBackend) -> None:
    for text, trusted in product(("a\udcffb", "a\0<think>\0", "\ufeff"), (False, True)):
        data = text.encode("utf-8", "surrogatepass")
        assert pieces(mistral, mistral.tokenize((Text(text, trusted),))) == b" " + data
        assert pieces(chatml, chatml.tokenize((Text(text, trusted),))) == data
    many = "<think></think><<think>think>" * 1000
    ids = chatml.tokenize((Text("<think>", True), Text(many)))
    assert (marks_in(ids), detokenize(chatml, ids)) == (["<think>"], "<think>" + many)


@pytest.mark.parametrize("token", [-1, 32000])
def test_tokens_of_another_vocabulary_are_rejected(token: int, mistral: LlamaBackend) -> None:
    for attempt in (lambda: mistral.piece(token), lambda: mistral.tokenize((Tokens((THINK, token)), Text("a")))):
        with pytest.raises(UnknownToken, match=rf"^token {token} is not in this model's vocabulary of 32000"):
            attempt()


def test_piece_may_exceed_the_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = f"<|{'long' * 200}|>"
    monkeypatch.setitem(tiny_models.SPECIAL_TOKENS, long, tiny_models.USER_DEFINED)
    with open_vocabulary(tiny_models.write_chatml(tmp_path / "long.gguf")) as backend:
        token = len(tiny_models.SPECIAL_TOKENS) - 1
        assert backend.tokenize((Text(f"a{long}b", True),))[1] == token
        assert token not in backend.tokenize((Text(f"a{long}b"),))
        assert backend.piece(token).decode() == backend.piece(token, special=True).decode() == long


@pytest.mark.parametrize("pre_tokenizer", [b"tekken", b"gpt-4o"])  # which match words with a recursive std::regex
def test_tokenize_accepts_words_of_any_length(pre_tokenizer: bytes, tmp_path: Path, chatml: LlamaBackend) -> None:
    path = tiny_models.write_chatml(tmp_path / "long.gguf")
    path.write_bytes(path.read_bytes().replace(b"smollm", pre_tokenizer))
    with open_vocabulary(path) as backend:
        for word in ("a" * 100_000, "ACGT" * 25_000, "中" * 30_000):
            assert backend.tokenize((Text(word),)) == chatml.tokenize((Text(word),))


@pytest.mark.slow
def test_piece_is_thread_safe(mistral_model: Path) -> None:
    every, interval = (range(0, 32000, 3), range(1, 32000, 3)), sys.getswitchinterval()
    with open_vocabulary(mistral_model) as backend, open_vocabulary(mistral_model) as shared:
        expected = [[backend.piece(token) for token in tokens] for tokens in every]
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(2) as threads:
                found = list(threads.map(lambda tokens: [shared.piece(token) for token in tokens], every))
        finally:
            sys.setswitchinterval(interval)
    assert found == expected
