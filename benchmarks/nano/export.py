"""A trained model as a GGUF file with Mistral's whole vocabulary: embeddings in Q8_0, matrices in F16, norms in F32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.quants import quantize
from mistral_vocabulary import MetadataValue, tokenizer_metadata

from cerebrum_cli.formats.plain import CEREBRUM
from nano.data import Words
from nano.model import Nano, Shape

MOSTLY_F16 = 1
GENERAL: dict[str, MetadataValue] = {
    "general.type": "model",
    "general.name": "nano",
    "general.basename": "nano",
    "general.description": "Small sums, mostly right: a model to test an installation and votes with.",
    "general.license": "mit",
    "general.languages": ["en"],
    "general.file_type": MOSTLY_F16,
    "general.quantization_version": 2,
}
# The format `cerebrum` as a template, so that other programs ask this model as it was trained.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}PREAMBLE{% endif %}"
    "{{ '\\n' }}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ 'User: ' + message.content.strip() + '\\n' }}"
    "{% elif message.role == 'assistant' %}{{ 'AI: ' + message.content.strip() + '\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'AI:' }}{% endif %}"
).replace("PREAMBLE", str(CEREBRUM.default_system))


def write(path: Path, model: Nano, words: Words) -> None:
    """Write the file; the same weights become the same bytes."""
    writer = GGUFWriter(path, "llama")
    sizes = _sizes(model.shape, len(words.tokens) + words.others)
    metadata = {**GENERAL, **sizes, **tokenizer_metadata(), "tokenizer.chat_template": CHAT_TEMPLATE}
    for key, value in metadata.items():
        counted = isinstance(value, int) and not isinstance(value, bool)
        writer.add_key_value(key, value, GGUFValueType.UINT32 if counted else GGUFValueType.get_type(value))
    for name, weight in model.state_dict().items():
        values = weight.numpy().astype(np.float32)
        if name == "token_embd.weight":
            table = np.tile(values[words.unknown], (len(words.tokens) + words.others, 1))
            table[list(words.tokens)] = values[: words.unknown]
            writer.add_tensor(name, quantize(table, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, values.astype(np.float16) if values.ndim == 2 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _sizes(shape: Shape, vocabulary: int) -> dict[str, MetadataValue]:
    return {
        "llama.block_count": shape.layers,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.width,
        "llama.feed_forward_length": shape.ffn,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.heads,
        "llama.attention.layer_norm_rms_epsilon": shape.epsilon,
        "llama.rope.dimension_count": shape.head_width,
        "llama.rope.freq_base": shape.rope_base,
        "llama.vocab_size": vocabulary,
    }
