"""Whether to repack weights while a model loads: generation is then faster, but the first token comes later.

The process takes longer, by about as much as it takes to generate some dozens of tokens, and with AVX-512, prompts are
evaluated at 0.65 times the speed. Qwen2.5-Coder 1.5B in Q4_K_M on two threads, whole processes, as in the file /
repacked:

| processor | all but tokens, s | a token, ms | break-even length of the reply, tokens |
|---|---|---|---|
| AMD EPYC, AVX-512 | 0.76 more | 34 / 26.5 | 84 |
| Intel Xeon, AVX-512 | 0.79 more | 117 / 97 | 43 |
| Intel Xeon, AVX2 | 0.66 more | 137 / 119 | 41 |

What it costs and what it saves are both in proportion to the bytes of the weights, so the number of tokens depends on
the processor alone, and grows with its speed of generation.
"""

from __future__ import annotations

from pathlib import Path

from cerebrum_cli.engine.machine import instruction_set
from cerebrum_cli.engine.requests import LoadOptions
from cerebrum_cli.engine.speed import load_speed

TOKENS = 28  # of a reply that make up for the longer load
TOKENS_PER_GBS = 1.5  # further ones, for each GB/s of generation
AVX512_PROMPT = 0.2  # further tokens of a reply, for each token of the prompt


def plan_repacking(options: LoadOptions, free: int, records: Path | None) -> bool:
    """Whether to repack weights with this processor and so many free bytes; `records` has the speed of replies.

    Other weights than K-quants, and those on other processors than x86, are repacked, which is llama.cpp's default:
    Q4_0 as in the file is slower in everything. K-quants on x86 are repacked for a chat, for a batch without AVX-512
    (32 sequences as in the file are 1.05 to 1.15 times as fast with it, 0.9 times without), and for a single reply
    unless it is expected to end later, if memory also holds the file: otherwise the next command would read it again.
    """
    instructions = instruction_set()
    is_k_quant = "_K" in (options.quantization or "")
    if not is_k_quant or instructions not in ("x86", "avx512") or options.whole_context:
        return True
    if options.context.slots > 1:
        return instructions == "x86"
    if 2 * options.sizes.weight_bytes > free:
        return False
    if not options.reply_tokens:
        return True
    generation = load_speed(records).generation if records else 0
    longer_load = TOKENS + TOKENS_PER_GBS * generation / 1e9
    longer_prompt = AVX512_PROMPT * options.prompt_tokens if instructions == "avx512" else 0
    return options.reply_tokens > longer_load + longer_prompt
