"""The normal chest of a phantom: its measures, drawn at random, and its painting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from echo_model.data.drawing import Canvas, add_segment, box, bump, coarse_noise, draw_polyline, step

SIDES: tuple[tuple[str, int], ...] = (("right", -1), ("left", 1))
"""The patient's side and its direction from the midline in the image (-1: towards the left edge)."""


@dataclass(frozen=True)
class Anatomy:
    """Measures of one chest in unit coordinates of a square image (x to the right, y down)."""

    size: int
    midline: float
    apex: float
    base_right: float
    base_left: float
    half_width: float
    medial: float
    heart_half_width: float
    heart_y: float
    rib_spacing: float
    rib_phase: float

    @property
    def x(self) -> Canvas:
        """Columns' x, shape (1, size)."""
        return ((np.arange(self.size, dtype=np.float32) + np.float32(0.5)) / np.float32(self.size))[None, :]

    @property
    def y(self) -> Canvas:
        """Rows' y, shape (size, 1)."""
        return ((np.arange(self.size, dtype=np.float32) + np.float32(0.5)) / np.float32(self.size))[:, None]

    def base(self, side: str) -> float:
        """Height of the diaphragm's dome on a side."""
        return self.base_right if side == "right" else self.base_left

    def lateral(self, y: Canvas, inset: float = 0.0) -> Canvas:
        """Distance of the chest wall's inner border from the midline at heights ``y``; ``inset`` shrinks it."""
        t = np.clip((y - np.float32(self.apex + inset)) / np.float32(0.80 - self.apex), 0, 1)
        shape = np.sqrt(1 - (1 - t) * (1 - t) * (1 - t) * (1 - t))
        return np.asarray((self.half_width - inset) * (0.34 + 0.66 * shape) * (t > 0), dtype=np.float32)

    def lung(self, side: str, inset: float = 0.0) -> Canvas:
        """Soft mask (size, size) of one lung; ``inset`` gives a lung collapsed away from the wall by that much."""
        direction = -1 if side == "right" else 1
        dx = (self.x - np.float32(self.midline)) * direction
        u = dx / np.float32(self.half_width)
        dome = self.base(side) + np.float32(0.13) * (u - np.float32(0.45)) * (u - np.float32(0.45))
        dome = dome + np.float32(0.10) * np.clip(u - np.float32(0.72), 0, 1)
        return np.asarray(
            step(self.lateral(self.y, inset) - dx, 0.012)
            * step(dx - np.float32(self.medial), 0.014)
            * step(dome - self.y, 0.010),
            dtype=np.float32,
        )

    def rib_y(self, number: int, u: float) -> float:
        """Height of posterior rib ``number`` at the share ``u`` of the half width from the midline."""
        return self.apex + (number + self.rib_phase) * self.rib_spacing + 0.105 * u * u - 0.012

    def tissue_above_lungs(self) -> tuple[float, float]:
        """Height of the collar bones next to the midline and at the shoulder."""
        return self.apex + 0.055, self.apex - 0.02


def draw_anatomy(rng: np.random.Generator, size: int, heart_ratio: float) -> Anatomy:
    """Draw the measures of a chest; ``heart_ratio`` is the cardiothoracic ratio."""
    r = rng.random(10)
    half_width = 0.335 + 0.035 * (r[0] - 0.5) * 2
    base = 0.685 + 0.05 * (r[1] - 0.5) * 2
    return Anatomy(
        size=size,
        midline=0.5 + 0.022 * (r[2] - 0.5) * 2,
        apex=0.125 + 0.03 * (r[3] - 0.5) * 2,
        base_right=base,
        base_left=base + 0.012 + 0.018 * r[4],
        half_width=half_width,
        medial=0.052 + 0.012 * (r[5] - 0.5) * 2,
        heart_half_width=heart_ratio * half_width,
        heart_y=base - 0.075 + 0.012 * (r[6] - 0.5) * 2,
        rib_spacing=0.074 + 0.008 * (r[7] - 0.5) * 2,
        rib_phase=float(r[8]),
    )


def paint_chest(rng: np.random.Generator, a: Anatomy) -> tuple[Canvas, dict[str, Canvas]]:
    """Paint a normal chest. Returns the canvas of densities (size, size) and the soft masks of both lungs."""
    x, y = a.x, a.y
    dx = x - np.float32(a.midline)
    width = a.half_width + 0.055 + 0.03 * rng.random()
    torso = step(np.float32(width) + np.float32(0.05) * step(np.float32(0.22) - y, 0.2) - np.abs(dx), 0.03)
    canvas = np.asarray(0.10 + 0.50 * torso + 0.0 * y, dtype=np.float32)
    neck = step(np.float32(0.12) - np.abs(dx), 0.05)
    canvas *= 1 - 0.75 * step(np.float32(a.apex - 0.075) + np.float32(0.22) * np.abs(dx) - y, 0.03) * (1 - neck)
    lungs = {side: a.lung(side) for side, _ in SIDES}
    both = lungs["right"] + lungs["left"]
    canvas -= np.float32(0.33 + 0.04 * rng.random()) * both
    canvas += np.float32(0.05) * step(y - np.float32(0.72), 0.1) * torso
    _bones(rng, a, canvas, torso)
    _vessels(rng, a, canvas, both)
    _mediastinum(rng, a, canvas)
    return canvas, lungs


