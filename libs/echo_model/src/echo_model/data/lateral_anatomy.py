"""The normal chest of a phantom from its left side: measures and painting.

The patient faces the left edge, so x runs from front to back; heights are those of the frontal view.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from echo_model.data.anatomy import SIDES, Anatomy
from echo_model.data.drawing import Canvas, add_segment, bend, box, bump, coarse_noise, draw_polyline, step


@dataclass(frozen=True)
class LateralAnatomy:
    """Measures that only the lateral view shows, beside those of the frontal one; unit coordinates.

    ``front``: x of the sternum's inner face where the chest is deepest; ``depth``: from there to the ribs behind;
    ``kyphosis``: how far the spine bows back; ``turn``: how far the ribs of the right side stand behind those of the
    left one, by their distance from the film and a patient who is not quite side-on.
    """

    frontal: Anatomy
    front: float
    depth: float
    kyphosis: float
    turn: float
    lung_density: float

    def spine(self, y: Canvas) -> Canvas:
        """x of the vertebral bodies' middle at heights ``y``."""
        bow = (y - np.float32(0.50)) / np.float32(0.45)
        return np.asarray(self.front + self.depth - 0.095 - self.kyphosis * bow * bow, dtype=np.float32)

    def spine_at(self, y: float) -> float:
        """The same for one height."""
        return float(self.spine(np.asarray([y], dtype=np.float32))[0])

    def anterior(self, y: Canvas) -> Canvas:
        """x of the lungs' anterior border at heights ``y``: it comes forward under the sternum."""
        up = np.clip((np.float32(0.60) - y) / np.float32(0.60 - self.frontal.apex), 0, 1)
        return np.asarray(self.front + 0.145 * up * up * (0.45 + 0.55 * up), dtype=np.float32)

    def anterior_at(self, y: float) -> float:
        """The same for one height."""
        return float(self.anterior(np.asarray([y], dtype=np.float32))[0])

    def posterior(self, side: str) -> Canvas:
        """x of the lung's border behind, shape (size, 1), in the gutter beside the vertebrae."""
        y = self.frontal.y
        t = np.clip((y - np.float32(self.frontal.apex)) / np.float32(0.30), 0, 1)
        rounding = np.float32(0.13) * (1 - t) * (1 - t) * (1 - t)
        turned = np.float32(self.turn if side == "right" else 0)
        return np.asarray(self.spine(y) + np.float32(0.068) + turned - rounding, dtype=np.float32)

    def dome(self, side: str) -> Canvas:
        """Height of a hemidiaphragm, shape (1, size): it falls off steeply to the sulcus behind."""
        u = (self.frontal.x - np.float32(self.front)) / np.float32(self.depth) - np.float32(0.36)
        return np.asarray(self.frontal.base(side) + u * u * np.where(u < 0, np.float32(0.42), np.float32(0.40)))

    def top(self, inset: float) -> Canvas:
        """Height of the lungs' rounded top, shape (1, size)."""
        u = (self.frontal.x - np.float32(self.front)) / np.float32(self.depth) - np.float32(0.56)
        return np.asarray(np.float32(self.frontal.apex + inset) + np.float32(0.9) * u * u, dtype=np.float32)

    def lung(self, side: str, inset: float = 0.0) -> Canvas:
        """Soft mask (size, size) of one lung; ``inset`` gives a lung collapsed away from the wall by that much."""
        x, y = self.frontal.x, self.frontal.y
        return np.asarray(
            step(x - self.anterior(y) - np.float32(0.6 * inset), 0.012)
            * step(self.posterior(side) - np.float32(0.4 * inset) - x, 0.010)
            * step(self.dome(side) - y, 0.009)
            * step(y - self.top(inset), 0.035),
            dtype=np.float32,
        )

    @property
    def hilum(self) -> tuple[float, float]:
        """Where bronchi and vessels enter the lungs, (x, y)."""
        return self.front + 0.50 * self.depth, self.frontal.apex + 0.27

    def heart(self) -> Canvas:
        """Soft mask (size, size) of the heart: on the diaphragm, against the sternum, tilted backwards and up."""
        a = self.frontal
        rx, ry = 0.030 + 0.74 * a.heart_half_width, 0.058 + 0.50 * a.heart_half_width
        ex = (a.x - np.float32(self.anterior_at(a.heart_y) + 0.93 * rx)) / np.float32(rx)
        ey = (a.y - np.float32(a.heart_y + 0.005)) / np.float32(ry)
        tilt = ex * ex + ey * ey + np.float32(0.55) * ex * ey
        return step(np.asarray(1 - tilt, dtype=np.float32), 0.16)


