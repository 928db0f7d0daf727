"""The spectrum of a wave lies in its shell, of white noise in all alike; blur and noise are told from scans."""

import numpy as np
import pytest
from scipy import ndimage

from evaluation.references import sharpness
from evaluation.references.sharpness import BANDS, spectrum


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("cycles", [3, 11])
def test_a_wave_lies_in_its_shell(axis, cycles):
    wave = np.cos(2 * np.pi * cycles * np.arange(40) / 40)
    volume = np.broadcast_to(wave.reshape([-1 if i == axis else 1 for i in range(3)]), (40, 40, 40)) + 0.3
    found = spectrum(volume)
    assert found.argmax() == int(cycles / 40 * 2 * BANDS)
    assert found.max() > 1e6 * np.delete(found, found.argmax()).max()


@pytest.mark.parametrize("shape", [(20, 24, 20), (21, 24, 23)])
def test_white_noise_has_its_variance_in_every_shell(shape):
    draw = np.random.default_rng(0)
    mean = np.mean([spectrum(draw.normal(0, 0.5, shape)) for _ in range(40)], axis=0)
    np.testing.assert_allclose(mean[1:], 0.25, rtol=0.1)


def test_blur_and_noise_are_told_from_scans():
    draw = np.random.default_rng(1)
    scans = [ndimage.gaussian_filter(draw.normal(size=(20, 24, 20)), 1.0) for _ in range(30)]
    others = [ndimage.gaussian_filter(draw.normal(size=(20, 24, 20)), 1.0) for _ in range(30)]
    found = sharpness.measure(
        {
            "test": scans,
            "others": others,
            "blurred": [ndimage.gaussian_filter(scan, 1.2, mode="wrap") for scan in scans],
            "noisy": [scan + 0.1 * draw.normal(size=scan.shape) for scan in scans],
        }
    )
    assert found["test"]["power_db"] == pytest.approx([0] * BANDS)
    assert found["others"]["fine_db"]["auc"] == pytest.approx(0.5, abs=0.15)
    assert found["blurred"]["fine_db"]["mean"] < -3
    assert found["blurred"]["fine_db"]["auc"] < 0.05
    assert found["noisy"]["fine_db"]["auc"] > 0.95
    # A Gaussian blur of s voxels takes exp(-(2 pi f s)^2) of the power, whatever the scans are.
    middle = sharpness.frequencies(1.0)[2]
    assert found["blurred"]["power_db"][2] == pytest.approx(-10 * (2 * np.pi * middle * 1.2) ** 2 / np.log(10), abs=0.3)
