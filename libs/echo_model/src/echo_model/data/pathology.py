"""Painting of findings on a phantom. Each painter adds to the canvas in place and returns the region it touched.

A painter draws its own random numbers in a fixed order, so that adding a finding later changes no other one. What the
lateral view has to agree with (heights, sizes) is drawn first, by functions of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from echo_model.data.anatomy import Anatomy
from echo_model.data.drawing import Canvas, add_segment, bend, box, bump, coarse_noise, draw_polyline, step
from echo_model.data.labels import Finding

Region = Canvas
Painter = Callable[[np.random.Generator, Anatomy, Canvas, dict[str, Canvas], str, Finding], Region]


def direction_of(side: str) -> int:
    """Where a side lies from the midline of the image."""
    return -1 if side == "right" else 1


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """One uniform draw."""
    return low + (high - low) * float(rng.random())


def effusion_height(rng: np.random.Generator, finding: Finding) -> float:
    """How high the fluid stands."""
    return between(rng, 0.055, 0.10) if finding.size == "small" else between(rng, 0.19, 0.30)


def paint_effusion(
    rng: np.random.Generator, a: Anatomy, canvas: Canvas, lungs: dict[str, Canvas], side: str, finding: Finding
) -> Region:
    """Fluid with a meniscus that climbs at the chest wall; small ones only blunt the angle."""
    height = effusion_height(rng, finding)
    u = (a.x - np.float32(a.midline)) * direction_of(side) / np.float32(a.half_width)
    top = a.base(side) + 0.045 - height - np.float32(0.06) * np.clip(u, 0, 1) * np.clip(u, 0, 1)
    fluid = step(a.y - top, 0.02) * lungs[side]
    canvas += fluid * (np.float32(between(rng, 0.56, 0.62)) - canvas) * np.float32(0.92)
    return fluid


def paint_pneumothorax(
    rng: np.random.Generator, a: Anatomy, canvas: Canvas, lungs: dict[str, Canvas], side: str, finding: Finding
) -> Region:
    """Black rim without vessels outside a thin pleural line."""
    inset = between(rng, 0.045, 0.085)
    inner = a.lung(side, inset)
    air = np.asarray(np.clip(lungs[side] - inner, 0, 1), dtype=np.float32)
    canvas += air * (np.float32(between(rng, 0.12, 0.17)) - canvas) * np.float32(0.75)
    canvas += np.float32(0.02) * inner
    line = np.clip(4 * inner * (1 - inner), 0, 1) * step(np.float32(a.base(side) - 0.03) - a.y, 0.02)
    dx = (a.x - np.float32(a.midline)) * direction_of(side)
    canvas += np.float32(0.11) * line * lungs[side] * step(dx - np.float32(a.medial + 0.03), 0.02)
    return air


def consolidation_place(
    rng: np.random.Generator, a: Anatomy, side: str, finding: Finding
) -> tuple[float, float, float, float]:
    """Centre (x, y) and radii (x, y)."""
    cx = a.midline + direction_of(side) * a.half_width * between(rng, 0.42, 0.66)
    cy = a.apex + (between(rng, 0.13, 0.20) if finding.zone == "upper" else between(rng, 0.37, 0.45))
    return cx, cy, between(rng, 0.075, 0.115), between(rng, 0.065, 0.10)


def paint_consolidation(
    rng: np.random.Generator, a: Anatomy, canvas: Canvas, lungs: dict[str, Canvas], side: str, finding: Finding
) -> Region:
    """Patchy dense area with soft edges in one zone."""
    cx, cy, rx, ry = consolidation_place(rng, a, side, finding)
    blob = bump(((a.x - np.float32(cx)) / np.float32(rx)) ** 2 + ((a.y - np.float32(cy)) / np.float32(ry)) ** 2)
    patchy = blob * (np.float32(0.8) + np.float32(0.35) * coarse_noise(rng, 22, a.size)) * lungs[side]
    canvas += np.float32(between(rng, 0.24, 0.33)) * patchy
    return np.asarray(blob * lungs[side], dtype=np.float32)


def paint_edema(
    rng: np.random.Generator, a: Anatomy, canvas: Canvas, lungs: dict[str, Canvas], side: str, finding: Finding
) -> Region:
    """Bat-wing haze around both hila and short septal lines at the walls."""
    region = np.zeros_like(canvas)
    texture = np.float32(0.75) + np.float32(0.45) * coarse_noise(rng, 30, a.size)
    strength = between(rng, 0.17, 0.26)
    for name, lung in lungs.items():
        cx = a.midline + direction_of(name) * (a.medial + 0.085)
        ex, ey = (a.x - np.float32(cx)) / np.float32(0.17), (a.y - np.float32(a.apex + 0.32)) / np.float32(0.21)
        region += bump((ex * ex + ey * ey).astype(np.float32)) * lung
        for _ in range(5):
            y = between(rng, a.apex + 0.36, a.base(name) - 0.05)
            wall = a.midline + direction_of(name) * a.half_width * 0.93
            add_segment(canvas, (wall, y), (wall - direction_of(name) * 0.035, y - 0.004), 0.005, 0.06)
    canvas += np.float32(strength) * region * texture
    return region


def nodule_place(rng: np.random.Generator, a: Anatomy, side: str, finding: Finding) -> tuple[float, float, float]:
    """Centre (x, y) and radius."""
    cx = a.midline + direction_of(side) * a.half_width * between(rng, 0.40, 0.74)
    cy = a.apex + (between(rng, 0.11, 0.22) if finding.zone == "upper" else between(rng, 0.32, 0.43))
    return cx, cy, between(rng, 0.021, 0.034)


def paint_nodule(
    rng: np.random.Generator, a: Anatomy, canvas: Canvas, lungs: dict[str, Canvas], side: str, finding: Finding
) -> Region:
    """One round, well-defined opacity in free lung."""
    cx, cy, radius = nodule_place(rng, a, side, finding)
    rows, cols, x, y = box(a.size, cx - 0.05, cx + 0.05, cy - 0.05, cy + 0.05)
    dx, dy = x - np.float32(cx), y - np.float32(cy)
    d2 = np.asarray((dx * dx + dy * dy) / np.float32(radius * radius), dtype=np.float32)
    disc = step(1 - d2, 0.5)
    canvas[rows, cols] += np.float32(between(rng, 0.19, 0.27)) * disc
    region = np.zeros_like(canvas)
    region[rows, cols] = disc
    return region


def atelectasis_levels(rng: np.random.Generator, a: Anatomy, side: str) -> tuple[float, ...]:
    """Heights of the plates."""
    level = a.base(side) - between(rng, 0.065, 0.12)
    return tuple(level - 0.035 * number for number in range(1 + int(rng.random() < 0.4)))


def paint_atelectasis(
    rng: np.random.Generator, a: Anatomy, canvas: Canvas, lungs: dict[str, Canvas], side: str, finding: Finding
) -> Region:
    """One or two plates, nearly level, above the diaphragm."""
    region = np.zeros_like(canvas)
    for y in atelectasis_levels(rng, a, side):
        near = a.midline + direction_of(side) * a.half_width * between(rng, 0.42, 0.52)
        far = a.midline + direction_of(side) * a.half_width * between(rng, 0.80, 0.92)
        draw_polyline(region, [(near, y), (far, y + between(rng, -0.035, 0.012))], between(rng, 0.011, 0.015), 1.0)
    region = np.minimum(region, 1)
    canvas += np.float32(between(rng, 0.19, 0.25)) * region * lungs[side]
    return region


def fracture_start(rng: np.random.Generator) -> tuple[int, float]:
    """First broken rib, and where on it as a share of the half width."""
    return 2 + int(rng.random() * 3), between(rng, 0.66, 0.80)


def paint_rib_fracture(
    rng: np.random.Generator, a: Anatomy, canvas: Canvas, lungs: dict[str, Canvas], side: str, finding: Finding
) -> Region:
    """Two displaced and angled ends of one or two lateral ribs with a dark gap between them."""
    region = np.zeros_like(canvas)
    direction = direction_of(side)
    first, u = fracture_start(rng)
    for number in range(first, first + 1 + int(rng.random() < 0.5)):
        x, y = a.midline + direction * u * a.half_width, a.rib_y(number, u)
        shift = between(rng, 0.016, 0.024)
        inner = [(x - direction * 0.055, y - 0.006), (x - direction * 0.004, y - shift * 0.5)]
        outer = [(x + direction * 0.006, y + shift), (x + direction * 0.058, y + 0.022)]
        gap = [(x + direction * 0.001, y - 0.03), (x + direction * 0.002, y + 0.035)]
        draw_polyline(canvas, gap, 0.010, -0.13)
        draw_polyline(canvas, inner, 0.013, 0.21)
        draw_polyline(canvas, outer, 0.013, 0.21)
        draw_polyline(region, [inner[0], (x, y), outer[1]], 0.03, 1.0)
    return np.minimum(region, 1)


def pacemaker_place(rng: np.random.Generator, a: Anatomy, side: str) -> tuple[float, float]:
    """Centre (x, y) of the generator."""
    cx = a.midline + direction_of(side) * a.half_width * between(rng, 0.72, 0.92)
    return cx, a.apex + between(rng, 0.06, 0.12)


def paint_pacemaker(
    rng: np.random.Generator, a: Anatomy, canvas: Canvas, lungs: dict[str, Canvas], side: str, finding: Finding
) -> Region:
    """Generator below the collar bone and a lead down to the apex of the heart."""
    direction = direction_of(side)
    cx, cy = pacemaker_place(rng, a, side)
    half_w, half_h = between(rng, 0.034, 0.042), between(rng, 0.028, 0.036)
    rows, cols, x, y = box(a.size, cx - 0.07, cx + 0.07, cy - 0.07, cy + 0.07)
    across: Canvas = np.abs(x - np.float32(cx))
    down: Canvas = np.abs(y - np.float32(cy))
    can = step(half_w - across, 0.008) * step(half_h - down, 0.008)
    canvas[rows, cols] += can * (np.float32(1.02) - canvas[rows, cols])
    vein = (a.midline - 0.03, a.apex + 0.15)
    tip = (a.midline + between(rng, 0.06, 0.10), a.heart_y + 0.05)
    path = bend((cx, cy), (a.midline + direction * 0.08, a.apex + 0.03), vein)
    path += bend(vein, (a.midline - 0.06, a.heart_y - 0.02), tip)[1:]
    draw_polyline(canvas, path, 0.0075, 0.33)
    region = np.zeros_like(canvas)
    region[rows, cols] = can
    return region


def tube_tip(rng: np.random.Generator, a: Anatomy) -> float:
    """Height of the tube's tip."""
    return a.apex + between(rng, 0.12, 0.18)


