"""How known families of models write function calls: a row for each, with the source that shows it."""

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

GEMMA = "https://ai.google.dev/gemma/docs"
LLAMA = "https://github.com/meta-llama/llama-models/blob/main/models"
TEMPLATES = "https://github.com/ggml-org/llama.cpp/blob/master/models/templates"
VLLM = "https://github.com/vllm-project/vllm/blob/main/tests/tool_parsers"


class ToolFamily(NamedTuple):
    """How models of a family write calls.

    - `texts`: all of them are in its chat template, and not in that of a family above
    - `source`: the address of documentation, a chat template or a parser's tests that show such calls
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
        "https://github.com/MoonshotAI/Kimi-K2/blob/main/docs/tool_call_guidance.md",
    ),
    ToolFamily("DeepSeek V3.2, V4", ("DSML",), DSML, f"{TEMPLATES}/deepseek-ai-DeepSeek-V3.2.jinja"),
    ToolFamily(
        "DeepSeek V3, R1, V3.1", ("<｜tool▁calls▁begin｜>",), DEEPSEEK, f"{TEMPLATES}/deepseek-ai-DeepSeek-V3.1.jinja"
    ),
    ToolFamily("LFM2.5 8B", ("<|tool_call_start|>",), LFM, f"{TEMPLATES}/LFM2.5-8B-A1B.jinja"),
    ToolFamily("LFM2, LFM2.5", ("List of tools: ",), LFM, f"{VLLM}/test_lfm2_tool_parser.py"),
    ToolFamily("Gemma 4", ("<|tool_call>call:",), GEMMA_4, f"{GEMMA}/capabilities/text/function-calling-gemma4"),
    ToolFamily(
        "FunctionGemma",
        ("<start_function_call>",),
        FUNCTION_GEMMA,
        f"{GEMMA}/functiongemma/formatting-and-best-practices",
    ),
    ToolFamily("GLM 4.5, 4.6, 4.7", ("<arg_key>", "<|observation|>"), KEYS_AND_VALUES, f"{TEMPLATES}/GLM-4.6.jinja"),
    ToolFamily("Ling 3", ("<arg_key>", "<role>"), KEYS_AND_VALUES, f"{TEMPLATES}/inclusionai-ling-3.0-flash.jinja"),
    ToolFamily("Laguna", ("<arg_key>", "<assistant>"), KEYS_AND_VALUES, f"{TEMPLATES}/poolside-Laguna-XS-2.1.jinja"),
    ToolFamily("LongCat Flash", ("<longcat_tool_call>",), LONGCAT, f"{VLLM}/test_longcat_tool_parser.py"),
    ToolFamily(
        "MiniMax M2",
        ("<minimax:tool_call>",),
        INVOKED,
        "https://github.com/MiniMax-AI/MiniMax-M2/blob/main/docs/tool_calling_guide.md",
    ),
    ToolFamily(
        "MiniMax M1",
        ("<tool_calls>", "<beginning_of_sentence>"),
        JSON_IN_TAGS,
        "https://github.com/MiniMax-AI/MiniMax-M1/blob/main/docs/function_call_guide.md",
    ),
    ToolFamily("MiniCPM5", ('<function name="', '<param name="'), CPM, f"{TEMPLATES}/openbmb-MiniCPM5-1B.jinja"),
    ToolFamily("Step 3", ("steptml:",), STEP, f"{VLLM}/test_step3_tool_parser.py"),
    ToolFamily("Seed-OSS", ("<seed:tool_call>",), SEED, f"{TEMPLATES}/ByteDance-Seed-OSS.jinja"),
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
    ToolFamily("Qwen3-Coder, Qwen3.5", ("<function=", "<parameter="), TAGS_ON_LINES, f"{TEMPLATES}/Qwen3-Coder.jinja"),
    ToolFamily(
        "Functionary 3.1",
        ("<function=example_function_name>",),
        FUNCTION_TAG,
        f"{TEMPLATES}/meetkai-functionary-medium-v3.1.jinja",
    ),
    ToolFamily(
        "Mistral Small 3.2, Magistral, Devstral, Ministral 3",
        ("[TOOL_CALLS]", "[ARGS]"),
        any_form(NAMED_MISTRAL, LISTED_MISTRAL),
        f"{TEMPLATES}/Mistral-Small-3.2-24B-Instruct-2506.jinja",
    ),
    ToolFamily(
        "Mistral 7B v0.3, Nemo, Large 2",
        ("[TOOL_CALLS]",),
        any_form(LISTED_MISTRAL, NAMED_MISTRAL),
        f"{TEMPLATES}/mistralai-Mistral-Nemo-Instruct-2407.jinja",
    ),
    ToolFamily("Apertus", ("<|tools_prefix|>",), APERTUS, f"{TEMPLATES}/Apertus-8B-Instruct.jinja"),
    ToolFamily("Nemotron Nano 2", ("<TOOLCALL>",), NEMOTRON, f"{TEMPLATES}/NVIDIA-Nemotron-Nano-v2.jinja"),
    ToolFamily(
        "Command R7B, Command A",
        ("<|START_ACTION|>",),
        COMMAND_A,
        f"{TEMPLATES}/CohereForAI-c4ai-command-r7b-12-2024-tool_use.jinja",
    ),
    ToolFamily(
        "Command R, Command R+",
        ("Action:", "```json"),
        COMMAND_R,
        f"{TEMPLATES}/CohereForAI-c4ai-command-r-plus-tool_use.jinja",
    ),
    ToolFamily(
        "Granite 3",
        ("<|tool_call|>", "<|start_of_role|>"),
        GRANITE_3,
        f"{TEMPLATES}/ibm-granite-granite-3.3-2B-Instruct.jinja",
    ),
    ToolFamily(
        "Granite 4", ("<tool_call>", "<|start_of_role|>"), JSON_IN_TAG, f"{TEMPLATES}/ibm-granite-granite-4.0.jinja"
    ),
    ToolFamily(
        "Granite 20B function calling",
        ("<|function_call_library|>",),
        FUNCTION_CALL,
        f"{VLLM}/test_granite_20b_fc_tool_parser.py",
    ),
    ToolFamily("Phi-4-mini", ("<|tool|>", "<|/tool|>"), PHI, f"{VLLM}/test_phi4mini_tool_parser.py"),
    ToolFamily("FireFunction 2", ("functools[",), FUNCTOOLS, f"{TEMPLATES}/fireworks-ai-llama-3-firefunction-v2.jinja"),
    ToolFamily("InternLM 2.5", ("<|plugin|>",), INTERN, f"{VLLM}/test_internlm2_tool_parser.py"),
    ToolFamily(
        "Hunyuan A13B", ("<tool_calls>[{", "<|startoftext|>"), JSON_IN_TAGS, f"{VLLM}/test_hunyuan_a13b_tool_parser.py"
    ),
    ToolFamily(
        "Apriel 1.5, 1.6",
        ("<tool_calls>", "[BEGIN FINAL RESPONSE]"),
        JSON_IN_TAGS,
        f"{TEMPLATES}/unsloth-Apriel-1.5.jinja",
    ),
    ToolFamily("Jamba 1.5", ("<tool_calls>", "<|bom|>"), JSON_IN_TAGS, f"{VLLM}/test_jamba_tool_parser.py"),
    ToolFamily("Solar Open", ("<|tool_call:begin|>",), SOLAR, f"{TEMPLATES}/upstage-Solar-Open-100B.jinja"),
    ToolFamily(
        "GigaChat 3", ("function call", "<|message_sep|>"), GIGACHAT, f"{TEMPLATES}/GigaChat3.1-10B-A1.8B.jinja"
    ),
    ToolFamily("Olmo 3", ("<function_calls>",), OLMO, f"{VLLM}/test_olmo3_tool_parser.py"),
    ToolFamily("Llama 4", ("<|header_start|>", "<|eot|>"), LLAMA_4, f"{LLAMA}/llama4/prompt_format.md"),
    ToolFamily(
        "ToolACE",
        ("[func_name1(params_name1=params_value1",),
        BARE_PYTHON,
        "https://github.com/vllm-project/vllm/blob/d8aae5150beafbc83be435642516c330e501b35e/examples/tool_chat_template_toolace.jinja",
    ),
    ToolFamily("xLAM 2", ("xLAM",), XLAM, f"{VLLM}/test_xlam_tool_parser.py"),
    ToolFamily(
        "Llama 3.1, 3.2, 3.3", ("<|start_header_id|>", "ipython"), LLAMA_3, f"{LLAMA}/llama3_3/prompt_format.md"
    ),
    ToolFamily(
        "Hermes 2 Pro, Hermes 3",
        ("<tool_call>", "function calling AI model"),
        JSON_IN_TAG,
        f"{TEMPLATES}/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja",
    ),
    ToolFamily(
        "EXAONE 4",
        ("<tool_call>", "[|tool|]"),
        JSON_IN_TAG,
        "https://huggingface.co/LGAI-EXAONE/EXAONE-4.0-32B/blob/main/chat_template.jinja",
    ),
    ToolFamily("SmolLM3", ("<tool_call>", "xml_tools"), JSON_IN_TAG, "https://huggingface.co/HuggingFaceTB/SmolLM3-3B"),
    ToolFamily(
        "Qwen2.5, Qwen3, QwQ, MiMo",
        ("<tool_call>", "within <tool_call></tool_call> XML tags"),
        JSON_IN_TAG,
        f"{TEMPLATES}/Qwen-Qwen3-0.6B.jinja",
    ),
)


def family_of(template: str) -> ToolFamily | None:
    """The family of a chat template; None if it is not known."""
    return next((family for family in FAMILIES if all(text in template for text in family.texts)), None)
