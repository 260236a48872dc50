"""Attention over sequences of unequal length without padding, for any Hugging Face model.

Models are run on one row of flat tokens, shape [1, T], so that every linear layer does no work on padding. Only the
attention itself knows where the sequences are: it is told through the keyword argument `ragged`, which Hugging
Face models hand through to the registered attention function.

Shapes: T flat tokens, B sequences, S the longest of them, H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import AttentionInterface

NAME = "gymrl_ragged"
"""Pass it as `attn_implementation` when loading a model."""

BEYOND = {"softcap": "capped attention scores", "s_aux": "attention sinks"}
"""What a model may ask of its attention, under the names Hugging Face gives it, that is not computed here."""


class Ragged(Protocol):
    """Knows where the sequences lie among the flat tokens."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor: ...


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    ragged: Ragged | None = None,
    **asked: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function: query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D]."""
    if ragged is None:
        raise ValueError("a model loaded for ragged attention is called with ragged=...")
    for name, what in BEYOND.items():
        if asked.get(name) is not None:
            raise ValueError(f"the model has {what}, which are not computed here: take another model")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # type: ignore[assignment]
    out = ragged.attend(layer, query[0], key[0], value[0], scale, sliding_window)
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, ragged_attention)


class Packed:
    """Several whole sequences, one after the other in the flat row, none of which sees another."""

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu", bucket: int = 64) -> None:
        """`lengths` are the sequences' token counts, in order. Sequences are attended to in groups of like length
        (within `bucket` tokens), so that padding inside the attention stays small."""
        lengths_B = torch.tensor(lengths)
        starts_B = torch.cumsum(lengths_B, 0) - lengths_B
        self.positions = torch.cat([torch.arange(n) for n in lengths]).to(device)
        """Each token's position in its sequence, [T], int64: the model's `position_ids`."""
        order = sorted(range(len(lengths)), key=lambda b: lengths[b])
        groups: list[list[int]] = []
        for b in order:
            if groups and lengths[b] - lengths[groups[-1][0]] <= bucket:
                groups[-1].append(b)
            else:
                groups.append([b])
        self.tokens = len(self.positions)
        self.places: list[_Place] = []
        for group in groups:
            width = max(lengths[b] for b in group)
            source = torch.cat([torch.arange(lengths[b]) + starts_B[b] for b in group])
            target = torch.cat([torch.arange(lengths[b]) + row * width for row, b in enumerate(group)])
            self.places.append(_Place(len(group), width, source.to(device), target.to(device)))

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Causal attention inside every sequence: query [H, T, D] -> [T, H, D]."""
        heads, _, size = query.shape
        repeats = heads // key.shape[0]
        flat = [x.transpose(0, 1).flatten(1) for x in (query, key, value)]
        padded = [_Pad.apply(self.places, x_TF) for x_TF in flat]  # type: ignore[no-untyped-call]
        outs = []
        for place, q, k, v in zip(self.places, *padded, strict=True):
            q, k, v = (x.view(place.rows, place.width, -1, size).transpose(1, 2) for x in (q, k, v))
            if repeats > 1:
                k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
            mask = _window_mask(place.width, window, q.device)
            o = sdpa(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling)
            outs.append(o.transpose(1, 2).reshape(place.rows * place.width, heads * size))
        return _Unpad.apply(self.places, self.tokens, *outs).view(self.tokens, heads, size)  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True)
class _Place:
    """A padded block of `rows` sequences: flat token `source[i]` lies at row-major place `target[i]`."""

    rows: int
    width: int
    source: torch.Tensor
    target: torch.Tensor


class _Pad(torch.autograd.Function):
    """Flat tokens [T, F] to one padded block [rows * width, F] for each place. No token is in two blocks, so the
    backward pass copies and never has to add."""

    @staticmethod
    def forward(ctx: Any, places: list[_Place], flat_TF: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.places, ctx.shape = places, flat_TF.shape
        blocks = []
        for place in places:
            block = flat_TF.new_zeros(place.rows * place.width, flat_TF.shape[1])
            blocks.append(block.index_copy_(0, place.target, flat_TF.index_select(0, place.source)))
        return tuple(blocks)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, torch.Tensor]:
        flat = grads[0].new_zeros(ctx.shape)
        for place, grad in zip(ctx.places, grads, strict=True):
            flat.index_copy_(0, place.source, grad.index_select(0, place.target))
        return None, flat


