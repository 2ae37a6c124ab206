"""Painting of findings on the lateral view. Each painter adds to the canvas in place and returns the region it touched.

A painter gets two streams: the frontal painter's own, from which it takes the height and size that both views share,
and one of the lateral view.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from echo_model.data import pathology
from echo_model.data.drawing import Canvas, add_segment, bend, box, bump, coarse_noise, draw_polyline, step
from echo_model.data.labels import Finding
from echo_model.data.lateral_anatomy import LateralAnatomy, airway, fissures
from echo_model.data.pathology import Region, between

LateralPainter = Callable[
    [np.random.Generator, np.random.Generator, LateralAnatomy, Canvas, dict[str, Canvas], str, Finding], Region
]


def paint_effusion(
    shared: np.random.Generator,
    rng: np.random.Generator,
    a: LateralAnatomy,
    canvas: Canvas,
    lungs: dict[str, Canvas],
    side: str,
    finding: Finding,
) -> Region:
    """Fluid in the sulcus behind, its level climbing at both walls; a small one blunts the angle only."""
    height = pathology.effusion_height(shared, finding)
    u = (a.frontal.x - np.float32(a.front)) / np.float32(a.depth) - np.float32(0.45)
    top = np.float32(a.frontal.base(side) + 0.098 - 0.85 * height) - np.float32(0.22) * u * u
    fluid = step(a.frontal.y - top, 0.018) * lungs[side]
    # As dense as the organs below; a little more so where there is little of it, to be seen beside the other lung.
    share = between(rng, 1.35, 1.55) if finding.size == "small" else between(rng, 1.0, 1.12)
    density = np.float32(a.lung_density * share)
    canvas += fluid * np.minimum(density, np.maximum(np.float32(0.60) - canvas, 0))
    return fluid


def paint_pneumothorax(
    shared: np.random.Generator,
    rng: np.random.Generator,
    a: LateralAnatomy,
    canvas: Canvas,
    lungs: dict[str, Canvas],
    side: str,
    finding: Finding,
) -> Region:
    """Black rim at the top and before the lung, outside a thin pleural line."""
    inner = a.lung(side, between(shared, 0.045, 0.085))
    air = np.asarray(np.clip(lungs[side] - inner, 0, 1), dtype=np.float32)
    canvas -= np.float32(between(rng, 0.085, 0.11)) * air
    line = np.clip(4 * inner * (1 - inner), 0, 1) * step(np.float32(a.frontal.base(side) - 0.03) - a.frontal.y, 0.02)
    canvas += np.float32(0.10) * line * lungs[side]
    return air


def paint_consolidation(
    shared: np.random.Generator,
    rng: np.random.Generator,
    a: LateralAnatomy,
    canvas: Canvas,
    lungs: dict[str, Canvas],
    side: str,
    finding: Finding,
) -> Region:
    """Patchy dense area; low ones lie behind, over the spine that they whiten, or before the heart."""
    _, cy, rx, ry = pathology.consolidation_place(shared, a.frontal, side, finding)
    low_share, high_share = (0.34, 0.62) if finding.zone == "upper" else (0.60, 0.76)
    cx = a.front + a.depth * between(rng, low_share, high_share)
    ex, ey = (a.frontal.x - np.float32(cx)) / np.float32(rx), (a.frontal.y - np.float32(cy)) / np.float32(ry)
    blob = bump(np.asarray(ex * ex + ey * ey, dtype=np.float32))
    patchy = blob * (np.float32(0.8) + np.float32(0.35) * coarse_noise(rng, 22, a.frontal.size)) * lungs[side]
    canvas += np.float32(between(rng, 0.29, 0.37)) * patchy
    return np.asarray(blob * lungs[side], dtype=np.float32)


def paint_edema(
    shared: np.random.Generator,
    rng: np.random.Generator,
    a: LateralAnatomy,
    canvas: Canvas,
    lungs: dict[str, Canvas],
    side: str,
    finding: Finding,
) -> Region:
    """Haze around the hila, fissures thick with fluid, short septal lines behind the sternum."""
    hx, hy = a.hilum
    both = np.asarray(0.5 * (lungs["right"] + lungs["left"]), dtype=np.float32)
    texture = np.float32(0.75) + np.float32(0.45) * coarse_noise(rng, 30, a.frontal.size)
    ex, ey = (a.frontal.x - np.float32(hx)) / np.float32(0.21), (a.frontal.y - np.float32(hy + 0.06)) / np.float32(0.23)
    region = bump(np.asarray(ex * ex + ey * ey, dtype=np.float32)) * both
    canvas += np.float32(between(rng, 0.20, 0.28)) * region * texture
    for path in fissures(a):
        line = np.zeros_like(canvas)
        draw_polyline(line, path, 0.010, 0.075)
        canvas += line * both
    for _ in range(5):
        y = between(rng, a.frontal.apex + 0.30, a.frontal.apex + 0.44)
        x = a.anterior_at(y) + 0.012
        add_segment(canvas, (x, y), (x + 0.035, y - 0.003), 0.005, 0.05)
    return region


def paint_nodule(
    shared: np.random.Generator,
    rng: np.random.Generator,
    a: LateralAnatomy,
    canvas: Canvas,
    lungs: dict[str, Canvas],
    side: str,
    finding: Finding,
) -> Region:
    """One round, well-defined opacity between sternum and spine."""
    _, cy, radius = pathology.nodule_place(shared, a.frontal, side, finding)
    front, back = a.anterior_at(cy) + 0.05, a.spine_at(cy) - 0.07
    cx = front + (back - front) * between(rng, 0.05, 0.95)
    rows, cols, x, y = box(a.frontal.size, cx - 0.05, cx + 0.05, cy - 0.05, cy + 0.05)
    dx, dy = x - np.float32(cx), y - np.float32(cy)
    d2 = np.asarray((dx * dx + dy * dy) / np.float32(radius * radius), dtype=np.float32)
    disc = step(1 - d2, 0.5)
    canvas[rows, cols] += np.float32(between(rng, 0.19, 0.26)) * disc
    region = np.zeros_like(canvas)
    region[rows, cols] = disc
    return region


def paint_atelectasis(
    shared: np.random.Generator,
    rng: np.random.Generator,
    a: LateralAnatomy,
    canvas: Canvas,
    lungs: dict[str, Canvas],
    side: str,
    finding: Finding,
) -> Region:
    """One or two plates above the diaphragm, at the heights of the frontal view."""
    region = np.zeros_like(canvas)
    for y in pathology.atelectasis_levels(shared, a.frontal, side):
        near = a.front + a.depth * between(rng, 0.44, 0.56)
        far = near + between(rng, 0.12, 0.17)
        draw_polyline(region, [(near, y), (far, y + between(rng, -0.01, 0.035))], between(rng, 0.011, 0.015), 1.0)
    region = np.minimum(region, 1)
    canvas += np.float32(between(rng, 0.17, 0.22)) * region * lungs[side]
    return region


def paint_rib_fracture(
    shared: np.random.Generator,
    rng: np.random.Generator,
    a: LateralAnatomy,
    canvas: Canvas,
    lungs: dict[str, Canvas],
    side: str,
    finding: Finding,
) -> Region:
    """A step in one or two ribs where they run across the chest; subtle, as it is on a lateral."""
    region = np.zeros_like(canvas)
    first, u = pathology.fracture_start(shared)
    x = a.front + a.depth * between(rng, 0.40, 0.58)
    for number in range(first, first + 1 + int(shared.random() < 0.5)):
        y = a.frontal.rib_y(number, u)
        shift = between(rng, 0.014, 0.020)
        behind = [(x + 0.050, y - 0.015), (x + 0.005, y - shift * 0.5)]
        before = [(x - 0.005, y + shift), (x - 0.050, y + 0.030)]
        draw_polyline(canvas, [(x, y - 0.025), (x, y + 0.032)], 0.009, -0.09)
        draw_polyline(canvas, behind, 0.011, 0.15)
        draw_polyline(canvas, before, 0.011, 0.15)
        draw_polyline(region, [behind[0], (x, y), before[1]], 0.03, 1.0)
    return np.minimum(region, 1)


def paint_pacemaker(
    shared: np.random.Generator,
    rng: np.random.Generator,
    a: LateralAnatomy,
    canvas: Canvas,
    lungs: dict[str, Canvas],
    side: str,
    finding: Finding,
) -> Region:
    """Generator nearly edge-on in the chest wall before the first ribs, its lead to the tip of the right ventricle."""
    f = a.frontal
    _, cy = pathology.pacemaker_place(shared, f, side)
    cx = a.anterior_at(cy) - 0.012
    rows, cols, x, y = box(f.size, cx - 0.07, cx + 0.07, cy - 0.07, cy + 0.07)
    # It leans with the chest wall.
    lean = np.float32(0.55) * (y - np.float32(cy))
    half_w, half_h = between(rng, 0.013, 0.018), between(rng, 0.032, 0.040)
    across: Canvas = np.abs(x - np.float32(cx) + lean)
    down: Canvas = np.abs(y - np.float32(cy))
    can = step(half_w - across, 0.007) * step(half_h - down, 0.007)
    canvas[rows, cols] += can * (np.float32(1.0) - canvas[rows, cols])
    hx, _ = a.hilum
    cava = (hx - 0.055, f.apex + 0.17)
    atrium = (hx - 0.050, f.heart_y - 0.03)
    tip = (a.anterior_at(f.heart_y) + between(rng, 0.035, 0.06), f.heart_y + 0.055)
    path = bend((cx, cy - 0.03), (hx - 0.09, f.apex - 0.03), cava)
    path += bend(cava, (cava[0] + 0.004, atrium[1] - 0.08), atrium)[1:]
    path += bend(atrium, (atrium[0] - 0.01, f.heart_y + 0.045), tip)[1:]
    draw_polyline(canvas, path, 0.0075, 0.30)
    region = np.zeros_like(canvas)
    region[rows, cols] = can
    return region


def paint_endotracheal_tube(
    shared: np.random.Generator,
    rng: np.random.Generator,
    a: LateralAnatomy,
    canvas: Canvas,
    lungs: dict[str, Canvas],
    side: str,
    finding: Finding,
) -> Region:
    """Tube in the trachea with two bright walls, its tip at the height of the frontal view."""
    tip = pathology.tube_tip(shared, a.frontal)
    neck, bend_at, carina = airway(a)
    share = min((tip - neck[1]) / (bend_at[1] - neck[1]), 1.0)
    course = [neck, (neck[0] + share * (bend_at[0] - neck[0]), neck[1] + share * (bend_at[1] - neck[1]))]
    if tip > bend_at[1]:
        below = (tip - bend_at[1]) / (carina[1] - bend_at[1])
        course.append((bend_at[0] + below * (carina[0] - bend_at[0]), tip))
    region = np.zeros_like(canvas)
    for offset in (-0.010, 0.010):
        path = [(x + offset, y) for x, y in course]
        draw_polyline(canvas, path, 0.0075, 0.30)
        draw_polyline(region, path, 0.02, 1.0)
    draw_polyline(canvas, course, 0.012, 0.12)
    return np.minimum(region, 1)


def paint_central_line(
    shared: np.random.Generator,
    rng: np.random.Generator,
    a: LateralAnatomy,
    canvas: Canvas,
    lungs: dict[str, Canvas],
    side: str,
    finding: Finding,
) -> Region:
    """Thin catheter from before the lung's top over the first rib and down the superior vena cava."""
    f = a.frontal
    (_, entry), (_, end) = pathology.central_line_ends(shared, f, side)
    hx, _ = a.hilum
    cava = (hx - 0.058, f.apex + 0.12)
    path = bend((a.anterior_at(entry) - 0.01, entry), (hx - 0.085, f.apex - 0.005), cava)
    path.append((hx - 0.052, end))
    draw_polyline(canvas, path, 0.0065, 0.28)
    region = np.zeros_like(canvas)
    draw_polyline(region, path, 0.015, 1.0)
    return region


LATERAL_PAINTERS: dict[str, LateralPainter] = {
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
"""The findings of ``pathology.PAINTERS``, from the side. Cardiomegaly is part of the anatomy."""
