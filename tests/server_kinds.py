"""The kinds of servers, to run a test on each."""

from __future__ import annotations

import pytest
from llama_server import LlamaServer
from sglang_server import SglangDeltas, SglangServer
from vllm_server import VllmServer

KINDS = (LlamaServer, VllmServer, SglangServer)
OTHER_KINDS = (VllmServer, SglangServer, SglangDeltas)

every_kind = pytest.mark.parametrize("kind", KINDS)
other_kinds = pytest.mark.parametrize("kind", OTHER_KINDS)  # than llama-server
