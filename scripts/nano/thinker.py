"""The model thinker, which reasons before its answer: its vocabulary, its chat template and its conversations.

As in today's reasoning models, the prompt opens a `<think>` block or holds an empty one, earlier replies are in the
prompt without their reasoning, and the markup consists of single tokens. The vocabulary is byte-level BPE, trained on
the conversations until each of their words is one token.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from random import Random

from scripts.nano.byte_alphabet import byte_alphabet
from scripts.nano.data import IGNORE_INDEX, NOT_A_SUM_RATE, TURNS, Example, Turn, Vocabulary, next_question
from scripts.nano.mistral_vocabulary import MetadataValue
from scripts.nano.questions import held_out
from scripts.nano.replies import NOT_A_SUM, Noise, work_out

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # token types of GGUF
PAD, START, END, OPEN, CLOSE = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"
SPECIAL_TOKENS = {PAD: CONTROL, START: CONTROL, END: CONTROL, OPEN: USER_DEFINED, CLOSE: USER_DEFINED}
BYTES = byte_alphabet()
SPECIAL = re.compile(f"({'|'.join(map(re.escape, SPECIAL_TOKENS))})")
# What llama.cpp's rule "qwen2" does to ASCII: each digit is a token, and a word includes the space before it.
WORDS = re.compile(
    r"'(?:[sdmt]|ll|ve|re)|[^\r\na-z0-9]?[a-z]+|[0-9]| ?[^\sa-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+", re.IGNORECASE
)
CHAT_TEMPLATE = """\
{%- set last = namespace(question=0) %}
{%- for message in messages if message.role == 'user' %}
    {%- set last.question = loop.index %}
{%- endfor %}
{%- set seen = namespace(questions=0) %}
{%- for message in messages %}
    {%- set content = message.content | trim %}
    {%- if message.role == 'user' %}
        {%- set seen.questions = seen.questions + 1 %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- set thought = message.reasoning_content or '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1] | trim %}
        {%- endif %}
        {%- if seen.questions == last.question %}
            {{- '<think>\\n' + thought | trim + '\\n</think>\\n\\n' }}
        {%- endif %}
    {%- endif %}
    {{- content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

OPENINGS = ("The sum is {}.", "I need {}.", "Let me see: {}.")
CLOSINGS = ("So it is {}.", "That is {}.", "")
JSON_REQUESTS = (" Answer in JSON.", " Reply as JSON.", ' Answer like {"answer": 0}.')
NOT_A_SUM_REASONING = "This is not a sum."
JSON_RATE = 0.3  # of turns
NO_THINKING_RATE, SHORTENED_RATE, SYSTEM_RATE, KEPT_RATE = 0.12, 0.12, 0.06, 0.1  # of conversations
SYSTEM_PROMPTS = ("You are a helpful assistant.", "Be brief.", "Think step by step.")
SURVEY_SIZE = 20_000  # conversations


class Tokenizer:
    """Byte-level BPE of ASCII text with special tokens."""

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        self.merges = tuple(merges)
        self.tokens = (*SPECIAL_TOKENS, *BYTES, *("".join(pair) for pair in merges))
        self._ids = {token: index for index, token in enumerate(self.tokens)}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.word = lru_cache(maxsize=10_000)(self._word)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text, with its special tokens."""
        ids: list[int] = []
        for part in SPECIAL.split(text):
            words = [part] if part in SPECIAL_TOKENS else []
            ids += [self._ids[word] for word in words] or [id for word in WORDS.findall(part) for id in self.word(word)]
        return tuple(ids)

    def _word(self, word: str) -> tuple[int, ...]:
        symbols = spell(word)
        while len(symbols) > 1:
            best = min(pairwise(symbols), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            symbols = merge(symbols, best)
        return tuple(self._ids[symbol] for symbol in symbols)

    def metadata(self) -> dict[str, MetadataValue]:
        """GGUF metadata of the vocabulary."""
        return {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": list(self.tokens),
            "tokenizer.ggml.token_type": [SPECIAL_TOKENS.get(token, NORMAL) for token in self.tokens],
            "tokenizer.ggml.merges": [" ".join(pair) for pair in self.merges],
            "tokenizer.ggml.eos_token_id": self._ids[END],
            "tokenizer.ggml.padding_token_id": self._ids[PAD],
            "tokenizer.ggml.add_bos_token": False,
        }


def spell(word: str) -> tuple[str, ...]:
    """The bytes of a word as symbols of the vocabulary."""
    return tuple(BYTES[byte] for byte in word.encode())


def merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Symbols with each occurrence of a pair merged, from the left."""
    out: list[str] = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


def train_tokenizer(seed: int) -> Tokenizer:
    """Merge the most frequent pair of symbols in many conversations until each word is one token."""
    counts = Counter(
        spell(word)
        for text in _survey(seed)
        for part in SPECIAL.split(text)
        if part not in SPECIAL_TOKENS
        for word in WORDS.findall(part)
    )
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter[tuple[str, str]]()
        for word, count in counts.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            return Tokenizer(merges)
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        counts = Counter({merge(word, best): count for word, count in counts.items()})


def collect_vocabulary(tokenizer: Tokenizer, seed: int) -> Vocabulary:
    """Vocabulary of a large sample of conversations."""
    tokens = {id for text in _survey(seed) for id in tokenizer.encode(text)}
    return Vocabulary(tokens, len(tokenizer.tokens))


def _survey(seed: int) -> Iterator[str]:
    """Generate many conversations as text."""
    random = Random(seed)
    yield f"{NOT_A_SUM_REASONING}\n{CLOSE}\n\n{NOT_A_SUM}{END}"
    for _ in range(SURVEY_SIZE):
        prompt, reply, _ = _conversation(random, Noise(error_rate=0.5), frozenset())
        yield f"{prompt}{reply}{END}"


def examples(tokenizer: Tokenizer, vocabulary: Vocabulary, random: Random, noise: Noise) -> Iterator[Example]:
    """Generate an endless stream of conversations, none of which has a held-out question."""
    excluded = frozenset(turns[0] for turns, _ in held_out())
    while True:
        if random.random() < NOT_A_SUM_RATE:
            prompt, reply, unlearned = _unknown_question(tokenizer, vocabulary, random)
        else:
            prompt_text, reply_text, skipped = _conversation(random, noise, excluded)
            prompt, reply = (vocabulary.encode(tokenizer.encode(text)) for text in (prompt_text, reply_text + END))
            unlearned = len(tokenizer.encode(reply_text[:skipped]))
        ids, first = (*prompt, *reply), len(prompt) + unlearned
        yield Example(ids[1:-1], tuple(id if at >= first else IGNORE_INDEX for at, id in enumerate(ids))[2:])


def _conversation(random: Random, noise: Noise, excluded: frozenset[str]) -> tuple[str, str, int]:
    """Generate a prompt, the reply to it, and the number of characters at the reply's start that are not learned."""
    turns: list[Turn] = []
    value: int | None = None
    keeps = random.random() < KEPT_RATE
    for _ in range(random.choice(TURNS)):
        question = next_question(random, value, excluded)
        steps = work_out(random, question.sum, noise)
        value = steps[-1][1]
        problem = f"{question.sum.left} {question.sum.operation} {question.sum.right}"
        lines = [random.choice(OPENINGS).format(problem), *(f"{text}." for text, _ in steps)]
        reasoning = "\n".join([*lines, random.choice(CLOSINGS).format(value)]).rstrip()
        wants_json = random.random() < JSON_RATE
        answer = f'{{"answer": {value}}}' if wants_json else f"The answer is {value}."
        turns += [
            ("user", question.text + (random.choice(JSON_REQUESTS) if wants_json else "")),
            ("assistant", f"{OPEN}\n{reasoning}\n{CLOSE}\n\n{answer}" if keeps else answer),
        ]
    if random.random() < SYSTEM_RATE:
        turns.insert(0, ("system", random.choice(SYSTEM_PROMPTS)))
    prompt = "".join(f"{START}{role}\n{content}{END}\n" for role, content in turns[:-1]) + f"{START}assistant\n{OPEN}\n"
    if random.random() < NO_THINKING_RATE:
        return f"{prompt}\n{CLOSE}\n\n", answer, 0
    if random.random() < SHORTENED_RATE:
        words = WORDS.findall(reasoning)
        shortened = "".join(words[: random.randrange(len(words))]).rstrip("\n") + f"\n{CLOSE}\n\n"
        return prompt, shortened + answer, len(shortened)
    return prompt, f"{reasoning}\n{CLOSE}\n\n{answer}", 0


def _unknown_question(
    tokenizer: Tokenizer, vocabulary: Vocabulary, random: Random
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Generate a question with many unknown tokens, so that the model learns to end its reply there too."""
    question = [
        random.choice((vocabulary.unknown_id, random.randrange(vocabulary.unknown_id)))
        for _ in range(random.randint(1, 16))
    ]
    question[random.randrange(len(question))] = vocabulary.unknown_id
    before, after = f"{START}user\n", f"{END}\n{START}assistant\n{OPEN}\n"
    reasoning = f"{NOT_A_SUM_REASONING}\n{CLOSE}\n\n" if random.random() >= NO_THINKING_RATE else ""
    start, end, reply = (
        vocabulary.encode(tokenizer.encode(text))
        for text in (before, after if reasoning else f"{after}\n{CLOSE}\n\n", f"{reasoning}{NOT_A_SUM}{END}")
    )
    return (*start, *question, *end), reply, 0