def paint_endotracheal_tube(
    rng: np.random.Generator, a: Anatomy, canvas: Canvas, lungs: dict[str, Canvas], side: str, finding: Finding
) -> Region:
    """Tube in the trachea with two bright walls, its tip above the carina."""
    tip = tube_tip(rng, a)
    region = np.zeros_like(canvas)
    for offset in (-0.010, 0.010):
        path = [(a.midline + offset, 0.0), (a.midline + offset, tip)]
        draw_polyline(canvas, path, 0.0075, 0.34)
        draw_polyline(region, path, 0.02, 1.0)
    draw_polyline(canvas, [(a.midline, 0.0), (a.midline, tip)], 0.012, 0.12)
    return np.minimum(region, 1)


def central_line_ends(
    rng: np.random.Generator, a: Anatomy, side: str
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the catheter goes in, and its tip, both (x, y)."""
    x = a.midline + direction_of(side) * a.half_width * between(rng, 0.62, 0.85)
    start = (x, a.apex + between(rng, 0.075, 0.105))
    return start, (a.midline - 0.040, a.apex + between(rng, 0.22, 0.29))


def paint_central_line(
    rng: np.random.Generator, a: Anatomy, canvas: Canvas, lungs: dict[str, Canvas], side: str, finding: Finding
) -> Region:
    """Thin catheter from below one collar bone to the superior vena cava, on the patient's right of the midline."""
    direction = direction_of(side)
    start, tip = central_line_ends(rng, a, side)
    bend_at = (a.midline + direction * 0.07, a.apex + 0.015)
    cava = (a.midline - 0.042, a.apex + 0.12)
    path = [*bend(start, bend_at, cava), tip]
    draw_polyline(canvas, path, 0.0065, 0.30)
    region = np.zeros_like(canvas)
    draw_polyline(region, path, 0.015, 1.0)
    return region


PAINTERS: dict[str, Painter] = {
    "pulmonary_edema": paint_edema,
    "consolidation": paint_consolidation,
    "nodule": paint_nodule,
    "atelectasis": paint_atelectasis,
    "pneumothorax": paint_pneumothorax,
    "pleural_effusion": paint_effusion,
    "rib_fracture": paint_rib_fracture,
    "endotracheal_tube": paint_endotracheal_tube,
    "central_line": paint_central_line,
    "pacemaker": paint_pacemaker,
}
"""In the order of painting: lungs first, what lies over them last. Cardiomegaly is part of the anatomy."""
