"""How much memory a checkpoint will take, from its configuration alone: plain arithmetic, no torch.

    total = weights + keys and values + state of the slots + prompts + the largest of the three steps

Symbols: `s` bytes of a number in the chosen type, `f` bytes where the model computes in float32 (8 with float64), `H`
hidden size, `I` size of the feed-forward part, `V` vocabulary, `a` width of all query heads, `k` of all key (or value)
heads, `d` of one head, `B` block length, `P` patches. Each step is counted at the place where most tensors live; what
is named there is what the code of that step holds at that place. Not counted: what the process takes without a model,
work areas inside the libraries, and on a GPU the driver's own memory and what the allocator keeps in reserve.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

CAPACITY_STEP = 128  # the engine makes its slots for a multiple of this many tokens
PREFILL_ROWS = 512  # prompt tokens that the engine runs at once


@dataclass(frozen=True)
class Load:
    """What the model is asked to carry: `slots` requests at once, each with a prompt of `prompt_tokens` (those of its
    pictures included) and an answer of `gen_length` tokens in blocks of `block_length`. `grids`: rows and columns of
    patches of each picture of a study. `item` bytes a number."""

    slots: int
    prompt_tokens: int
    gen_length: int
    block_length: int
    grids: tuple[tuple[int, int], ...]
    item: int

    @property
    def wide(self) -> int:
        """Bytes of a number where float32 is the least that is computed in."""
        return max(4, self.item)

    @property
    def capacity(self) -> int:
        """Tokens that a slot has room for."""
        whole = _up(self.prompt_tokens + self.gen_length, self.block_length)
        return _up(whole, CAPACITY_STEP)

    @property
    def rows(self) -> int:
        """Rows of the cache that a slot takes: whole blocks, and two blocks of padding."""
        return _up(self.capacity, self.block_length) + 2 * self.block_length


@dataclass(frozen=True)
class Memory:
    """Bytes, by what they are for."""

    weights: int
    key_value_per_slot: int
    key_value: int
    slot_state: int
    prompts: int
    vision_tower: int
    prefill: int
    decode: int

    @property
    def total(self) -> int:
        """The largest that is held at once: the three steps follow each other."""
        held = self.weights + self.key_value + self.slot_state + self.prompts
        return held + max(self.vision_tower, self.prefill, self.decode)

    def to_json(self) -> dict[str, int]:
        """Every part and the total."""
        return {**asdict(self), "total": self.total}


def predict(config: Any, parameters: int, load: Load) -> Memory:
    """Memory for a `Qwen2_5_VLConfig` with that many parameters."""
    text, vision = config.text_config, config.vision_config
    per_slot = key_value_bytes(text, load)
    return Memory(
        weights=parameters * load.item,
        key_value_per_slot=per_slot,
        key_value=load.slots * per_slot,
        slot_state=load.slots * slot_state_bytes(text, load),
        prompts=load.slots * prompt_bytes(text, vision, load),
        vision_tower=vision_tower_bytes(vision, load),
        prefill=prefill_bytes(text, load),
        decode=decode_bytes(text, load),
    )


def key_value_bytes(text: Any, load: Load) -> int:
    """One slot's cache: layers x rows x (keys, values) x k x s."""
    return int(text.num_hidden_layers) * load.rows * 2 * _widths(text)[1] * load.item


def slot_state_bytes(text: Any, load: Load) -> int:
    """One slot's own tensors.

    A token (8) and its confidence (f) for each row, cosine and sine (2 d s) for each row, and the embeddings of the two
    blocks around the prompt's end (2 B H s).
    """
    _, _, head = _widths(text)
    state = load.rows * (8 + load.wide + 2 * head * load.item)
    return state + 2 * load.block_length * int(text.hidden_size) * load.item


def prompt_bytes(text: Any, vision: Any, load: Load) -> int:
    """One prompt kept until its answer is done: embeddings, the pictures' features, three positions a token."""
    features = sum(rows * columns for rows, columns in load.grids) // int(vision.spatial_merge_size) ** 2
    return (load.prompt_tokens + features) * int(text.hidden_size) * load.item + 3 * 8 * load.prompt_tokens


