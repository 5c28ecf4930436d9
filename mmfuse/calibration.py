"""Where one sensor of a rig is and how it sees."""

from dataclasses import dataclass

from mmfuse.errors import UserError, require

Matrix = tuple[tuple[float, ...], ...]

IDENTITY: Matrix = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
_DISTORTIONS = (0, 4, 5, 8)


@dataclass(frozen=True)
class Calibration:
    """A camera, or a sensor that gives points (which has a pose alone).

    `size` is width and height in pixels, `intrinsics` fx, fy, cx, cy for an image of that size; the centre of the top
    left pixel is (0, 0). `distortion` is k1, k2, p1, p2[, k3[, k4, k5, k6]] as OpenCV has them, empty for none. `pose`
    (3 x 4 or 4 x 4) takes points of the sensor, in metres, to the rig: x right, y down, z ahead for a camera.
    """

    size: tuple[int, int] | None = None
    intrinsics: tuple[float, float, float, float] | None = None
    distortion: tuple[float, ...] = ()
    pose: Matrix = IDENTITY

    def __post_init__(self) -> None:
        for name in ("size", "intrinsics", "distortion"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))  # a list where it was JSON
        rows = tuple(tuple(float(v) for v in row) for row in self.pose)
        if len(rows) not in (3, 4) or any(len(row) != 4 for row in rows):
            raise UserError(f"pose: {[list(row) for row in rows]} is not 3 x 4 or 4 x 4; write its rows")
        rows = (*rows[:3], IDENTITY[3])
        object.__setattr__(self, "pose", rows)
        rotation = [row[:3] for row in rows[:3]]
        products = [sum(a * b for a, b in zip(p, q, strict=True)) for p in rotation for q in rotation]
        identity = (1, 0, 0, 0, 1, 0, 0, 0, 1)
        orthogonal = all(abs(v - one) < 1e-2 for v, one in zip(products, identity, strict=True))
        if not orthogonal or _determinant(rotation) < 0:
            raise UserError(f"pose: {rotation} is not a rotation; write rotation and translation (metres) side by side")
        size, camera, fix = self.size, self.intrinsics, "use [fx, fy, cx, cy], fx and fy > 0"
        require(size is None or min(size) >= 1, "size", size, "use [width, height] in pixels")
        require(camera is None or len(camera) == 4, "intrinsics", camera, fix)
        require(camera is None or min(camera[:2]) > 0, "intrinsics", camera, fix)
        fix = "use k1, k2, p1, p2[, k3[, k4, k5, k6]]"
        require(len(self.distortion) in _DISTORTIONS, "distortion", self.distortion, fix)

    def scaled(self, size: tuple[int, int]) -> "Calibration":
        """Returns the calibration of the same camera for an image resized to `size` (width, height)."""
        if self.size is None or self.size == size or self.intrinsics is None:
            return Calibration(size, self.intrinsics, self.distortion, self.pose)
        x, y = size[0] / self.size[0], size[1] / self.size[1]
        fx, fy, cx, cy = self.intrinsics
        centre = ((cx + 0.5) * x - 0.5, (cy + 0.5) * y - 0.5)
        return Calibration(size, (fx * x, fy * y, *centre), self.distortion, self.pose)


def _determinant(m: list[tuple[float, ...]]) -> float:
    (a, b, c), (d, e, f), (g, h, i) = m
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
