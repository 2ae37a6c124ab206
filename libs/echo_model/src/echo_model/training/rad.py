"""Response-Asymmetric Diffusion (RAD, arXiv 2604.09450): layout, attention mask and noise of stage 2.

One row is ``[prefix | clean region | noisy region | noisy region ...]``. The *region* is the response padded with EOS
to whole blocks of the grid that decoding uses, which is anchored at the first token of the prompt: when the prompt
ends inside a block, its tail belongs to the region as tokens that are never masked; the *prefix* is the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


def rad_mask(prefix: int, region: int, block: int, copies: int) -> torch.Tensor:
    """Who may look at whom: bool (L, L), True = allowed, L = prefix + region * (1 + copies).

    The prefix is block-causal, as in decoding. A clean block sees the prefix and the clean blocks up to itself; a noisy
    block sees the prefix, the clean blocks before it and itself in its own copy. Raises ValueError off the grid.
    """
    if prefix % block or region % block:
        raise ValueError(f"prefix {prefix} and region {region} must be multiples of the block length {block}")
    part = torch.cat([torch.zeros(prefix, dtype=torch.long), 1 + torch.arange(copies + 1).repeat_interleave(region)])
    in_region = (prefix + torch.arange(region)) // block
    number = torch.cat([torch.arange(prefix) // block, in_region.repeat(copies + 1)])
    q_part, k_part = part[:, None], part[None, :]
    q_block, k_block = number[:, None], number[None, :]
    to_prefix = (k_part == 0) & (k_block <= q_block)
    to_clean = (k_part == 1) & (((q_part == 1) & (k_block <= q_block)) | ((q_part > 1) & (k_block < q_block)))
    to_own = (k_part > 1) & (q_part == k_part) & (q_block == k_block)
    return to_prefix | to_clean | to_own


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
