"""A small Llama as llama.cpp computes it: RMSNorm, RoPE on adjacent pairs, SwiGLU, tied embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model; the width is divided among the heads."""

    layers: int = 4
    width: int = 64
    heads: int = 4
    ffn: int = 192
    context: int = 512
    epsilon: float = 1e-5
    rope_base: float = 10_000.0

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.heads


class Layer(nn.Module):  # type: ignore[misc]
    """Attention and feed-forward network, each after its norm; attributes have the names of GGUF tensors."""

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

    def forward(self, x: Tensor, rope: Tensor, prefix_kv: Tensor | None) -> tuple[Tensor, Tensor]:
        """Output for (batch, time, width), and keys and values including those of the prefix."""
        normed = self.attn_norm(x)
        q = rotate(self._heads(self.attn_q(normed)), rope)
        k = rotate(self._heads(self.attn_k(normed)), rope)
        kv = torch.stack((k, self._heads(self.attn_v(normed))))
        if prefix_kv is not None:
            kv = torch.cat((prefix_kv.expand(-1, len(x), -1, -1, -1), kv), dim=3)
        offset = kv.shape[3] - x.shape[1]
        mask = torch.ones(x.shape[1], kv.shape[3], dtype=torch.bool).tril(offset)
        mixed = functional.scaled_dot_product_attention(q, kv[0], kv[1], attn_mask=mask)
        x = x + self.attn_output(mixed.transpose(1, 2).flatten(2))
        normed = self.ffn_norm(x)
        return x + self.ffn_down(functional.silu(self.ffn_gate(normed)) * self.ffn_up(normed)), kv

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.shape.heads, self.shape.head_width)).transpose(1, 2)


class Nano(nn.Module):  # type: ignore[misc]
    """The model over the reduced vocabulary; the last row of the embeddings stands for each of `other_count` tokens."""

    def __init__(self, shape: Shape, vocabulary_size: int, other_count: int) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(vocabulary_size + 1, shape.width)
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, shape.epsilon)
        # The softmax counts the last row once for each token that it stands for.
        self.counts = torch.zeros(vocabulary_size + 1)
        self.counts[-1] = torch.log(torch.tensor(float(other_count)))
        self.rope = rope_table(shape)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                is_residual = name.endswith(("attn_output.weight", "ffn_down.weight"))
                std = 0.08 if name.startswith("token_embd") else weight.shape[1] ** -0.5
                nn.init.normal_(weight, std=std / (2 * shape.layers) ** 0.5 if is_residual else std)

    def forward(self, prefix: Tensor, ids: Tensor, is_target: Tensor) -> Tensor:
        """Logits of (batch, time) ids after the prefix, where `is_target`; the prefix is evaluated once per batch."""
        prefix_x, x = self.token_embd(prefix[None]), self.token_embd(ids)
        start, end = len(prefix), len(prefix) + ids.shape[1]
        for layer in self.blk:
            prefix_x, prefix_kv = layer(prefix_x, self.rope[:start], None)
            x, _ = layer(x, self.rope[start:end], prefix_kv)
        logits: Tensor = functional.linear(self.output_norm(x[is_target]), self.token_embd.weight) + self.counts
        return logits


def rope_table(shape: Shape) -> Tensor:
    """Rotation of each pair of a head at each position, as complex numbers: (position, pair)."""
    pairs = torch.arange(0, shape.head_width, 2) / shape.head_width
    angles = torch.outer(torch.arange(shape.context).float(), shape.rope_base**-pairs)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate each adjacent pair in (batch, head, time, width) by the angle of its position."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rope).flatten(-2)
