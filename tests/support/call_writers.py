"""How known families write calls: for each, a function that writes calls as its models do."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from cerebrum_cli.core.tools import ToolCall

Writer = Callable[[Sequence[ToolCall]], str]


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def objects(before: str, after: str, separator: str = "\n", keys: tuple[str, str] = ("name", "arguments")) -> Writer:
    """Each call as a JSON object in markup of its own."""

    def write(calls: Sequence[ToolCall]) -> str:
        texts = [as_json(dict(zip(keys, (call.name, call.arguments), strict=True))) for call in calls]
        return separator.join(f"{before}{text}{after}" for text in texts)

    return write


def listed(before: str, after: str = "", keys: tuple[str, str] = ("name", "arguments")) -> Writer:
    """All calls in one JSON list."""
    write = objects("", "", ", ", keys)
    return lambda calls: f"{before}[{write(calls)}]{after}"


def by_name(before: str, after: str) -> Writer:
    return lambda calls: before + as_json([{call.name: call.arguments} for call in calls]) + after


def named(before: str, between: str, after: str, start: str = "", end: str = "") -> Writer:
    """Each call as a name and its arguments as JSON."""

    def write(calls: Sequence[ToolCall]) -> str:
        written = [f"{before}{call.name}{between}{as_json(call.arguments)}{after}" for call in calls]
        return start + "".join(written) + end

    return write


def pairs(head: str, pair: str, tail: str, start: str = "", end: str = "") -> Writer:
    """Each argument as a text or JSON, in markup with `NAME`, `KEY`, `VALUE` and `IS_TEXT`."""

    def write_pair(key: str, value: Any) -> str:
        is_text = isinstance(value, str)
        text = value if is_text else as_json(value)
        marked = pair.replace("KEY", key).replace("IS_TEXT", "true" if is_text else "false")
        return text.join(marked.split("VALUE"))

    def write(calls: Sequence[ToolCall]) -> str:
        texts = [
            head.replace("NAME", call.name) + "".join(write_pair(*item) for item in call.arguments.items()) + tail
            for call in calls
        ]
        return start + "".join(texts) + end

    return write


def python(before: str, after: str, separator: str = ", ") -> Writer:
    def write(calls: Sequence[ToolCall]) -> str:
        texts = [
            f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})" for call in calls
        ]
        return before + separator.join(texts) + after

    return write


def bare_keys(before: str, after: str, quote: str) -> Writer:
    def value_text(value: Any) -> str:
        match value:
            case str():
                return quote + value + quote
            case dict():
                return "{" + ",".join(f"{key}:{value_text(item)}" for key, item in value.items()) + "}"
            case list():
                return "[" + ",".join(map(value_text, value)) + "]"
        return as_json(value)

    return lambda calls: "".join(f"{before}call:{call.name}{value_text(call.arguments)}{after}" for call in calls)


JSON_IN_TAG = objects("<tool_call>\n", "\n</tool_call>")
LIST_IN_TAGS = listed("<tool_calls>", "</tool_calls>")
KEYS_AND_VALUES = pairs("<tool_call>NAME\n", "<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n", "</tool_call>")
TAGS_ON_LINES = pairs(
    "<tool_call>\n<function=NAME>\n", "<parameter=KEY>\nVALUE\n</parameter>\n", "</function>\n</tool_call>\n"
)
HARMONY = named("<|start|>assistant<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", "<|call|>")
WRITERS: dict[str, Writer] = {
    "gpt-oss": HARMONY,
    "Kimi K2": named(
        *("<|tool_call_begin|>functions.", ":0<|tool_call_argument_begin|>", "<|tool_call_end|>"),
        *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ),
    "DeepSeek V3.2, V4": pairs(
        '<｜DSML｜invoke name="NAME">\n',
        '<｜DSML｜parameter name="KEY" string="IS_TEXT">VALUE</｜DSML｜parameter>\n',
        "</｜DSML｜invoke>\n",
        *("<｜DSML｜function_calls>\n", "</｜DSML｜function_calls>"),
    ),
    "DeepSeek V3, R1, V3.1": named(
        *("<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "\n```json\n", "\n```<｜tool▁call▁end｜>"),
        *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    ),
    "LFM2.5 8B": python("<|tool_call_start|>[", "]<|tool_call_end|>"),
    "LFM2, LFM2.5": python("<|tool_call_start|>[", "]<|tool_call_end|>"),
    "Gemma 4": bare_keys("<|tool_call>", "<tool_call|>", '<|"|>'),
    "FunctionGemma": bare_keys("<start_function_call>", "<end_function_call>", "<escape>"),
    "GLM 4.5, 4.6, 4.7": KEYS_AND_VALUES,
    "Ling 3": KEYS_AND_VALUES,
    "Laguna": KEYS_AND_VALUES,
    "LongCat Flash": objects("<longcat_tool_call>\n", "\n</longcat_tool_call>"),
    "MiniMax M2": pairs(
        *('<invoke name="NAME">\n', '<parameter name="KEY">VALUE</parameter>\n', "</invoke>\n"),
        *("<minimax:tool_call>\n", "</minimax:tool_call>"),
    ),
    "MiniMax M1": lambda calls: "<tool_calls>\n" + objects("", "")(calls) + "\n</tool_calls>",
    "MiniCPM5": pairs('<function name="NAME">', '<param name="KEY">VALUE</param>', "</function>"),
    "Step 3": pairs(
        '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="NAME">',
        '<steptml:parameter name="KEY">VALUE</steptml:parameter>',
        "</steptml:invoke><｜tool_call_end｜>",
        *("<｜tool_calls_begin｜>", "<｜tool_calls_end｜>"),
    ),
    "Seed-OSS": pairs(
        *("<seed:tool_call>\n<function=NAME>\n", "<parameter=KEY>VALUE</parameter>\n"),
        "</function>\n</seed:tool_call>\n",
    ),
    "Nemotron 3": TAGS_ON_LINES,
    "Step 3.5": TAGS_ON_LINES,
    "Qwen3-Coder, Qwen3.5": TAGS_ON_LINES,
    "Functionary 3.1": named("<function=", ">", "</function>"),
    "Mistral Small 3.2, Magistral, Devstral, Ministral 3": named("[TOOL_CALLS]", "[CALL_ID]abcdef123[ARGS]", ""),
    "Mistral 7B v0.3, Nemo, Large 2": listed("[TOOL_CALLS] "),
    "Apertus": by_name("<|tools_prefix|>", "<|tools_suffix|>"),
    "Nemotron Nano 2": listed("<TOOLCALL>", "</TOOLCALL>"),
    "Command R7B, Command A": listed("<|START_ACTION|>", "<|END_ACTION|>", ("tool_name", "parameters")),
    "Command R, Command R+": listed("Action:\n```json\n", "\n```", ("tool_name", "parameters")),
    "Granite 3": listed("<|tool_call|> "),
    "Granite 4": JSON_IN_TAG,
    "Granite 20B function calling": objects("<function_call> ", ""),
    "Phi-4-mini": listed("functools"),
    "FireFunction 2": listed(" functools"),
    "InternLM 2.5": objects("<|action_start|><|plugin|>\n", "<|action_end|>", keys=("name", "parameters")),
    "Hunyuan A13B": LIST_IN_TAGS,
    "Apriel 1.5, 1.6": LIST_IN_TAGS,
    "Jamba 1.5": LIST_IN_TAGS,
    "Solar Open": named(
        *("<|tool_call:begin|>1a2b<|tool_call:name|>", "<|tool_call:args|>", "<|tool_call:end|>", "<|tool_calls|>")
    ),
    "GigaChat 3": objects("<|function_call|>", ""),
    "Olmo 3": python("<function_calls>\n", "\n</function_calls>", "\n"),
    "Llama 4": python("<|python_start|>[", "]<|python_end|>"),
    "ToolACE": python("[", "]"),
    "xLAM 2": listed(""),
    "Llama 3.1, 3.2, 3.3": objects("", "", "; ", ("name", "parameters")),
    "Hermes 2 Pro, Hermes 3": JSON_IN_TAG,
    "EXAONE 4": JSON_IN_TAG,
    "SmolLM3": JSON_IN_TAG,
    "Qwen2.5, Qwen3, QwQ, MiMo": JSON_IN_TAG,
}
