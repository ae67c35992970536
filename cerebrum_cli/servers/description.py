"""Identify a server, and check that it serves the expected model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import DAMAGE, EndpointError
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.text import foreign_line, format_names
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.vocabulary import Vocabulary
from cerebrum_cli.servers.chat_completions import ChatServer
from cerebrum_cli.servers.client import Client
from cerebrum_cli.servers.endpoint import EXACT, Endpoint
from cerebrum_cli.servers.faults import RequestError
from cerebrum_cli.servers.kind import ServerKind, origin
from cerebrum_cli.servers.llama_server import LlamaServer
from cerebrum_cli.servers.vllm import Vllm

# By the owner of the models in /v1/models, with the path of a description, if there is one.
KINDS: Mapping[str, tuple[type[ServerKind], str]] = {
    "llamacpp": (LlamaServer, "/props"),
    "vllm": (Vllm, "/version"),
}
ANY_OTHER = ChatServer, ""
MODELS = "/v1/models"
SHOWN_MODELS = 20  # of a server that may have hundreds
DESCRIBE_S = 30.0  # a busy server answers between two steps
DIFFERENT_MODEL = "use servers of one model; batch and eval have --restart to start over"
PROBE = "What is 17 * 23? Ünïcödé, 日本語, emoji 🙂,\n\n\tif x >= 10**6: return [a, b]  # don't"
# Of the probe without BOS and the like, in the words of llama-server and of vLLM.
TOKENIZE = {
    "content": PROBE,
    "add_special": False,
    "parse_special": False,
    "prompt": PROBE,
    "add_special_tokens": False,
}


@dataclass
class ExpectedModel:
    """The model that servers must serve: one with this vocabulary, or with any if prompts are `messages`.

    It is also one that an `earlier` record names, of these replies or of the first server.
    """

    vocabulary: Vocabulary
    earlier: Sequence[Mapping[str, str]] = ()
    messages: bool = False

    @cached_property
    def probe(self) -> TokenIds:
        """The tokens of a text, without BOS."""
        tokens = self.vocabulary.tokenize((Text(PROBE),))
        bos = self.vocabulary.special_token_text("bos")
        return tokens[1:] if bos and tokens[0] in self.vocabulary.special_token_ids([bos]) else tokens

    async def check(self, client: Client, server: ServerKind) -> None:
        """Raise EndpointError for another vocabulary, or another model or kind of server than before."""
        name = client.endpoint.name
        if not self.messages:
            if server.takes_messages:
                hint = f"omit -m, or name the model with --set served_model_name=NAME; or use only {EXACT}"
                raise EndpointError(f"{name} takes messages, not token ids", hint)
            await self._check_vocabulary(client, server)
        before = list(dict.fromkeys(map(origin, self.earlier)))
        if not before:
            self.earlier = [server.recorded]
        elif origin(server.recorded) not in before:
            problem = f"{name} serves {origin(server.recorded)} instead of {' or '.join(before)}"
            raise EndpointError(problem, DIFFERENT_MODEL)

    async def _check_vocabulary(self, client: Client, server: ServerKind) -> None:
        name = client.endpoint.name
        try:
            answer = await client.post("/tokenize", {"model": server.model, **TOKENIZE}, DESCRIBE_S)
            tokens = tuple(int(token) for token in answer["tokens"])
        except (RequestError, *DAMAGE) as error:
            raise EndpointError(f"{name}: /tokenize fails: {error}", f"update {server.kind}") from error
        size = server.vocabulary_size if isinstance(server, LlamaServer) else None
        if tokens != self.probe or size not in (None, self.vocabulary.size):
            problem = f"{name} serves {server.model}, whose vocabulary differs from that of the local model"
            hint = f"pull the server's model, or name it as the server does: -m {foreign_line(server.model)}"
            raise EndpointError(problem, hint)


async def describe(client: Client, as_messages: bool) -> ServerKind:
    """Ask a server what it is, or only which model to ask for, if it gets messages. Raises EndpointError."""
    name, path = client.endpoint.name, MODELS
    try:
        entry = _choose_model(await client.get(MODELS, DESCRIBE_S), client.endpoint, as_messages)
        kind, path = _kind_of(entry)
        if not kind.takes_messages and (as_messages or entry.get("parent")):  # the base of an adapter
            kind, path = ANY_OTHER
        details = await client.get(path, DESCRIBE_S, model=str(entry["id"])) if path else {}
        return kind.described(entry, details)
    except RequestError as error:
        if error.status == 404 and path != MODELS:  # behind a gateway that passes only /v1
            return ChatServer.described(entry, {})
        raise client.fault(error, "check the URL: it must be that of a language model server", f"{path}: ") from error
    except DAMAGE as error:
        raise EndpointError(f"{name}: unexpected response to {path}", "check the URL, or update the server") from error


def _kind_of(entry: JsonObject) -> tuple[type[ServerKind], str]:
    return KINDS.get(str(entry.get("owned_by")), ANY_OTHER)


def _choose_model(listed: Any, endpoint: Endpoint, as_messages: bool) -> JsonObject:
    """The entry of the model to ask for: the only one, or the one named. Raises EndpointError."""
    models: dict[str, JsonObject] = {str(entry["id"]): entry for entry in listed["data"] or ()}
    if not models:
        raise EndpointError(f"{endpoint.name} has no model", "download one there, or load it")
    names = format_names([foreign_line(name) for name in models], SHOWN_MODELS)
    named, option = endpoint.served_model, "--set served_model_name=NAME"
    if as_messages or all(_kind_of(entry)[0].takes_messages for entry in models.values()):
        named, option = endpoint.named_model or named, "-m NAME"
    if named is None:
        if len(models) > 1:
            raise EndpointError(f"{endpoint.name} serves several models", f"choose one with {option}: {names}")
        [named] = models
    chosen = models.get(named) or models.get(f"{named}:latest")
    if chosen is None:
        raise EndpointError(f"{endpoint.name} does not serve the model {named!r}", f"it serves {names}")
    return chosen