def vision_tower_bytes(vision: Any, load: Load) -> int:
    """The tower on one study's pictures, at the largest of three places.

    All hold the pixels (4, and s again if converted, for each of 3 x frames x patch x patch values), cosine and sine
    (2 d in float32) and two hidden states (2 H s) a patch. Cutting pictures into patches unfolds them once more (unless
    float32, which has a kernel that does not). Rotating the keys adds query, keys and values (3 H s), the rotated
    queries (H s) and four float32 terms (16 H; 12 H if the keys are float32 as they are). Attending adds query, keys
    and values (3 H s), both rotated (2 H s), and five copies ordered by window (5 H s), padded to whole windows.
    """
    patches = sum(rows * columns for rows, columns in load.grids)
    size, hidden = load.item, int(vision.hidden_size)
    values = int(vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)
    pixels = values * (4 if size == 4 else 4 + size)
    common = patches * (pixels + 2 * hidden // int(vision.num_heads) * 4 + 2 * hidden * size)
    rotating = patches * hidden * (4 * size + (12 if size == 4 else 16))
    cutting = patches * values * (size if size != 4 else 0)
    padded = max(patches, sum(_whole_windows(vision, *grid) for grid in load.grids))
    return common + max(cutting, rotating, hidden * size * (5 * patches + 5 * padded))


def prefill_bytes(text: Any, load: Load) -> int:
    """The prompt's largest piece: W rows that see T rows of the cache, one request at a time."""
    whole = load.prompt_tokens // load.block_length * load.block_length - load.block_length
    step = max(load.block_length, PREFILL_ROWS // load.block_length * load.block_length)
    pieces = [(min(begin + step, whole) - begin, min(begin + step, whole)) for begin in range(0, max(whole, 0), step)]
    return max((_layer_bytes(text, load, rows, rows * seen, kept=3) for rows, seen in pieces), default=0)


def decode_bytes(text: Any, load: Load) -> int:
    """One decoding pass of all slots: n x 2B rows through the layers, then n x B rows through the head.

    In the layers the rows' embeddings are held twice more (5 instead of 3 states), and cosine and sine (2 d s). At the
    head: the logits (s), as float32 if they are not (f), and their exponentials while they are summed (f).
    """
    rows = load.slots * 2 * load.block_length
    layers = _layer_bytes(text, load, rows, rows * load.rows, kept=5) + rows * 2 * _widths(text)[2] * load.item
    converted = 0 if load.item == load.wide else load.wide
    logits = load.slots * load.block_length * int(text.vocab_size) * (load.item + converted + load.wide)
    return max(layers, logits + rows * int(text.hidden_size) * load.item)


def _layer_bytes(text: Any, load: Load, rows: int, seen: int, *, kept: int) -> int:
    """A decoder layer inside its feed-forward part, or, where that is narrow, while heads are rotated.

    Both hold the heads (w = a + 2 k a row), cosine and sine for each (2 w), and for every pair of a row and one it sees
    (`seen`) the mask, once as it is and once for each query head of a group. The feed-forward part adds `kept` hidden
    states a row (before the layer, behind its attention, normalised, ...), what the attention gave (a), and the gate
    and its activation, the other half and their product (4 I). Rotating adds `kept` - 2 states and three terms (3 w).
    """
    queries, keys, _ = _widths(text)
    hidden, heads = int(text.hidden_size), queries + 2 * keys
    feeding = kept * hidden + queries + 4 * int(text.intermediate_size)
    rotating = (kept - 2) * hidden + 3 * heads
    return (rows * (3 * heads + max(feeding, rotating)) + seen * (1 + queries // keys)) * load.item


def _widths(text: Any) -> tuple[int, int, int]:
    """Width of all query heads, of all key heads, and of one head."""
    head = int(text.hidden_size) // int(text.num_attention_heads)
    return int(text.num_attention_heads) * head, int(text.num_key_value_heads) * head, head


def _whole_windows(vision: Any, rows: int, columns: int) -> int:
    """Patches of a picture when every attention window, the cut ones at its edges too, is as large as the largest."""
    merge = int(vision.spatial_merge_size)
    edge = int(vision.window_size) // merge // int(vision.patch_size) * merge
    return math.ceil(rows / edge) * math.ceil(columns / edge) * min(edge, rows) * min(edge, columns)


def _up(number: int, step: int) -> int:
    return math.ceil(number / step) * step
