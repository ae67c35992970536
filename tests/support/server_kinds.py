"""The kinds of servers, to run a test on each, and what they are asked."""

from __future__ import annotations

import pytest
from llama_server import LlamaServer
from remote_engines import request_of
from scripted_backend import endless
from sglang_server import SglangDeltas, SglangServer
from vllm_server import VllmServer

KINDS = (LlamaServer, VllmServer, SglangServer)
OTHER_KINDS = (VllmServer, SglangServer, SglangDeltas)

every_kind = pytest.mark.parametrize("kind", KINDS)
other_kinds = pytest.mark.parametrize("kind", OTHER_KINDS)  # than llama-server

REQUESTS = tuple(request_of(f"Q{at}", seed=100 * at, temperature=0.8) for at in range(12))
STORY = endless({"Q": "once upon a time "})