def draw_lateral_anatomy(rng: np.random.Generator, frontal: Anatomy) -> LateralAnatomy:
    """Draw what the frontal measures leave open."""
    r = rng.random(5)
    depth = frontal.half_width * (1.58 + 0.14 * (r[0] - 0.5) * 2)
    return LateralAnatomy(
        frontal=frontal,
        front=0.475 - 0.5 * depth + 0.02 * (r[1] - 0.5) * 2,
        depth=depth,
        kyphosis=0.075 + 0.03 * (r[2] - 0.5) * 2,
        turn=0.016 + 0.012 * (r[3] - 0.5) * 2,
        lung_density=0.175 + 0.02 * r[4],
    )


def paint_lateral_chest(rng: np.random.Generator, a: LateralAnatomy) -> tuple[Canvas, dict[str, Canvas]]:
    """Paint a normal chest. Returns the canvas of densities (size, size) and the soft masks of both lungs."""
    x, y = a.frontal.x, a.frontal.y
    torso = _torso(rng, a)
    canvas = np.asarray(0.10 + 0.47 * torso, dtype=np.float32)
    # Raised arms and the shoulders above, liver and spleen below.
    canvas += np.float32(0.12) * step(np.float32(a.frontal.apex + 0.06) - y, 0.13) * torso
    canvas += np.float32(0.06) * step(y - np.float32(0.72), 0.1) * torso
    lungs = {side: a.lung(side) for side, _ in SIDES}
    for lung in lungs.values():
        canvas -= np.float32(a.lung_density) * lung
    both = np.asarray(0.5 * (lungs["right"] + lungs["left"]), dtype=np.float32)
    _spine(a, canvas)
    _ribs(rng, a, canvas, torso)
    _sternum(a, canvas)
    _vessels(rng, a, canvas, both)
    _heart_and_aorta(rng, a, canvas, both)
    _airway(a, canvas)
    bx, by = a.front + a.depth * (0.40 + 0.1 * rng.random()), a.frontal.base_left + 0.06
    bubble = bump(((x - np.float32(bx)) / np.float32(0.075)) ** 2 + ((y - np.float32(by)) / np.float32(0.034)) ** 2)
    canvas -= np.float32(0.16 * rng.random()) * np.minimum(2 * bubble, 1) * (1 - both)
    return canvas, lungs


def _torso(rng: np.random.Generator, a: LateralAnatomy) -> Canvas:
    """Soft mask of the body; the top widens to the raised arms."""
    x, y = a.frontal.x, a.frontal.y
    wall = 0.050 + 0.025 * rng.random()
    breast = (y - np.float32(0.50)) / np.float32(0.17)
    front = a.anterior(y) - np.float32(wall) - np.float32(0.045 * rng.random()) * bump(breast * breast)
    front = front - np.float32(0.05) * step(np.float32(0.06) - y, 0.10)
    back = a.spine(y) + np.float32(0.135 + 0.02 * rng.random()) - np.float32(0.05) * step(np.float32(0.2) - y, 0.2)
    return np.asarray(step(x - front, 0.022) * step(back - x, 0.022), dtype=np.float32)


def _spine(a: LateralAnatomy, canvas: Canvas) -> None:
    """Vertebral bodies with their end plates, square to the bow of the spine."""
    x, y = a.frontal.x, a.frontal.y
    dx = x - a.spine(y)
    slope = np.float32(-2 * a.kyphosis / (0.45 * 0.45)) * (y - np.float32(0.50))
    level = (y + slope * dx) / np.float32(0.062)
    off = np.abs(level - np.floor(level + np.float32(0.5)))
    half = np.float32(0.036) - np.float32(0.006) * step(np.float32(0.14) - np.abs(off - np.float32(0.26)), 0.1)
    body = step(half - np.abs(dx), 0.008)
    disc = step(np.float32(0.10) - off, 0.05)
    plate = bump(((off - np.float32(0.17)) / np.float32(0.09)) ** 2) * body
    rim = bump(((np.abs(dx) - np.float32(0.033)) / np.float32(0.007)) ** 2) * (1 - disc)
    canvas += np.float32(0.095) * body * (1 - np.float32(0.62) * disc) + np.float32(0.05) * plate
    canvas += np.float32(0.03) * rim
    arch = dx - np.float32(0.064)
    spinous = step(np.float32(0.026) - np.abs(arch), 0.014) * step(
        np.float32(0.20) - np.abs(off - np.float32(0.3)), 0.1
    )
    canvas += np.float32(0.045) * spinous


