"""A Llama of a few layers, as llama.cpp computes it: RMSNorm, rotary pairs of neighbours, SwiGLU, tied embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the model. Width is shared out among the heads."""

    layers: int = 4
    width: int = 64
    heads: int = 4
    ffn: int = 192
    context: int = 512
    epsilon: float = 1e-5
    rope_base: float = 10_000.0

    @property
    def head_width(self) -> int:
        """How wide a head is."""
        return self.width // self.heads


class Layer(nn.Module):  # type: ignore[misc]
    """Attention, then the feed-forward network, each behind its norm. Named as GGUF names the tensors."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        square, up, down = (shape.width, shape.width), (shape.width, shape.ffn), (shape.ffn, shape.width)
        self.attn_norm = nn.RMSNorm(shape.width, shape.epsilon)
        self.attn_q, self.attn_k, self.attn_v = (nn.Linear(*square, bias=False) for _ in range(3))
        self.attn_output = nn.Linear(*square, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, shape.epsilon)
        self.ffn_gate, self.ffn_up = (nn.Linear(*up, bias=False) for _ in range(2))
        self.ffn_down = nn.Linear(*down, bias=False)

    def forward(self, x: Tensor, rope: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the layer's output for (batch, time, width), and keys and values, those of the preamble in front."""
        normed = self.attn_norm(x)
        q = rotated(self._heads(self.attn_q(normed)), rope)
        k = rotated(self._heads(self.attn_k(normed)), rope)
        held = torch.stack((k, self._heads(self.attn_v(normed))))
        if before is not None:
            held = torch.cat((before.expand(-1, len(x), -1, -1, -1), held), dim=3)
        behind = held.shape[3] - x.shape[1]
        seen = torch.ones(x.shape[1], held.shape[3], dtype=torch.bool).tril(behind)
        mixed = functional.scaled_dot_product_attention(q, held[0], held[1], attn_mask=seen)
        x = x + self.attn_output(mixed.transpose(1, 2).flatten(2))
        normed = self.ffn_norm(x)
        return x + self.ffn_down(functional.silu(self.ffn_gate(normed)) * self.ffn_up(normed)), held

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.shape.heads, self.shape.head_width)).transpose(1, 2)


class Nano(nn.Module):  # type: ignore[misc]
    """The model over the words that occur. The last row of the embeddings stands for each of `others` more tokens."""

    def __init__(self, shape: Shape, words: int, others: int) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(words + 1, shape.width)
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, shape.epsilon)
        # In the softmax the last row counts as often as there are tokens that have it.
        self.counts = torch.zeros(words + 1)
        self.counts[-1] = torch.log(torch.tensor(float(others)))
        self.rope = rope_table(shape)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                late = name.endswith(("attn_output.weight", "ffn_down.weight"))
                spread = 0.08 if name.startswith("token_embd") else weight.shape[1] ** -0.5
                nn.init.normal_(weight, std=spread / (2 * shape.layers) ** 0.5 if late else spread)

    def forward(self, preamble: Tensor, words: Tensor, speaks: Tensor) -> Tensor:
        """Return the logits of (batch, time) words behind the preamble, where `speaks`; the preamble is read once."""
        first, x = self.token_embd(preamble[None]), self.token_embd(words)
        start, end = len(preamble), len(preamble) + words.shape[1]
        for layer in self.blk:
            first, held = layer(first, self.rope[:start], None)
            x, _ = layer(x, self.rope[start:end], held)
        logits: Tensor = functional.linear(self.output_norm(x[speaks]), self.token_embd.weight) + self.counts
        return logits


def rope_table(shape: Shape) -> Tensor:
    """Return the turn of each pair of a head at each place, as complex numbers: (place, pair)."""
    pairs = torch.arange(0, shape.head_width, 2) / shape.head_width
    angles = torch.outer(torch.arange(shape.context).float(), shape.rope_base**-pairs)
    return torch.polar(torch.ones_like(angles), angles)


def rotated(x: Tensor, rope: Tensor) -> Tensor:
    """Turn each pair of neighbours in (batch, head, time, width) by the angle of its place."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rope).flatten(-2)