class _Unpad(torch.autograd.Function):
    """The inverse of `_Pad`: blocks back to flat tokens [T, F]."""

    @staticmethod
    def forward(ctx: Any, places: list[_Place], tokens: int, *blocks: torch.Tensor) -> torch.Tensor:
        ctx.places = places
        flat = blocks[0].new_zeros(tokens, blocks[0].shape[1])
        for place, block in zip(places, blocks, strict=True):
            flat.index_copy_(0, place.source, block.index_select(0, place.target))
        return flat

    @staticmethod
    def backward(ctx: Any, grad_TF: torch.Tensor) -> tuple[Any, ...]:
        grads = []
        for place in ctx.places:
            block = grad_TF.new_zeros(place.rows * place.width, grad_TF.shape[1])
            grads.append(block.index_copy_(0, place.target, grad_TF.index_select(0, place.source)))
        return (None, None, *grads)


def _window_mask(size: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    if window is None or window >= size:
        return None
    ahead = torch.arange(size, device=device)
    distance = ahead[:, None] - ahead[None, :]
    return (distance >= 0) & (distance < window)


class SlotCache:
    """Key/value memory for `slots` sequences of up to `length` tokens, in every layer."""

    def __init__(
        self,
        layers: int,
        slots: int,
        kv_heads: int,
        length: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.slots, self.length = slots, length
        shape = (slots, kv_heads, length, head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the first `length` tokens of one slot into others."""
        for memory in (*self.keys, *self.values):
            memory[list(targets), :, :length] = memory[source, :, :length]

    def blank(self, slot: int) -> None:
        """Zeros. What is masked counts 0 times, and 0 times NaN is NaN: it must not lie there for the next."""
        for memory in (*self.keys, *self.values):
            memory[slot] = 0


@dataclass
class SlotStep:
    """One forward pass over flat tokens that belong to slots: `slot` and `position` say where each goes.

    With `width` 1 every token is of another slot (decoding); else the tokens of a slot are consecutive (prefill).
    """

    cache: SlotCache
    slot_T: torch.Tensor
    position_T: torch.Tensor

    def __post_init__(self) -> None:
        slots, counts = torch.unique_consecutive(self.slot_T, return_counts=True)
        self.rows_B = slots
        width = int(counts.max())
        self.batch, self.width = len(slots), width
        last = int(self.position_T.max()) + 1
        self.reach = min(self.cache.length, -(-last // 32) * 32)  # steps of 32: fewer distinct shapes
        self.b_T = torch.repeat_interleave(torch.arange(self.batch, device=slots.device), counts)
        self.s_T = torch.arange(len(self.slot_T), device=slots.device) - (counts.cumsum(0) - counts)[self.b_T]
        position_BS = torch.zeros(self.batch, width, dtype=torch.long, device=slots.device)
        position_BS[self.b_T, self.s_T] = self.position_T
        self.position_BS = position_BS
        keys_L = torch.arange(self.reach, device=slots.device)
        self.mask_BSL = keys_L <= position_BS[:, :, None]
        dense = bool((slots[1:] - slots[:-1] == 1).all())
        self.span = slice(int(slots[0]), int(slots[-1]) + 1) if dense else None

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Write the new keys and values, attend to all of each slot's past: query [H, T, D] -> [T, H, D]."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.slot_T, :, self.position_T] = key.transpose(0, 1)
        values[self.slot_T, :, self.position_T] = value.transpose(0, 1)
        pick: Any = self.span if self.span is not None else self.rows_B
        k, v = keys[pick, :, : self.reach], values[pick, :, : self.reach]  # [B, K, L, D]
        heads, _, size = query.shape
        groups = heads // key.shape[0]
        q = query.new_zeros(self.batch, self.width, heads, size)
        q[self.b_T, self.s_T] = query.transpose(0, 1)
        # The heads that share a key/value head become more queries of it: nothing is repeated in memory.
        q = (
            q.view(self.batch, self.width, -1, groups, size).permute(0, 2, 3, 1, 4).flatten(2, 3)
        )  # [B, K, G*S, D]
        mask = self.mask_BSL
        if window is not None:
            distance = self.position_BS[:, :, None] - torch.arange(self.reach, device=mask.device)
            mask = mask & (distance < window)
        mask = mask[:, None].repeat(1, 1, groups, 1)
        o = sdpa(q, k, v, attn_mask=mask, scale=scaling)
        o = (
            o.view(self.batch, -1, groups, self.width, size).permute(0, 3, 1, 2, 4).flatten(2, 3)
        )  # [B, S, H, D]
        return o[self.b_T, self.s_T]
