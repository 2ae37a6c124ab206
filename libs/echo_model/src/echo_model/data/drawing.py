"""Drawing primitives of the phantoms, in unit coordinates on a float32 canvas.

Only additions, multiplications, divisions, comparisons and square roots are used on pixels: IEEE 754 rounds these the
same way everywhere, so a phantom has the same pixels on every machine (``exp`` and ``sin`` would not promise that).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

Canvas = npt.NDArray[np.float32]


def step(distance: Canvas, softness: float) -> Canvas:
    """Smooth 0..1 step over ``distance`` in [-softness, +softness]; any shape, same shape back."""
    t = distance * np.float32(0.5 / softness)
    t += np.float32(0.5)
    np.maximum(t, 0, out=t)
    np.minimum(t, 1, out=t)
    rest = t * np.float32(-2)
    rest += np.float32(3)
    t *= t
    t *= rest
    return t


def bump(distance_squared: Canvas) -> Canvas:
    """Bell of height 1 that reaches 0 at squared distance 1."""
    t = np.maximum(np.float32(1) - distance_squared, 0)
    t *= t
    return np.asarray(t, dtype=np.float32)


def coarse_noise(rng: np.random.Generator, cells: int, size: int) -> Canvas:
    """Noise in [-1, 1] on a ``cells`` x ``cells`` lattice, interpolated to (size, size)."""
    lattice = (rng.random((cells + 1, cells + 1)) * 2 - 1).astype(np.float32)
    at = (np.arange(size, dtype=np.float32) * np.float32(cells / size)).astype(np.float32)
    low = at.astype(np.int64)
    f = at - low
    f = f * f * (3 - 2 * f)
    rows = lattice[low] * (1 - f)[:, None] + lattice[low + 1] * f[:, None]
    return np.asarray(rows[:, low] * (1 - f)[None] + rows[:, low + 1] * f[None], dtype=np.float32)


def box(size: int, x0: float, x1: float, y0: float, y1: float) -> tuple[slice, slice, Canvas, Canvas]:
    """Row slice, column slice and the x (1, w) and y (h, 1) coordinates of a part of the canvas, clipped to it."""
    c0, c1 = max(0, int(x0 * size)), min(size, int(x1 * size) + 2)
    r0, r1 = max(0, int(y0 * size)), min(size, int(y1 * size) + 2)
    c1, r1 = max(c0, c1), max(r0, r1)
    x = ((np.arange(c0, c1, dtype=np.float32) + np.float32(0.5)) / np.float32(size))[None, :]
    y = ((np.arange(r0, r1, dtype=np.float32) + np.float32(0.5)) / np.float32(size))[:, None]
    return slice(r0, r1), slice(c0, c1), x, y


def add_segment(
    canvas: Canvas, start: tuple[float, float], end: tuple[float, float], width: float, value: float
) -> None:
    """Add a line with soft edges from ``start`` to ``end`` ((x, y), unit coordinates) to the canvas, in place."""
    (ax, ay), (bx, by) = start, end
    pad = width * 1.5
    size = canvas.shape[0]
    rows, cols, x, y = box(size, min(ax, bx) - pad, max(ax, bx) + pad, min(ay, by) - pad, max(ay, by) + pad)
    d2 = _distance2(x, y, start, end)
    canvas[rows, cols] += np.float32(value) * bump(d2 / np.float32(width * width))


def draw_polyline(canvas: Canvas, points: list[tuple[float, float]], width: float, value: float) -> None:
    """Draw connected lines of ``value`` onto the canvas without brightening the joints (maximum, not sum), in place."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    pad = width * 1.5
    rows, cols, x, y = box(canvas.shape[0], min(xs) - pad, max(xs) + pad, min(ys) - pad, max(ys) + pad)
    nearest: Canvas | None = None
    for start, end in pairwise(points):
        d2 = _distance2(x, y, start, end)
        nearest = d2 if nearest is None else np.minimum(nearest, d2)
    if nearest is not None:
        canvas[rows, cols] += np.float32(value) * bump(nearest / np.float32(width * width))


def _distance2(x: Canvas, y: Canvas, start: tuple[float, float], end: tuple[float, float]) -> Canvas:
    """Squared distance of the points (h, w) from a line segment."""
    (ax, ay), (bx, by) = start, end
    dx, dy = bx - ax, by - ay
    length2 = max(dx * dx + dy * dy, 1e-9)
    px, py = x - np.float32(ax), y - np.float32(ay)
    along = np.clip(px * np.float32(dx / length2) + py * np.float32(dy / length2), 0, 1)
    ox, oy = px - along * np.float32(dx), py - along * np.float32(dy)
    return np.asarray(ox * ox + oy * oy, dtype=np.float32)


def bend(
    start: tuple[float, float], control: tuple[float, float], end: tuple[float, float], n: int = 6
) -> list[tuple[float, float]]:
    """Points of a quadratic curve from ``start`` over ``control`` to ``end``."""
    points = []
    for i in range(n + 1):
        t = i / n
        a, b, c = (1 - t) * (1 - t), 2 * t * (1 - t), t * t
        points.append((a * start[0] + b * control[0] + c * end[0], a * start[1] + b * control[1] + c * end[1]))
    return points


def blur3(canvas: Canvas) -> Canvas:
    """Separable 1-2-1 blur with repeated edges."""
    padded = np.pad(canvas, 1, mode="edge")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) * np.float32(0.25)
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) * np.float32(0.25), dtype=np.float32)
