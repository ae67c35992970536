"""How known families of models write function calls: a row for each, with the documentation that says so."""

from __future__ import annotations

from typing import NamedTuple

from cerebrum_cli.core.text import Texts
from cerebrum_cli.formats.call_forms import Syntax, any_form
from cerebrum_cli.formats.known_forms import (
    APERTUS,
    BARE_PYTHON,
    COMMAND_A,
    COMMAND_R,
    CPM,
    DEEPSEEK,
    DSML,
    FUNCTION_CALL,
    FUNCTION_GEMMA,
    FUNCTION_TAG,
    FUNCTOOLS,
    GEMMA_4,
    GIGACHAT,
    GRANITE_3,
    HARMONY,
    INTERN,
    INVOKED,
    JSON_IN_TAG,
    JSON_IN_TAGS,
    KEYS_AND_VALUES,
    KIMI,
    LFM,
    LISTED_MISTRAL,
    LLAMA_3,
    LLAMA_4,
    LONGCAT,
    NAMED_MISTRAL,
    NEMOTRON,
    OLMO,
    PHI,
    SEED,
    SOLAR,
    STEP,
    TAGS_ON_LINES,
    XLAM,
)

HUB = "https://huggingface.co"
GEMMA = "https://ai.google.dev/gemma/docs"
LLAMA = "https://www.llama.com/docs/model-cards-and-prompt-formats"
TEMPLATES = "https://github.com/ggml-org/llama.cpp/blob/master/models/templates"
VLLM = "https://github.com/vllm-project/vllm/blob/main"


class ToolFamily(NamedTuple):
    """How models of a family write calls.

    - `texts`: all of them are in its chat template, and not in that of a family above
    - `source`: the address of the documentation, or of the template, that shows such calls
    """

    name: str
    texts: Texts
    syntax: Syntax
    source: str


