"""Families of models whose chat template hides or misstates how they write function calls.

How any other model writes calls is learned from its template (`tool_syntax`). tests/data/calls.json has documented
calls of each family.
"""

from __future__ import annotations

from typing import NamedTuple

from cerebrum_cli.core.text import Texts
from cerebrum_cli.formats.tool_calls import CallSyntax, Syntaxes


class ToolFamily(NamedTuple):
    """How models of a family write calls; `texts` are all in its chat template, and not in that of a family above."""

    name: str
    texts: Texts
    syntaxes: Syntaxes


FAMILIES = (
    # The template shows one place of the function's name; the model writes it in others, too, and may omit arguments.
    # https://github.com/openai/harmony/blob/main/docs/format.md
    ToolFamily(
        "gpt-oss",
        ("<|channel|>commentary", "functions."),
        (
            CallSyntax(
                "$recipient<|message|>$json<|call|>",
                others=("<|start|>", "<|channel|>", "<|constrain|>"),
                in_headers=True,
            ),
        ),
    ),
    # Two of its three templates fail with calls: they change a list, which the sandbox forbids.
    # https://github.com/MoonshotAI/Kimi-K2/blob/main/docs/tool_call_guidance.md
    ToolFamily(
        "Kimi K2",
        ("<|tool_calls_section_begin|>",),
        (
            CallSyntax(
                "<|tool_call_begin|>$name<|tool_call_argument_begin|>$json<|tool_call_end|>",
                section="<|tool_calls_section_begin|>",
                others=("<|tool_calls_section_end|>",),
            ),
        ),
    ),
    # The templates of R1 fail with calls.
    # https://github.com/ggml-org/llama.cpp/blob/master/models/templates/deepseek-ai-DeepSeek-V3.1.jinja
    ToolFamily(
        "DeepSeek V3, R1, V3.1",
        ("<｜tool▁calls▁begin｜>",),
        tuple(
            CallSyntax(call, section="<｜tool▁calls▁begin｜>", others=("<｜tool▁calls▁end｜>",))
            for call in (
                "<｜tool▁call▁begin｜>function<｜tool▁sep｜>$name```json$json```<｜tool▁call▁end｜>",
                "<｜tool▁call▁begin｜>$name<｜tool▁sep｜>$json<｜tool▁call▁end｜>",
            )
        ),
    ),
    # Most of its templates show functions, but not how to call them.
    # https://github.com/vllm-project/vllm/blob/main/tests/tool_parsers/test_lfm2_tool_parser.py
    ToolFamily(
        "LFM2, LFM2.5",
        ("List of tools: ",),
        (
            CallSyntax("<|tool_call_start|>$python<|tool_call_end|>"),
            CallSyntax("<|tool_call_start|>$calls<|tool_call_end|>"),
        ),
    ),
    # Models omit the tag around a call, or the end of an argument, which their templates show.
    # https://github.com/ggml-org/llama.cpp/blob/master/models/templates/Qwen3-Coder.jinja
    ToolFamily(
        "Qwen3-Coder, Qwen3.5, Nemotron 3, Step 3.5",
        ("<tool_call>", "<function=", "<parameter="),
        (
            CallSyntax(
                "<function=$name>$pairs</function>",
                pair="<parameter=$key>\n$value\n</parameter>",
                section="<tool_call>",
                others=("</tool_call>",),
            ),
        ),
    ),
    # Templates differ in whether calls have an id, and models do not follow them.
    # https://github.com/ggml-org/llama.cpp/blob/master/models/templates/Mistral-Small-3.2-24B-Instruct-2506.jinja
    ToolFamily(
        "Mistral Small 3.2, Magistral, Devstral, Ministral 3",
        ("[TOOL_CALLS]", "[ARGS]"),
        (
            CallSyntax("[TOOL_CALLS]$name[CALL_ID]$id[ARGS]$json"),
            CallSyntax("[TOOL_CALLS]$name[ARGS]$json"),
            CallSyntax("[TOOL_CALLS]$name$json"),
            CallSyntax("[TOOL_CALLS]$calls"),
        ),
    ),
    # The template shows functions, but no calls; 3.0 and 3.1 write different tags.
    # https://github.com/ggml-org/llama.cpp/blob/master/models/templates/ibm-granite-granite-3.3-2B-Instruct.jinja
    ToolFamily(
        "Granite 3",
        ("<|tool_call|>", "<|start_of_role|>"),
        (CallSyntax("<|tool_call|>$calls"), CallSyntax("<tool_call>$calls</tool_call>")),
    ),
    # The template shows functions, but no calls.
    # https://github.com/vllm-project/vllm/blob/main/tests/tool_parsers/test_phi4mini_tool_parser.py
    ToolFamily(
        "Phi-4-mini",
        ("<|tool|>", "<|/tool|>"),
        (CallSyntax("functools$calls"), CallSyntax("<|tool_call|>$calls<|/tool_call|>")),
    ),
    # The template takes calls as text in a field of its own.
    # https://github.com/vllm-project/vllm/blob/main/tests/tool_parsers/test_olmo3_tool_parser.py
    ToolFamily("Olmo 3", ("<function_calls>",), (CallSyntax("<function_calls>$python</function_calls>"),)),
    # The template writes JSON; the model writes Python.
    # https://github.com/meta-llama/llama-models/blob/main/models/llama4/prompt_format.md
    ToolFamily("Llama 4", ("<|header_start|>", "<|eot|>"), (CallSyntax("<|python_start|>$python<|python_end|>"),)),
    # The template writes JSON without markup; models also write tags, and text around the JSON.
    # https://github.com/meta-llama/llama-models/blob/main/models/llama3_3/prompt_format.md
    ToolFamily(
        "Llama 3.1, 3.2, 3.3",
        ("<|start_header_id|>", "ipython"),
        (
            CallSyntax('{"name": "$name", "parameters": $json}'),
            CallSyntax("<function=$name>$json</function>"),
            CallSyntax("<|python_tag|>$calls"),
            CallSyntax("<|python_tag|>$python<|eom_id|>"),
        ),
    ),
    # The prompt ends with the marker of the first call, so that the template seems to write none.
    # https://github.com/ggml-org/llama.cpp/blob/master/models/templates/meetkai-functionary-medium-v3.2.jinja
    ToolFamily("Functionary 3.2", (">>>all",), (CallSyntax("$name\n$json"), CallSyntax(">>>$name\n$json"))),
    # Qwen2.5-Coder also writes <tools>, the tag around functions; the template of SmolLM3 shows no calls.
    # https://github.com/ggml-org/llama.cpp/blob/master/models/templates/Qwen-Qwen2.5-7B-Instruct.jinja
    ToolFamily(
        "Qwen2.5, Qwen3, SmolLM3",
        ("within <tool_call></tool_call> XML tags",),
        (CallSyntax("<tool_call>$calls</tool_call>"), CallSyntax("<tools>$calls</tools>")),
    ),
)


def family_of(template: str) -> ToolFamily | None:
    """The family of a chat template; None if the template itself shows how its model writes calls."""
    return next((family for family in FAMILIES if all(text in template for text in family.texts)), None)