def _ribs(rng: np.random.Generator, a: LateralAnatomy, canvas: Canvas, torso: Canvas) -> None:
    """Ribs of both sides, falling forwards, and the edge of the chest wall behind."""
    x, y = a.frontal.x, a.frontal.y
    strength = 0.030 + 0.016 * rng.random()
    for side, _ in SIDES:
        back = a.posterior(side)
        u = (back - x) / np.float32(a.depth)
        phase = (y - np.float32(a.frontal.apex) - np.float32(0.30) * u + np.float32(0.05) * u * u) / np.float32(
            a.frontal.rib_spacing
        ) - np.float32(a.frontal.rib_phase + (0.12 if side == "right" else 0))
        off = np.abs(phase - np.floor(phase + np.float32(0.5)))
        # Ribs end in cartilage before the sternum, and fade over the abdomen.
        inside = step(u + np.float32(0.06), 0.03) * step(np.float32(0.80) - u, 0.10) * torso
        inside = inside * step(y - np.float32(a.frontal.apex + 0.01), 0.03)
        inside = inside * (1 - np.float32(0.7) * step(y - a.dome(side), 0.05))
        tube = step(np.float32(0.15) - off, 0.06) + np.float32(0.8) * bump(
            ((off - np.float32(0.15)) / np.float32(0.06)) ** 2
        )
        canvas += np.float32(strength) * tube * inside
        edge = bump(((x - back - np.float32(0.006)) / np.float32(0.012)) ** 2)
        within = step(y - np.float32(a.frontal.apex + 0.05), 0.03) * step(np.float32(0.84) - y, 0.04)
        canvas += np.float32(0.05) * edge * within
    # Shoulder blades: two long edges over the upper spine.
    for shift in (0.0, 0.028 + 0.02 * rng.random()):
        top = a.spine_at(0.10) + 0.015 + shift
        edge_of_blade = bend((top - 0.03, a.frontal.apex - 0.04), (top + 0.01, 0.22), (top + 0.065, 0.38))
        draw_polyline(canvas, edge_of_blade, 0.009, 0.055)


def _sternum(a: LateralAnatomy, canvas: Canvas) -> None:
    """Manubrium and body as two cortical lines with marrow between, jointed at the angle of Louis."""
    top, end = a.frontal.apex + 0.055, a.frontal.heart_y + 0.015
    angle = top + 0.095
    for start, stop in ((top, angle - 0.006), (angle + 0.006, end)):
        heights = [start + (stop - start) * share / 4 for share in range(5)]
        inner = [(a.anterior_at(height) - 0.010, height) for height in heights]
        outer = [(x - 0.022, height) for x, height in inner]
        draw_polyline(canvas, [(x - 0.011, height) for x, height in inner], 0.014, 0.07)
        draw_polyline(canvas, [*inner, *reversed(outer), inner[0]], 0.0055, 0.09)