FAMILIES = (
    ToolFamily(
        "gpt-oss",
        ("<|channel|>commentary", "functions."),
        HARMONY,
        "https://github.com/openai/harmony/blob/main/docs/format.md",
    ),
    ToolFamily(
        "Kimi K2",
        ("<|tool_calls_section_begin|>",),
        KIMI,
        f"{HUB}/moonshotai/Kimi-K2-Instruct/blob/main/docs/tool_call_guidance.md",
    ),
    ToolFamily("DeepSeek V3.2, V4", ("DSML",), DSML, f"{HUB}/deepseek-ai/DeepSeek-V3.2/tree/main/encoding"),
    ToolFamily("DeepSeek V3, R1, V3.1", ("<｜tool▁calls▁begin｜>",), DEEPSEEK, f"{HUB}/deepseek-ai/DeepSeek-V3.1"),
    ToolFamily("LFM2.5 8B", ("<|tool_call_start|>",), LFM, f"{TEMPLATES}/LFM2.5-8B-A1B.jinja"),
    ToolFamily("LFM2, LFM2.5", ("List of tools: ",), LFM, f"{HUB}/LiquidAI/LFM2-1.2B"),
    ToolFamily("Gemma 4", ("<|tool_call>call:",), GEMMA_4, f"{GEMMA}/capabilities/text/function-calling-gemma4"),
    ToolFamily("FunctionGemma", ("<start_function_call>",), FUNCTION_GEMMA, f"{GEMMA}/functiongemma"),
    ToolFamily("GLM 4.5, 4.6, 4.7", ("<arg_key>", "<|observation|>"), KEYS_AND_VALUES, f"{HUB}/zai-org/GLM-4.6"),
    ToolFamily("Ling 3", ("<arg_key>", "<role>"), KEYS_AND_VALUES, f"{TEMPLATES}/inclusionai-ling-3.0-flash.jinja"),
    ToolFamily("Laguna", ("<arg_key>", "<assistant>"), KEYS_AND_VALUES, f"{TEMPLATES}/poolside-Laguna-XS-2.1.jinja"),
    ToolFamily("LongCat Flash", ("<longcat_tool_call>",), LONGCAT, f"{HUB}/meituan-longcat/LongCat-Flash-Chat"),
    ToolFamily(
        "MiniMax M2",
        ("<minimax:tool_call>",),
        INVOKED,
        f"{HUB}/MiniMaxAI/MiniMax-M2/blob/main/docs/tool_calling_guide.md",
    ),
    ToolFamily(
        "MiniMax M1",
        ("<tool_calls>", "<beginning_of_sentence>"),
        JSON_IN_TAGS,
        f"{HUB}/MiniMaxAI/MiniMax-M1-80k/blob/main/docs/function_call_guide.md",
    ),
    ToolFamily("MiniCPM5", ('<function name="', '<param name="'), CPM, f"{TEMPLATES}/openbmb-MiniCPM5-1B.jinja"),
    ToolFamily("Step 3", ("steptml:",), STEP, f"{VLLM}/tests/tool_parsers/test_step3_tool_parser.py"),
    ToolFamily("Seed-OSS", ("<seed:tool_call>",), SEED, f"{HUB}/ByteDance-Seed/Seed-OSS-36B-Instruct"),
    ToolFamily(
        "Nemotron 3",
        ("<parameter=", "truncate_history_thinking"),
        TAGS_ON_LINES,
        f"{TEMPLATES}/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.jinja",
    ),
    ToolFamily(
        "Step 3.5",
        ("<parameter=", "functions in JSONSchema format"),
        TAGS_ON_LINES,
        f"{TEMPLATES}/StepFun3.5-Flash.jinja",
    ),
    ToolFamily(
        "Qwen3-Coder, Qwen3.5", ("<function=", "<parameter="), TAGS_ON_LINES, f"{HUB}/Qwen/Qwen3-Coder-30B-A3B-Instruct"
    ),
    ToolFamily(
        "Functionary 3.1", ("<function=example_function_name>",), FUNCTION_TAG, f"{HUB}/meetkai/functionary-medium-v3.1"
    ),
    ToolFamily(
        "Mistral Small 3.2, Magistral, Devstral, Ministral 3",
        ("[TOOL_CALLS]", "[ARGS]"),
        any_form(NAMED_MISTRAL, LISTED_MISTRAL),
        f"{HUB}/mistralai/Mistral-Small-3.2-24B-Instruct-2506",
    ),
    ToolFamily(
        "Mistral 7B v0.3, Nemo, Large 2",
        ("[TOOL_CALLS]",),
        any_form(LISTED_MISTRAL, NAMED_MISTRAL),
        f"{HUB}/mistralai/Mistral-Nemo-Instruct-2407",
    ),
    ToolFamily("Apertus", ("<|tools_prefix|>",), APERTUS, f"{HUB}/swiss-ai/Apertus-8B-Instruct-2509"),
    ToolFamily("Nemotron Nano 2", ("<TOOLCALL>",), NEMOTRON, f"{HUB}/nvidia/NVIDIA-Nemotron-Nano-9B-v2"),
    ToolFamily(
        "Command R7B, Command A", ("<|START_ACTION|>",), COMMAND_A, f"{HUB}/CohereLabs/c4ai-command-r7b-12-2024"
    ),
    ToolFamily("Command R, Command R+", ("Action:", "```json"), COMMAND_R, f"{HUB}/CohereLabs/c4ai-command-r-plus"),
    ToolFamily(
        "Granite 3", ("<|tool_call|>", "<|start_of_role|>"), GRANITE_3, f"{HUB}/ibm-granite/granite-3.3-8b-instruct"
    ),
    ToolFamily(
        "Granite 4", ("<tool_call>", "<|start_of_role|>"), JSON_IN_TAG, f"{HUB}/ibm-granite/granite-4.0-h-small"
    ),
    ToolFamily(
        "Granite 20B function calling",
        ("<|function_call_library|>",),
        FUNCTION_CALL,
        f"{HUB}/ibm-granite/granite-20b-functioncalling",
    ),
    ToolFamily("Phi-4-mini", ("<|tool|>", "<|/tool|>"), PHI, f"{VLLM}/examples/tool_chat_template_phi4_mini.jinja"),
    ToolFamily("FireFunction 2", ("functools[",), FUNCTOOLS, f"{HUB}/fireworks-ai/llama-3-firefunction-v2"),
    ToolFamily("InternLM 2.5", ("<|plugin|>",), INTERN, f"{VLLM}/examples/tool_chat_template_internlm2_tool.jinja"),
    ToolFamily(
        "Hunyuan A13B", ("<tool_calls>[{", "<|startoftext|>"), JSON_IN_TAGS, f"{HUB}/tencent/Hunyuan-A13B-Instruct"
    ),
    ToolFamily(
        "Apriel 1.5, 1.6",
        ("<tool_calls>", "[BEGIN FINAL RESPONSE]"),
        JSON_IN_TAGS,
        f"{TEMPLATES}/unsloth-Apriel-1.5.jinja",
    ),
    ToolFamily("Jamba 1.5", ("<tool_calls>", "<|bom|>"), JSON_IN_TAGS, f"{HUB}/ai21labs/AI21-Jamba-Mini-1.5"),
    ToolFamily("Solar Open", ("<|tool_call:begin|>",), SOLAR, f"{TEMPLATES}/upstage-Solar-Open-100B.jinja"),
    ToolFamily(
        "GigaChat 3", ("function call", "<|message_sep|>"), GIGACHAT, f"{TEMPLATES}/GigaChat3.1-10B-A1.8B.jinja"
    ),
    ToolFamily("Olmo 3", ("<function_calls>",), OLMO, f"{VLLM}/examples/tool_chat_template_olmo3.jinja"),
    ToolFamily("Llama 4", ("<|header_start|>", "<|eot|>"), LLAMA_4, f"{LLAMA}/llama4/"),
    ToolFamily(
        "ToolACE",
        ("[func_name1(params_name1=params_value1",),
        BARE_PYTHON,
        f"{VLLM}/examples/tool_chat_template_toolace.jinja",
    ),
    ToolFamily("xLAM 2", ("xLAM",), XLAM, f"{VLLM}/examples/tool_chat_template_xlam_llama.jinja"),
    ToolFamily("Llama 3.1, 3.2, 3.3", ("<|start_header_id|>", "ipython"), LLAMA_3, f"{LLAMA}/llama3_1/"),
    ToolFamily(
        "Hermes 2 Pro, Hermes 3",
        ("<tool_call>", "function calling AI model"),
        JSON_IN_TAG,
        "https://github.com/NousResearch/Hermes-Function-Calling",
    ),
    ToolFamily("EXAONE 4", ("<tool_call>", "[|tool|]"), JSON_IN_TAG, f"{HUB}/LGAI-EXAONE/EXAONE-4.0-32B"),
    ToolFamily("SmolLM3", ("<tool_call>", "xml_tools"), JSON_IN_TAG, f"{HUB}/HuggingFaceTB/SmolLM3-3B"),
    ToolFamily(
        "Qwen2.5, Qwen3, QwQ, MiMo",
        ("<tool_call>", "within <tool_call></tool_call> XML tags"),
        JSON_IN_TAG,
        "https://qwen.readthedocs.io/en/latest/framework/function_call.html",
    ),
)


def family_of(template: str) -> ToolFamily | None:
    """The family of a chat template; None if it is not known."""
    return next((family for family in FAMILIES if all(text in template for text in family.texts)), None)