def _bones(rng: np.random.Generator, a: Anatomy, canvas: Canvas, torso: Canvas) -> None:
    u = (a.x - np.float32(a.midline)) / np.float32(a.half_width)
    inside = step(np.float32(1.04) - np.abs(u), 0.04) * step(np.abs(u) - np.float32(0.13), 0.04)
    strength = 0.055 + 0.035 * rng.random()
    phase = (a.y - np.float32(a.rib_y(0, 0.0)) - np.float32(0.105) * u * u) / np.float32(a.rib_spacing)
    off = np.abs(phase - np.floor(phase + np.float32(0.5)))
    inside = inside * step(a.y - np.float32(a.apex - 0.02), 0.02) * torso
    inside = inside * (1 - np.float32(0.75) * step(a.y - np.float32(a.base_right + 0.02), 0.05))
    canvas += np.float32(strength) * step(np.float32(0.17) - off, 0.06) * inside
    front = (a.y - np.float32(a.apex + 0.12) + np.float32(0.16) * u * u) / np.float32(a.rib_spacing * 1.1)
    off = np.abs(front - np.floor(front + np.float32(0.5)))
    canvas += np.float32(strength * 0.35) * step(np.float32(0.2) - off, 0.12) * inside
    near, far = a.tissue_above_lungs()
    for _, direction in SIDES:
        points = [
            (a.midline + direction * 0.035, near),
            (a.midline + direction * a.half_width * 0.55, near - 0.035),
            (a.midline + direction * (a.half_width + 0.06), far + 0.02 * rng.random()),
        ]
        draw_polyline(canvas, points, 0.014, 0.13)


def _vessels(rng: np.random.Generator, a: Anatomy, canvas: Canvas, lungs: Canvas) -> None:
    layer = np.zeros_like(canvas)
    for _, direction in SIDES:
        hx, hy = a.midline + direction * (a.medial + 0.03), a.apex + 0.27
        for _ in range(9):
            r = rng.random(4)
            reach = 0.06 + 0.13 * r[0]
            slope = (r[1] - 0.42) * 2
            mid = (hx + direction * reach * 0.5, hy + slope * reach * 0.55)
            add_segment(layer, (hx, hy), mid, 0.009, 0.055)
            add_segment(layer, mid, (mid[0] + direction * reach * 0.6, mid[1] + slope * reach * 0.9), 0.006, 0.045)
        rows, cols, x, y = box(a.size, hx - 0.06, hx + 0.06, hy - 0.08, hy + 0.08)
        layer[rows, cols] += np.float32(0.10) * bump(((x - hx) / 0.045) ** 2 + ((y - hy) / 0.07) ** 2)
    canvas += layer * lungs
    canvas += np.float32(0.018) * coarse_noise(rng, 26, a.size) * lungs


def _mediastinum(rng: np.random.Generator, a: Anatomy, canvas: Canvas) -> None:
    x, y = a.x, a.y
    dx = x - np.float32(a.midline)
    canvas += np.float32(0.11) * step(np.float32(a.medial) - np.abs(dx), 0.03)
    ex = (dx - np.float32(0.16 * a.heart_half_width + 0.012)) / np.float32(a.heart_half_width)
    ey = (y - np.float32(a.heart_y)) / np.float32(0.105 + 0.22 * a.heart_half_width)
    tilt = ex * ex + ey * ey - np.float32(0.5) * ex * ey
    heart = step(np.float32(1) - tilt, 0.14)
    blood = heart * step(np.float32(a.base_right + 0.06) - y, 0.05)
    canvas += np.float32(0.85) * blood * np.clip(np.float32(0.57) - canvas, 0, 1)
    knob_x, knob_y = a.midline + a.medial + 0.008, a.apex + 0.20 + 0.02 * rng.random()
    canvas += np.float32(0.13) * bump(((x - knob_x) / 0.042) ** 2 + ((y - knob_y) / 0.05) ** 2)
    spine = step(np.float32(0.030) - np.abs(dx), 0.012)
    level = y / np.float32(0.048)
    gap = np.abs(level - np.floor(level + np.float32(0.5)))
    canvas += spine * np.float32(0.05) * (np.float32(0.6) + np.float32(0.4) * step(gap - np.float32(0.12), 0.08))
    trachea = step(np.float32(0.019) - np.abs(dx), 0.007) * step(np.float32(a.apex + 0.24) - y, 0.03)
    canvas -= np.float32(0.13) * trachea
