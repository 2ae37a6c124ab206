"""Response-Asymmetric Diffusion (RAD, arXiv 2604.09450): layout, attention mask and noise of stage 2.

One row is ``[prefix | clean region | noisy region | noisy region ...]``. The *region* is the response padded with EOS
to whole blocks of the grid that decoding uses, which is anchored at the first token of the prompt: when the prompt
ends inside a block, its tail belongs to the region as tokens that are never masked; the *prefix* is the rest.

Who may look at whom follows from three numbers a token: its sample (a row may hold several, see ``packing``), its part
of the sample (0 prefix, 1 clean response, 2 and more the noisy copies) and its block on the sample's own grid. So no
mask of L x L entries has to exist where the attention takes a rule instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class TokenIndex:
    """Sample, part and block of every token of a row: three int64 tensors (L,). Padding has a sample of its own."""

    sample: torch.Tensor
    part: torch.Tensor
    block: torch.Tensor

    def allowed(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Whether tokens ``query`` may look at tokens ``key`` (indices that broadcast); the rules of `rad.rad_mask`."""
        q_part, k_part = self.part[query], self.part[key]
        q_block, k_block = self.block[query], self.block[key]
        to_prefix = (k_part == 0) & (k_block <= q_block)
        to_clean = (k_part == 1) & (((q_part == 1) & (k_block <= q_block)) | ((q_part > 1) & (k_block < q_block)))
        to_own = (k_part > 1) & (q_part == k_part) & (q_block == k_block)
        return (self.sample[query] == self.sample[key]) & (to_prefix | to_clean | to_own)

    def mask_mod(self) -> Callable[[Any, Any, torch.Tensor, torch.Tensor], torch.Tensor]:
        """The rule as FlexAttention wants it: (batch, head, query, key) -> bool."""
        return lambda batch, head, query, key: self.allowed(query, key)

    def to(self, device: torch.device) -> TokenIndex:
        """The same on another device."""
        return TokenIndex(self.sample.to(device), self.part.to(device), self.block.to(device))

    def dense(self) -> torch.Tensor:
        """The rule as a bool tensor (L, L)."""
        at = torch.arange(len(self.sample), device=self.sample.device)
        return self.allowed(at[:, None], at[None, :])


def index_tokens(lengths: Sequence[tuple[int, int]], block: int, copies: int) -> TokenIndex:
    """Describe a row of samples given as (prefix, region) lengths, each laid out prefix | clean | noisy copies.

    Raises ValueError for lengths off the block grid.
    """
    sample, part, number = [], [], []
    for place, (prefix, region) in enumerate(lengths):
        if prefix % block or region % block:
            raise ValueError(f"prefix {prefix} and region {region} must be multiples of the block length {block}")
        parts = torch.cat(
            [torch.zeros(prefix, dtype=torch.long), 1 + torch.arange(copies + 1).repeat_interleave(region)]
        )
        in_region = (prefix + torch.arange(region)) // block
        sample.append(torch.full((len(parts),), place))
        part.append(parts)
        number.append(torch.cat([torch.arange(prefix) // block, in_region.repeat(copies + 1)]))
    return TokenIndex(torch.cat(sample), torch.cat(part), torch.cat(number))


def rad_mask(prefix: int, region: int, block: int, copies: int) -> torch.Tensor:
    """Who may look at whom: bool (L, L), True = allowed, L = prefix + region * (1 + copies).

    The prefix is block-causal, as in decoding. A clean block sees the prefix and the clean blocks up to itself; a noisy
    block sees the prefix, the clean blocks before it and itself in its own copy. Raises ValueError off the grid.
    """
    return index_tokens([(prefix, region)], block, copies).dense()


@dataclass(frozen=True)
class Region:
    """A batch of responses on the block grid.

    ``ids``: int64 (B, R), prompt tail + response + EOS. ``open``: bool (B, R), tokens that may be masked and are
    learnt: the response and its EOS up to the end of its own last block, neither the tail nor what fills up the batch.
    """

    ids: torch.Tensor
    open: torch.Tensor


def lay_out(tail: torch.Tensor, responses: list[torch.Tensor], block: int, eos: int) -> Region:
    """Put responses (without EOS) on the grid; every one gets at least one EOS."""
    used = [-(-(len(tail) + len(response) + 1) // block) * block for response in responses]
    ids = torch.full((len(responses), max(used)), eos)
    open_ = torch.zeros(len(responses), max(used), dtype=torch.bool)
    for row, (response, end) in enumerate(zip(responses, used, strict=True)):
        ids[row, : len(tail)] = tail
        ids[row, len(tail) : len(tail) + len(response)] = response
        open_[row, len(tail) : end] = True
    return Region(ids, open_)


def draw_noise(open_: torch.Tensor, block: int, generator: torch.Generator, full_share: float = 0.15) -> torch.Tensor:
    """Masked tokens of two complementary copies: bool (2, B, R); every open token is masked in exactly one of them.

    Each block draws its rate from U(0, 1]; a ``full_share`` of the blocks is masked whole, decoding's first state.
    """
    rows, length = open_.shape
    rates = 1 - torch.rand(rows, length // block, generator=generator)
    rates[torch.rand(rates.shape, generator=generator) < full_share] = 1.0
    first = open_ & (torch.rand(open_.shape, generator=generator) < rates.repeat_interleave(block, dim=1))
    return torch.stack([first, open_ & ~first])
