"""The scanner: what the imaging of each site makes of template intensities."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

BRAIN_FLOOR = 0.14
"""Intensity, where white matter is about 0.9, below which a voxel is outside the brain: half of the darkest fluid."""


@dataclass(frozen=True)
class Site:
    """A scanner. `gain`: units per template intensity; `noise`: standard deviation relative to template intensity 1;
    `bias`: standard deviation of the log of the field; `contrast`: exponent of the intensity; `blur`: in voxels."""

    gain: float
    noise: float
    bias: float
    contrast: float
    blur: float


SITES = {
    "site-A": Site(gain=900.0, noise=0.012, bias=0.06, contrast=1.0, blur=0.0),
    "site-B": Site(gain=520.0, noise=0.018, bias=0.09, contrast=0.92, blur=0.25),
    "site-C": Site(gain=1300.0, noise=0.024, bias=0.07, contrast=1.10, blur=0.15),
}
GAIN_SPREAD, CONTRAST_SPREAD = 0.10, 0.03
"""Variation between scans of one site: standard deviation of log gain, and of the exponent."""


def acquire(tissue: np.ndarray, site: Site, draw: np.random.Generator) -> np.ndarray:
    """A scan, int16 (D, H, W) and 0 outside the brain: contrast, blur, bias field, Rician noise, gain."""
    inside = tissue > BRAIN_FLOOR
    signal = np.maximum(tissue, 0) ** (site.contrast + CONTRAST_SPREAD * draw.standard_normal())
    if site.blur:
        signal = ndimage.gaussian_filter(signal, site.blur)
    field = smooth_field(draw.standard_normal((3, 3, 3)), signal.shape)
    signal = signal * np.exp(site.bias * (field / np.sqrt(np.square(field).mean())).astype(np.float32))
    real, imaginary = draw.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(site.noise)
    gain = site.gain * np.exp(GAIN_SPREAD * draw.standard_normal())
    scan = np.hypot(signal + real, imaginary) * inside
    return np.rint(scan * gain).clip(0, np.iinfo(np.int16).max).astype(np.int16)


def darkened(scan: np.ndarray, region: np.ndarray, share: float) -> np.ndarray:
    """A scan, int16 (D, H, W), whose intensity is lower by a share of it in a region, given by the part (D, H, W) in
    [0, 1] of each voxel that lies in it."""
    return np.rint(scan * (1 - share * region)).astype(scan.dtype)


def smooth_field(coefficients: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The sum of the lowest cosines over a grid with these coefficients (3, 3, 3), the constant left out."""
    coefficients[0, 0, 0] = 0
    waves = [np.cos(np.pi * np.outer(np.arange(3), (np.arange(n) + 0.5) / n)) for n in shape]
    return np.einsum("ijk,ia,jb,kc->abc", coefficients, *waves, optimize=True)
