"""Write tests/data/checkpoints/tokenizers/: small tokenizers of each kind, and the ids they give to varied texts.

Needs the packages tokenizers and sentencepiece. A folder has the files of a checkpoint's tokenizer. `texts.json` has
the texts, `ids.json` the ids of each text by folder, and `pre_tokenizers.json` what published models split text with.
Their ids are those of the folder `byte-level` with that pre-tokenizer.
"""

import io
import json
import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "tests" / "data" / "checkpoints" / "tokenizers"
SIZE = 600
COUNT = 200

FRAGMENTS = (
    "The quick brown fox",
    "I'll say it's DONE",
    "we've, they'RE, I'm",
    "JavaScript and HTTPServer",
    "don't!!! really??",
    "Über größere Straßen",
    "GRÖSSE und Maß",
    "naïve café, déjà vu",
    "El niño comió piñas",
    "Łódź i żółw",
    "我想在apple工作",
    "汉字、标点。",
    "これはテストです",
    "カタカナ",
    "한국어 문장",
    "مرحبا بالعالم",
    "السلام عليكم ١٢٣",
    "Привет, мир",
    "нещо на Български",
    "Ελληνικά",
    "שלום עולם",
    "🚀🦙 ok",
    "👩‍👩‍👧 family",
    "✅✅",
    "¿Qué? ¡Sí!",
    "3 33 333 3333 33333",
    "3.14159e-10",
    "2024-11-27T13:25",
    "x=1;y+=22",
    "½ ⅔ ² ³",
    "1,234,567.89",
    "#42 50% $9",
    "def f(a, b):\n    return a+b",
    "if (x != y) {\n\t\tz();\n}",
    '<div class="a">&amp;</div>',
    "a_b__c--d//e\\f",
    "https://example.org/a?b=c&d#e",
    "`code` **bold** ~~no~~",
    "SELECT * FROM t;",
    "[1, [2, [3]]]",
    '{"key": null}',
    "  two",
    "   three   ",
    "a    b",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    " \n \n",
    "\n\n\n   ",
    "a\u00a0b",
    "end ",
    "...",
    "……",
    "'''",
    "```````",
    "------=====",
    "\u200b",
    "e.g. i.e.",
    "O'Neil's",
    "ALLCAPS",
    "camelCaseWord",
    "MiXeD",
    "ß",
)
SPECIAL_TEXTS = ("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<0x41>", "[PAD300]", "<bos>")

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = {**BYTES, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


# By llama.cpp's name: pre-tokenizer, `ignore_merges`.
PRE_TOKENIZERS = {
    "llama-bpe": (sequence(split(LLAMA3), BYTES), True),
    "dbrx": (sequence(split(LLAMA3, "Removed", True), BYTES), False),
    "qwen2": (sequence(split(LLAMA3.replace("{1,3}", "")), BYTES), False),
    "tekken": (sequence(split(TEKKEN), BYTES), True),
    "gpt-2": (GPT2, False),
    "smollm": (sequence(DIGITS, GPT2), False),
    "deepseek-v3": (sequence(split(r"\p{N}{1,3}"), split("[一-龥\u3040-ゟ゠-ヿ]+"), split(DEEPSEEK), BYTES), False),
}


def texts() -> list[str]:
    """Fragments, each alone and then several in a row."""
    chance = random.Random(68)
    made = [*FRAGMENTS, *SPECIAL_TEXTS]
    while len(made) < COUNT:
        parts = chance.sample(FRAGMENTS, chance.randint(2, 3))
        made.append(chance.choice(("", " ", "\n", "  ")).join(parts))
    return made


def corpus() -> list[str]:
    return [(ROOT / "LICENSE").read_text("utf-8"), *texts()]


def write_json(folder: Path, **files: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        (folder / f"{name}.json").write_text(text + "\n", "utf-8")


def plain_ids(tokenizer: Tokenizer) -> list[list[int]]:
    tokenizer.encode_special_tokens = True
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts()]


def byte_level() -> Tokenizer:
    """A byte-level BPE trained on whole texts, so that its merges cross every border that a pre-tokenizer sets."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, show_progress=False, min_frequency=2)
    tokenizer.train_from_iterator([line for text in corpus() for line in text.splitlines(True)], trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|endoftext|>", "<|im_start|>")])
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))]
    )
    return tokenizer


def train_sentencepiece(**options: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in corpus() for line in text.splitlines()),
        model_writer=model,
        vocab_size=SIZE,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def added(texts_by_id: dict[int, str], special: bool = True) -> dict[str, dict[str, Any]]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": special}
    return {str(number): {"content": text, **flags} for number, text in texts_by_id.items()}


def sentencepiece_ids(model: bytes) -> list[list[int]]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.encode(text) for text in texts()]


def merges_of(model: bytes) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a SentencePiece model: each way to make a piece of two, by its score."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = {processor.id_to_piece(number): number for number in range(processor.get_piece_size())}
    ranked = []
    for text, number in vocabulary.items():
        if processor.is_byte(number) or processor.is_control(number) or processor.is_unknown(number):
            continue
        for at in range(1, len(text)):
            if text[:at] in vocabulary and text[at:] in vocabulary:
                ranked.append((-processor.get_score(number), at, text[:at], text[at:]))
    return vocabulary, [(left, right) for *_, left, right in sorted(ranked)]


def with_old_merges(saved: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json whose merges are texts, as before transformers 4.45."""
    model = saved["model"]
    return {**saved, "model": {**model, "merges": [" ".join(pair) for pair in model["merges"]]}}


def byte_fallback(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], specials: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=list(merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return tokenizer


def trained_byte_fallback() -> Tokenizer:
    """A tokenizer of Gemma's kind whose merges were trained, so that most tokens are made in one way only."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+|▁+"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, show_progress=False, limit_alphabet=90, special_tokens=names, min_frequency=2
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    saved = json.loads(tokenizer.to_str())["model"]
    merges = [(left, right) for left, right in saved["merges"]]
    made = byte_fallback(saved["vocab"], merges, names[:4])
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return made


def main() -> None:
    shutil.rmtree(TARGET, ignore_errors=True)
    ids: dict[str, list[list[int]]] = {}

    tokenizer = byte_level()
    saved = json.loads(tokenizer.to_str())
    chatml = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": "{{ messages }}"}
    saved["pre_tokenizer"] = PRE_TOKENIZERS["qwen2"][0]
    write_json(TARGET / "byte-level", tokenizer=saved, tokenizer_config=chatml)
    for name, (pre_tokenizer, whole_pieces) in PRE_TOKENIZERS.items():
        model = {**saved["model"], "ignore_merges": whole_pieces}
        variant = Tokenizer.from_str(json.dumps({**saved, "pre_tokenizer": pre_tokenizer, "model": model}))
        ids[name] = plain_ids(variant)

    llama = train_sentencepiece()
    folder = TARGET / "sentencepiece-llama"
    decoder = added({0: "<unk>", 1: "<s>", 2: "</s>"})
    write_json(
        folder,
        added_tokens={"<|im_start|>": 600, "<tool>": 601},
        tokenizer_config={
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": decoder,
            "bos_token": "<s>",
            "eos_token": {"__type": "AddedToken", **decoder["2"]},
            "unk_token": "<unk>",
        },
    )
    (folder / "tokenizer.model").write_bytes(llama)
    ids[folder.name] = sentencepiece_ids(llama)

    ids_of_gemma = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "bos_piece": "<bos>", "eos_piece": "<eos>"}
    runs = ["▁" * length for length in range(2, 9)] + ["\n\n", "\n\n\n", "<table>"]
    gemma = train_sentencepiece(add_dummy_prefix=False, user_defined_symbols=runs, **ids_of_gemma)
    folder = TARGET / "sentencepiece-gemma"
    write_json(folder, tokenizer_config={"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"})
    (folder / "tokenizer.model").write_bytes(gemma)
    ids[folder.name] = sentencepiece_ids(gemma)

    mistral = byte_fallback(*merges_of(llama), ["<unk>", "<s>", "</s>"])
    mistral.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    mistral.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder = TARGET / "merges-mistral"
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder, tokenizer=with_old_merges(json.loads(mistral.to_str())), tokenizer_config=special)
    ids[folder.name] = plain_ids(mistral)

    trained = trained_byte_fallback()
    folder = TARGET / "merges-gemma"
    write_json(folder, tokenizer=json.loads(trained.to_str()), tokenizer_config={"bos_token": "<bos>"})
    ids[folder.name] = plain_ids(trained)

    pre_tokenizers_json = {
        name: {"pre_tokenizer": steps, "ignore_merges": whole_pieces}
        for name, (steps, whole_pieces) in PRE_TOKENIZERS.items()
    }
    write_json(TARGET, texts=texts(), ids=ids, pre_tokenizers=pre_tokenizers_json)


if __name__ == "__main__":
    main()
