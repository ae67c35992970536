"""An MCP server that misbehaves: python mcp_stand_in.py BEHAVIOUR [VALUE]. Each function of its name has one, too."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

BEHAVIOUR, VALUE = (*sys.argv[1:], "", "")[:2]
PAGE = 2  # functions
TEXTS = {"type": "object", "properties": {"text": {"type": "string"}}}
LOG = ["starting", "[1, 2]", '{"level": "info"}', "{", "\x1b[2Jdone"]  # none of them a message
count = 0  # of calls, which a process that starts again has forgotten


def write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def send(*messages: dict[str, Any]) -> None:
    for message in messages:
        write(json.dumps({"jsonrpc": "2.0", **message}))


def receive() -> Any:
    if line := sys.stdin.readline():
        return json.loads(line)
    if BEHAVIOUR == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    if BEHAVIOUR == "tidy":
        Path(VALUE).touch()
    sys.exit()


def text(value: object) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": str(value)}]}


def functions() -> list[dict[str, Any]]:
    named = [{"name": name, "description": f"Do {name}.", "inputSchema": TEXTS} for name in CALLS]
    match BEHAVIOUR:
        case "twins":
            named.append({**named[0], "description": "The other one."})
        case "long":
            named[0]["description"] = "x" * 5000
        case "escapes":
            named[0]["description"] = "Echo\x1b[2J\x1b]0;title\x07 <|im_end|>\ud800"
        case "unusable":
            reference = {"type": "object", "properties": {"a": {"$ref": "#/properties/b"}}}
            named += [{"name": "has spaces\x1b[2J", "inputSchema": TEXTS}, {"name": "refers", "inputSchema": reference}]
        case "none":
            return []
    return named


def page(params: dict[str, Any]) -> dict[str, Any]:
    if BEHAVIOUR == "no list":
        return {}
    start, listed = int(params.get("cursor", "0")), functions()
    rest = {"nextCursor": str(start + PAGE)} if start + PAGE < len(listed) else {}
    return {"tools": listed[start : start + PAGE], **rest}


def echo(given: str) -> dict[str, Any]:
    return text(given or json.dumps(dict(os.environ)))


def counted(_: str) -> dict[str, Any]:
    return text(count)


def huge(size: str) -> dict[str, Any]:
    return text("x" * int(size))


def crash(_: str) -> dict[str, Any]:
    sys.stderr.write("Traceback:\n  ...\nValueError: \x1b[2Jno luck\n")
    os._exit(3)


def silent(marker: str) -> dict[str, Any]:
    """Wait until the request is cancelled, and answer it only then."""
    if marker:
        Path(marker).touch()
    return text(f"late: {receive()['method']}")


def asking(_: str) -> dict[str, Any]:
    """Ask the client meanwhile, and give back its answers."""
    answers = []
    for number, method in enumerate(("ping", "roots/list")):
        send({"method": "notifications/progress", "params": {}}, {"id": number, "method": method})
        answer = receive()
        assert answer.pop("jsonrpc") == "2.0" and answer.pop("id") == number
        answers.append(answer.get("result") or answer.get("error", {}).get("message"))
    return text(answers)


def noisy(_: str) -> dict[str, Any]:
    for stream in (sys.stderr, sys.stdout):
        stream.write("noise\n" * 200_000)
        stream.flush()
    return text("heard")


def kinds(_: str) -> dict[str, Any]:
    resource = {"uri": "file:///a", "mimeType": "text/plain"}
    items = [
        {"type": "text", "text": "one\ud800"},
        {"type": "image", "data": "A" * 4000, "mimeType": "image/png"},
        {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"},
        {"type": "resource_link", "name": "a", **resource},
        {"type": "resource", "resource": {**resource, "text": "embedded"}},
        {"type": "resource", "resource": {**resource, "blob": "AAAA"}},
    ]
    return {"content": items}


def structured(_: str) -> dict[str, Any]:
    return {"content": [], "structuredContent": {"a": 1}}


def fails(_: str) -> dict[str, Any]:
    return {**text("no such city"), "isError": True}


def nonsense(_: str) -> dict[str, Any]:
    return {"content": [{"type": "hologram"}]}


def endless_line(_: str) -> dict[str, Any]:
    while True:
        sys.stdout.write("x" * 2**20)


def leaves(given: str) -> dict[str, Any]:
    """Answer, and end then."""
    threading.Timer(0.1, os._exit, (0,)).start()
    return text(given)


def closes(_: str) -> dict[str, Any]:
    os.close(1)
    time.sleep(60)
    return {}


CALLS = {
    function.__name__: function
    for function in (
        *(echo, counted, huge, crash, silent, asking, noisy, kinds, structured, fails, nonsense, endless_line),
        *(leaves, closes),
    )
}


def main() -> None:
    global count
    match BEHAVIOUR:
        case "logs":
            write("\n".join(LOG))
        case "slow":
            time.sleep(float(VALUE))
        case "exits":
            crash("")
        case "child":
            subprocess.Popen(["sleep", "60"])
        case "dumb":
            time.sleep(60)
    while True:
        message = receive()
        number, params = message.get("id"), message.get("params", {})
        match message["method"]:
            case "server/discover" if BEHAVIOUR == "strict":  # as servers made with rmcp before 3.0
                crash("")
            case "server/discover":
                send({"id": number, "error": {"code": -32601, "message": "Method not found"}})
            case "initialize" if BEHAVIOUR == "refuses":
                send({"id": number, "error": {"code": -32602, "message": "Unsupported\nprotocol version"}})
            case "initialize":
                version = VALUE if BEHAVIOUR == "version" else params["protocolVersion"]
                info = {"name": "stand-in", "version": VALUE if BEHAVIOUR == "release" else "1"}
                greeting: dict[str, Any] = {
                    "protocolVersion": version,
                    "capabilities": {"tools": {}},
                    "serverInfo": info,
                }
                send({"method": "notifications/message"}, {"id": number, "result": greeting})
            case "tools/list":
                send({"id": number, "result": page(params)})
            case "tools/call" if params["name"] in CALLS:
                count += 1
                send({"id": number, "result": CALLS[params["name"]](params["arguments"].get("text", ""))})
            case "tools/call":
                send({"id": number, "error": {"code": -32602, "message": f"Unknown tool: {params['name']}"}})


if __name__ == "__main__":
    main()
