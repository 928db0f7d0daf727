"""How sharp volumes are: their radial power spectrum beside that of real scans.

Blur is the first complaint about generated scans, and neither Frechet distance nor any mean intensity names it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import fft

BANDS = 12
"""Shells of equal width from frequency 0 to half a cycle per voxel."""
FINE = slice(BANDS // 2, None)
"""The shells of the finer half of all frequencies: details of less than four voxels."""


def spectrum(volume: np.ndarray) -> np.ndarray:
    """Mean power of a volume (D, H, W) in each of BANDS shells of spatial frequency, (BANDS,); its mean is left out.

    Frequencies are in cycles per voxel, the same for all axes; corners beyond half a cycle belong to no shell.
    """
    power = np.square(np.abs(fft.rfftn(volume - volume.mean(dtype=np.float64), norm="ortho")))
    axes = (*(np.fft.fftfreq(size) for size in volume.shape[:2]), np.fft.rfftfreq(volume.shape[2]))
    radius = np.sqrt(sum(np.square(axis) for axis in np.ix_(*axes)))
    shell = np.minimum((radius * 2 * BANDS).astype(int), BANDS)  # the last is not kept
    twice = np.full(power.shape, 2.0)  # rfftn gives half of the frequencies along the last axis
    twice[..., 0] = 1
    if volume.shape[2] % 2 == 0:
        twice[..., -1] = 1
    sums, counts = (np.bincount(shell.ravel(), value.ravel(), BANDS + 1)[:BANDS] for value in (power * twice, twice))
    return sums / counts


def measure(volumes: Mapping[str, Sequence[np.ndarray]]) -> dict[str, dict]:
    """The spectrum of each set of volumes (D, H, W), against that of the scans called ``test``.

    Returns:
        name -> ``power_db``: mean spectrum (BANDS,), in decibels of that of ``test``; and ``fine_db``: the same of all
        power in the shells FINE, ``mean`` and ``sd`` over volumes, with ``auc`` but for ``test``: the chance that a
        volume has more of it than a scan. Below 0 and 0.5 is blurred, above is noisy.
    """
    spectra = {name: np.array([spectrum(np.asarray(volume)) for volume in stack]) for name, stack in volumes.items()}
    real = spectra["test"]
    fine = {name: 10 * np.log10(own[:, FINE].sum(1) / real[:, FINE].sum(1).mean()) for name, own in spectra.items()}
    found: dict[str, dict] = {}
    for name, own in spectra.items():
        found[name] = {
            "power_db": (10 * np.log10(own.mean(0) / real.mean(0))).tolist(),
            "fine_db": {"mean": float(fine[name].mean()), "sd": float(fine[name].std())},
        }
        if name != "test":
            above = fine[name][:, None] - fine["test"]
            found[name]["fine_db"]["auc"] = float(((above > 0) + 0.5 * (above == 0)).mean())
    return found


def frequencies(spacing_mm: float) -> list[float]:
    """Middle of each shell, in cycles per mm."""
    return ((np.arange(BANDS) + 0.5) / (2 * BANDS) / spacing_mm).tolist()
