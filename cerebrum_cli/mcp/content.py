"""What a call of a server's function gives, as text for a model. Pure."""

from __future__ import annotations

import json

from cerebrum_cli.core.json_types import JsonObject

NO_RESULT = "(no result)"


def result_text(result: JsonObject) -> str:
    """Its texts, a line for what is no text, and whether the call failed. Raises an error of `core.errors.DAMAGE`."""
    text = "\n".join(map(item_text, result.get("content", ())))
    if not text and "structuredContent" in result:
        text = json.dumps(result["structuredContent"], ensure_ascii=False)
    if result.get("isError"):
        return f"the call failed: {text or 'no reason is given'}"
    return text or NO_RESULT


def item_text(item: JsonObject) -> str:
    match item["type"]:
        case "text":
            return str(item["text"])
        case "image" | "audio" as kind:
            return left_out(kind, item["mimeType"], f"{len(item['data'].rstrip('=')) * 3 // 4:,} bytes")  # in base64
        case "resource_link":
            return f"[link: {item['uri']}]"
        case "resource":
            resource = item["resource"]
            if "text" in resource:
                return str(resource["text"])
            return left_out("resource", resource["uri"])
        case kind:
            return left_out(str(kind))


def left_out(*description: str) -> str:
    return f"[{', '.join(description)}: left out, since it is no text]"