def _vessels(rng: np.random.Generator, a: LateralAnatomy, canvas: Canvas, lungs: Canvas) -> None:
    layer = np.zeros_like(canvas)
    hx, hy = a.hilum
    for ahead in (-1, 1):
        for _ in range(8):
            r = rng.random(4)
            reach = ahead * (0.05 + 0.11 * r[0])
            slope = (r[1] - 0.36) * 2
            start = (hx + 0.03 * (r[2] - 0.5), hy + 0.04 * (r[3] - 0.5))
            mid = (hx + reach * 0.5, hy + slope * abs(reach) * 0.7)
            add_segment(layer, start, mid, 0.009, 0.038)
            add_segment(layer, mid, (mid[0] + reach * 0.6, mid[1] + slope * abs(reach) * 0.9), 0.006, 0.034)
    # The right pulmonary artery before the bronchus, the left one arching over and behind it.
    for px, py, wide, high, value in ((-0.038, 0.018, 0.036, 0.046, 0.10), (0.032, -0.020, 0.046, 0.034, 0.085)):
        rows, cols, x, y = box(a.frontal.size, hx + px - 0.06, hx + px + 0.06, hy + py - 0.06, hy + py + 0.06)
        ex, ey = (x - np.float32(hx + px)) / np.float32(wide), (y - np.float32(hy + py)) / np.float32(high)
        layer[rows, cols] += np.float32(value) * np.minimum(np.float32(1.6) * bump(ex * ex + ey * ey), 1)
    canvas += layer * lungs
    canvas += np.float32(0.016) * coarse_noise(rng, 26, a.frontal.size) * lungs
    # The oblique fissure of either side and the lesser one of the right, thin as they are.
    for path in fissures(a):
        line = np.zeros_like(canvas)
        draw_polyline(line, path, 0.0055, 0.028)
        canvas += line * lungs


def fissures(a: LateralAnatomy) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Lines of the oblique and of the lesser fissure."""
    hx, hy = a.hilum
    low = a.frontal.base_right
    oblique = bend((a.spine_at(hy - 0.06) + 0.03, hy - 0.06), (hx + 0.02, hy + 0.09), (a.front + 0.13, low))
    lesser = bend((hx - 0.01, hy + 0.05), (hx - 0.10, hy + 0.045), (a.anterior_at(hy + 0.08) + 0.01, hy + 0.075))
    return oblique, lesser


def _heart_and_aorta(rng: np.random.Generator, a: LateralAnatomy, canvas: Canvas, lungs: Canvas) -> None:
    y = a.frontal.y
    heart = a.heart()
    blood = heart * step(np.float32(a.frontal.base_right + 0.05) - y, 0.05)
    canvas += np.float32(0.80) * blood * np.clip(np.float32(0.50) - canvas, 0, 1)
    hx, hy = a.hilum
    vessels = np.zeros_like(canvas)
    arch_y = a.frontal.apex + 0.17 + 0.02 * rng.random()
    root = (hx - 0.075, a.frontal.heart_y - 0.06)
    up = bend(root, (hx - 0.10, arch_y - 0.01), (hx - 0.02, arch_y))
    down = bend((hx - 0.02, arch_y), (hx + 0.085, arch_y + 0.005), (a.spine_at(hy + 0.09) - 0.025, hy + 0.09))
    draw_polyline(vessels, up, 0.062, 0.115)
    along = [*down[1:], (a.spine_at(0.58) - 0.02, 0.58), (a.spine_at(0.72) - 0.025, 0.72)]
    draw_polyline(vessels, [down[0], *along], 0.038, 0.05)
    # What fills the upper mediastinum before the trachea.
    above = [(a.front + 0.36 * a.depth, a.frontal.apex - 0.02), (hx - 0.085, arch_y)]
    draw_polyline(vessels, above, 0.085, 0.085)
    canvas += vessels * np.minimum(lungs + np.float32(0.25), 1) * (1 - np.float32(0.85) * heart)
    # The inferior vena cava, behind the heart where it meets the diaphragm.
    cava = a.anterior_at(a.frontal.heart_y) + 1.74 * (0.030 + 0.74 * 0.15)
    draw_polyline(
        canvas, [(cava, a.frontal.base_right - 0.05), (cava + 0.008, a.frontal.base_right + 0.01)], 0.03, 0.04
    )


def airway(a: LateralAnatomy) -> list[tuple[float, float]]:
    """The trachea's course from the neck to the carina."""
    hx, hy = a.hilum
    return [(hx - 0.035, 0.0), (hx - 0.012, a.frontal.apex + 0.12), (hx + 0.004, hy - 0.01)]


def _airway(a: LateralAnatomy, canvas: Canvas) -> None:
    draw_polyline(canvas, airway(a), 0.026, -0.125)
    hx, hy = a.hilum
    # The left upper lobe's bronchus end-on.
    draw_polyline(canvas, [(hx + 0.006, hy + 0.028), (hx + 0.007, hy + 0.028)], 0.018, -0.10)
