"""Recognize what kind of server answers at an address."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.engine.remote.client import Client, RequestError, one_line
from cerebrum_cli.engine.remote.endpoint import Endpoint
from cerebrum_cli.engine.remote.failures import DAMAGE, LostServerError
from cerebrum_cli.engine.remote.kind import DESCRIBE_S, ServerInfo, ServerKind, ask
from cerebrum_cli.engine.remote.llama_server import LlamaServer
from cerebrum_cli.engine.remote.sglang import Sglang
from cerebrum_cli.engine.remote.vllm import Vllm

# By the owner of the models in /v1/models.
KINDS: Mapping[Any, ServerKind] = {"llamacpp": LlamaServer(), "vllm": Vllm(), "sglang": Sglang()}
UNSUPPORTED = {"library": "Ollama", "organization_owner": "LM Studio"}


def probe(endpoint: Endpoint) -> ServerInfo:
    """Ask a server what it is, without waiting until it is; for a thread without an event loop.

    Raises EndpointError if it cannot be used, BusyServerError if it cannot be used yet.
    """
    return asyncio.run(_probe(endpoint))


async def _probe(endpoint: Endpoint) -> ServerInfo:
    client = Client(endpoint)
    try:
        return await describe(client, endpoint)
    except LostServerError as lost:
        found = "that it is a llama-server, and its log" if lost.was_sent else "and start llama-server there"
        raise EndpointError(f"{endpoint.name}: {lost.reason}", f"check the URL, {found}") from lost
    finally:
        await client.close()


async def describe(client: Client, endpoint: Endpoint) -> ServerInfo:
    """Ask a server what it is. Raises EndpointError if it cannot be used."""
    entry = choose_model(await ask(client, endpoint, "/v1/models"), endpoint)
    owner = entry.get("owned_by")
    if owner not in KINDS:
        kind = UNSUPPORTED.get(str(owner), "a server of an unknown kind")
        raise EndpointError(
            f"{endpoint.name} is {kind}, which is not supported",
            f"use {', '.join(kind.name for kind in KINDS.values())}: prompts and replies are exchanged as token ids",
        )
    return await KINDS[owner].describe(client, endpoint, entry)


async def tokenize(client: Client, endpoint: Endpoint, info: ServerInfo, text: str) -> list[int]:
    """The server's tokens of a text, without BOS and the like. Raises EndpointError."""
    try:
        answer = await client.post("/tokenize", info.kind.tokenize_body(text, info), DESCRIBE_S)
        return [int(token) for token in answer["tokens"]]
    except (RequestError, *DAMAGE) as error:
        raise EndpointError(f"{endpoint.name}: /tokenize fails: {error}", f"update {info.kind.name}") from error


def choose_model(listed: Any, endpoint: Endpoint) -> Mapping[str, Any]:
    """The entry of the model to ask for: the only one, or the one named. Raises EndpointError."""
    entries = listed.get("data") if isinstance(listed, dict) else None
    models = {
        str(entry["id"]): entry
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and "id" in entry
    }
    names = ", ".join(map(one_line, models))
    if not models:
        raise EndpointError(f"{endpoint.name}: not a language model server", "check the URL")
    if endpoint.served_model is not None:
        if endpoint.served_model not in models:
            raise EndpointError(f"{endpoint.name} serves no model {endpoint.served_model!r}", f"it serves {names}")
        chosen = models[endpoint.served_model]
        base = models.get(str(chosen.get("parent")), {})  # of an adapter, which has no context size of its own
        return {**base, **{key: value for key, value in chosen.items() if value is not None}}
    if len(models) > 1:
        hint = f"choose with --set served_model_name=NAME: {names}"
        raise EndpointError(f"{endpoint.name} serves several models", hint)
    return next(iter(models.values()))
