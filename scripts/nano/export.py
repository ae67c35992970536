"""Write a trained model as GGUF with its full vocabulary: embeddings in Q8_0, matrices in F16, norms in F32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.quants import quantize

from cerebrum_cli.formats.prompt_format import CEREBRUM
from scripts.nano.data import Vocabulary
from scripts.nano.mistral_vocabulary import MetadataValue
from scripts.nano.model import Nano, Shape
from scripts.nano.thinker import CHAT_TEMPLATE as THINKER_TEMPLATE

MOSTLY_F16 = 1
# The `cerebrum` format as a chat template, so that other programs use the format of the training data.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}PREAMBLE{% endif %}"
    "{{ '\\n' }}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ 'User: ' + message.content.strip() + '\\n' }}"
    "{% elif message.role == 'assistant' %}{{ 'AI: ' + message.content.strip() + '\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'AI:' }}{% endif %}"
).replace("PREAMBLE", str(CEREBRUM.default_system))


@dataclass(frozen=True, slots=True)
class Description:
    """What the file says about a model: its name, a sentence on it, and its chat template."""

    name: str
    sentence: str
    chat_template: str


NANO = Description("nano", "Small sums, mostly right: a model to test an installation and votes with.", CHAT_TEMPLATE)
THINKER = Description("thinker", "Small sums, with reasoning: a model for tests.", THINKER_TEMPLATE)


def write_model(
    path: Path, model: Nano, vocabulary: Vocabulary, description: Description, tokenizer: Mapping[str, MetadataValue]
) -> None:
    """Write the file; equal weights give identical bytes."""
    writer = GGUFWriter(path, "llama")
    sizes = _shape_metadata(model.shape, len(vocabulary.tokens) + vocabulary.other_count)
    template = {"tokenizer.chat_template": description.chat_template}
    metadata = {**_general_metadata(description), **sizes, **tokenizer, **template}
    for key, value in metadata.items():
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        writer.add_key_value(key, value, GGUFValueType.UINT32 if is_integer else GGUFValueType.get_type(value))
    for name, weight in model.state_dict().items():
        values = weight.numpy().astype(np.float32)
        if name == "token_embd.weight":
            table = np.tile(values[vocabulary.unknown_id], (len(vocabulary.tokens) + vocabulary.other_count, 1))
            table[list(vocabulary.tokens)] = values[: vocabulary.unknown_id]
            writer.add_tensor(name, quantize(table, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, values.astype(np.float16) if values.ndim == 2 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _general_metadata(description: Description) -> dict[str, MetadataValue]:
    return {
        "general.type": "model",
        "general.name": description.name,
        "general.basename": description.name,
        "general.description": description.sentence,
        "general.license": "mit",
        "general.languages": ["en"],
        "general.file_type": MOSTLY_F16,
        "general.quantization_version": 2,
    }


def _shape_metadata(shape: Shape, vocabulary_size: int) -> dict[str, MetadataValue]:
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
        "llama.vocab_size": vocabulary_size,
    }
