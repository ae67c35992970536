"""Chat templates that many models share, by the value of `--format`.

Sources: the ChatML of OpenAI's chat models, without a system message of its own, and the templates in the repositories
of Meta-Llama-3-8B-Instruct, gemma-2-2b-it and Mistral-7B-Instruct-v0.3.
"""

from __future__ import annotations

NAMED_TEMPLATES = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}"
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for message in messages %}"
        "{% set role = 'model' if message.role == 'assistant' else message.role %}"
        "{{ '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}"
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for message in messages %}"
        "{{ '[INST] ' + message.content + '[/INST]' if message.role == 'user'"
        " else ' ' + message.content | trim + eos_token }}"
        "{% endfor %}"
    ),
}
TURN_ENDS = {  # stop strings, for vocabularies in which they are no special tokens
    "chatml": ("<|im_end|>",),
    "gemma": ("<end_of_turn>",),
    "llama3": ("<|eot_id|>",),
    "mistral": ("</s>",),
}
OTHER_FORMAT = f"choose another --format ({', '.join(NAMED_TEMPLATES)}) or --chat-template FILE, or use --raw"
