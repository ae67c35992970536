"""Families of models whose chat template hides or misstates how they write function calls.

How any other model writes calls is learned from its template (`tool_syntax`). tests/data/calls.json has documented
calls of each family.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cerebrum_cli.core.text import Texts
from cerebrum_cli.formats.call_readers import JSON_START, NAME, CallSyntax, Form, Syntaxes


class ToolFamily(NamedTuple):
    """How models of a family write calls; `texts` are all in its chat template, and not in that of a family above."""

    name: str
    texts: Texts
    syntaxes: Syntaxes


def after(opening: str, closing: str = "", form: Form = "JSON call") -> CallSyntax:
    """Calls after a text, up to another one."""
    words = r"\s*".join(map(re.escape, opening.split()))
    begins = r"(?=\[?\s*[A-Za-z_])" if form == "Python" else JSON_START
    markers = (opening, closing) if closing else (opening,)
    return CallSyntax(re.compile(rf"{words}\s*{begins}"), form, closing=closing, openings=(opening,), markers=markers)


def named(header: str, *openings: str, markers: Texts = (), in_headers: bool = False) -> CallSyntax:
    """Calls as a header, which has the name, and arguments as JSON."""
    return CallSyntax(
        re.compile(f"(?s){header}"),
        "JSON",
        openings=() if in_headers else openings,
        markers=(*openings, *markers),
        in_headers=in_headers,
    )


PARAMETER = r"(?s)\s*<parameter=(?P<key>[^<>\s\"]+?)>\n?"
PARAMETER_ENDS = r"<parameter=|</function>|</tool_call>|<tool_call>"
FUNCTION_TAG = named(rf"<function={NAME}>\s*(?=\{{)", "<function=", markers=("</function>",))

FAMILIES = (
    # The template shows one place of the function's name; the model writes it in others, too, and may omit arguments.
    # https://github.com/openai/harmony/blob/main/docs/format.md
    ToolFamily(
        "gpt-oss",
        ("<|channel|>commentary", "functions."),
        (
            named(
                r"to=(?!assistant|user|self)(?:functions\.)?(?P<name>[\w.-]+)(?:(?!<\|(?:message|start|end)\|>).)*<\|message\|>",
                markers=("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|call|>"),
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
            named(
                rf"<\|tool_call_begin\|>\s*{NAME}(?::\d+)?\s*<\|tool_call_argument_begin\|>",
                *("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
                markers=("<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"),
            ),
        ),
    ),
    # The templates of R1 fail with calls.
    # https://github.com/ggml-org/llama.cpp/blob/master/models/templates/deepseek-ai-DeepSeek-V3.1.jinja
    ToolFamily(
        "DeepSeek V3, R1, V3.1",
        ("<｜tool▁calls▁begin｜>",),
        (
            named(
                rf"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?{NAME}\s*(?:<｜tool▁sep｜>|```(?:json)?)",
                *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
                markers=("<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
            ),
        ),
    ),
    # Most of its templates show functions, but not how to call them.
    # https://github.com/vllm-project/vllm/blob/main/tests/tool_parsers/test_lfm2_tool_parser.py
    ToolFamily(
        "LFM2, LFM2.5",
        ("List of tools: ",),
        (
            after("<|tool_call_start|>", "<|tool_call_end|>", "Python"),
            after("<|tool_call_start|>", "<|tool_call_end|>"),
        ),
    ),
    # Models omit the tag around a call, or the end of an argument, which their templates show.
    # https://github.com/ggml-org/llama.cpp/blob/master/models/templates/Qwen3-Coder.jinja
    ToolFamily(
        "Qwen3-Coder, Qwen3.5, Nemotron 3, Step 3.5",
        ("<tool_call>", "<function=", "<parameter="),
        (
            CallSyntax(
                re.compile(rf"<function={NAME}>(?=\s*(?:<|\Z))"),
                "pairs",
                pairs=(
                    re.compile(
                        PARAMETER
                        + r"(?P<value>(?:(?!\n<(?:parameter|function)=).)*?)\n?</parameter>"
                        + rf"(?=\s*(?:{PARAMETER_ENDS}|\Z))"
                    ),
                    re.compile(rf"{PARAMETER}(?P<value>.*?)\n?(?=\s*(?:{PARAMETER_ENDS}|\Z))"),
                ),
                openings=("<tool_call>", "<function="),
                markers=("</function>", "</parameter>", "<tool_call>", "</tool_call>"),
            ),
        ),
    ),
    # Templates differ in whether calls have an id, and models do not follow them.
    # https://github.com/ggml-org/llama.cpp/blob/master/models/templates/Mistral-Small-3.2-24B-Instruct-2506.jinja
    ToolFamily(
        "Mistral Small 3.2, Magistral, Devstral, Ministral 3",
        ("[TOOL_CALLS]", "[ARGS]"),
        (
            named(
                rf"\[TOOL_CALLS\]\s*{NAME}\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\])?\s*(?=\{{)",
                "[TOOL_CALLS]",
                markers=("[CALL_ID]", "[ARGS]"),
            ),
            after("[TOOL_CALLS]"),
        ),
    ),
    # The template shows functions, but no calls; 3.0 and 3.1 write different tags.
    # https://github.com/ggml-org/llama.cpp/blob/master/models/templates/ibm-granite-granite-3.3-2B-Instruct.jinja
    ToolFamily(
        "Granite 3",
        ("<|tool_call|>", "<|start_of_role|>"),
        (after("<|tool_call|>"), after("<tool_call>", "</tool_call>")),
    ),
    # The template shows functions, but no calls.
    # https://github.com/vllm-project/vllm/blob/main/tests/tool_parsers/test_phi4mini_tool_parser.py
    ToolFamily("Phi-4-mini", ("<|tool|>", "<|/tool|>"), (after("functools"), after("<|tool_call|>", "<|/tool_call|>"))),
    # The template takes calls as text in a field of its own.
    # https://github.com/vllm-project/vllm/blob/main/tests/tool_parsers/test_olmo3_tool_parser.py
    ToolFamily("Olmo 3", ("<function_calls>",), (after("<function_calls>", "</function_calls>", "Python"),)),
    # The template writes JSON; the model writes Python.
    # https://github.com/meta-llama/llama-models/blob/main/models/llama4/prompt_format.md
    ToolFamily("Llama 4", ("<|header_start|>", "<|eot|>"), (after("<|python_start|>", "<|python_end|>", "Python"),)),
    # The template writes JSON without markup; models also write tags, and text around the JSON.
    # https://github.com/meta-llama/llama-models/blob/main/models/llama3_3/prompt_format.md
    ToolFamily(
        "Llama 3.1, 3.2, 3.3",
        ("<|start_header_id|>", "ipython"),
        (
            CallSyntax(re.compile(r'(?=\{"name": "[\w.-]+", "parameters": )'), openings=('{"name": ',)),
            FUNCTION_TAG,
            after("<|python_tag|>"),
            after("<|python_tag|>", "<|eom_id|>", "Python"),
        ),
    ),
    # Qwen2.5-Coder also writes <tools>, the tag around functions; the template of SmolLM3 shows no calls.
    # https://github.com/ggml-org/llama.cpp/blob/master/models/templates/Qwen-Qwen2.5-7B-Instruct.jinja
    ToolFamily(
        "Qwen2.5, Qwen3, SmolLM3",
        ("within <tool_call></tool_call> XML tags",),
        (after("<tool_call>", "</tool_call>"), after("<tools>", "</tools>")),
    ),
)


def family_of(template: str) -> ToolFamily | None:
    """The family of a chat template; None if the template itself shows how its model writes calls."""
    return next((family for family in FAMILIES if all(text in template for text in family.texts)), None)
