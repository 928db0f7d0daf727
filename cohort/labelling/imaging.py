"""Random images of an anatomy: as the simulation's scanners take its templates, and in contrasts drawn for each label.

Both end as any scan does, through `cohort.scans.normalise`: in [0, 1], background 0.
"""

import numpy as np
from scipy import ndimage

from cohort.anatomy.grey_matter import TISSUES
from cohort.atlas import REGIONS
from cohort.labelling.anatomies import NEIGHBOURS, Anatomy
from cohort.scans import normalise
from cohort.simulation.acquisition import Site, acquire, smooth_field

FLUID, GREY, WHITE = (0.05, 0.40), (0.50, 0.78), 0.92
"""Intensities of cerebrospinal fluid and of grey matter, over white matter's: wider than T1-weighted scans have."""
WHITENESS = {
    "Hippocampus": (-0.2, 0.3), "Amygdala": (-0.2, 0.3), "Caudate": (-0.2, 0.4), "Accumbens": (-0.2, 0.4),
    "Putamen": (-0.1, 0.5), "Thalamus": (0.0, 0.8), "Pallidum": (0.3, 1.1), "Ventral DC": (0.3, 1.0),
    "Brain Stem": (0.3, 1.0),
}  # fmt: skip
"""Where between grey (0) and white matter (1) the intensity of a structure may lie; those not listed are of fluid."""
SIDE_SPREAD = 0.01
"""Standard deviation of the difference that the two sides of a structure may have."""
SHARPNESS = (1.0, 3.0)
"""Power to which shares of tissues are raised: templates are means, and smoother than anybody's cortex."""
BRAIN = (0.3, 0.7)
"""Share of tissue from which a voxel counts as brain: extraction cuts now closer, now less."""
NOISE, BIAS, CURVE, BLUR, TEXTURE = 0.03, 0.12, 0.2, 0.4, 0.06
"""Largest noise (of white matter's intensity), bias (logarithm), logarithm of the exponent of the intensity curve, blur
along each axis (standard deviation in voxels: thick slices, motion, a decoder) and unevenness of tissue over two voxels
(of intensity: structures of which there is no label)."""


def as_scanned(anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """The templates' intensities through a random scanner of the simulation; float32 (D, H, W) in [0, 1]."""
    contrast = np.exp(rng.uniform(-CURVE, CURVE))
    site = Site(1000.0, rng.uniform(0, NOISE), rng.uniform(0, BIAS), contrast, rng.uniform(0, BLUR))
    return normalise(acquire(anatomy.template, site, rng))


def in_random_contrast(anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """An intensity drawn for each label and tissue, mixed by their shares of a voxel; float32 (D, H, W) in [0, 1]."""
    maps = np.concatenate([anatomy.shares, anatomy.others])
    tissues = maps[-len(TISSUES) :]
    sharp = tissues ** rng.uniform(*SHARPNESS)
    tissues[:] = sharp * (tissues.sum(axis=0) / np.maximum(sharp.sum(axis=0), 1e-6))
    image = np.tensordot(levels(rng), maps, axes=1)
    inside = maps.sum(axis=0) > rng.uniform(*BRAIN)
    texture = ndimage.gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), 1.0)
    image = image * (1 + rng.uniform(0, TEXTURE) / texture.std() * texture)
    image = ndimage.gaussian_filter(image, rng.uniform(0, BLUR, 3))
    field = smooth_field(rng.standard_normal((3, 3, 3)), image.shape)
    image = image * np.exp(rng.uniform(0, BIAS) * field / np.sqrt(np.square(field).mean()))
    real, imaginary = rng.standard_normal((2, *image.shape), dtype=np.float32) * rng.uniform(0, NOISE)
    return normalise(np.hypot(image + real, imaginary) * inside)


def levels(rng: np.random.Generator) -> np.ndarray:
    """A mean intensity of each of REGIONS, NEIGHBOURS and TISSUES, float32; that of white matter is WHITE."""
    fluid, grey = (WHITE * rng.uniform(*bounds) for bounds in (FLUID, GREY))
    own = {name: grey + rng.uniform(*bounds) * (WHITE - grey) for name, bounds in WHITENESS.items()}
    structures = [name.removeprefix("Left ").removeprefix("Right ") for name in (*REGIONS, *NEIGHBOURS)]
    found = [own.get(name, fluid) + SIDE_SPREAD * rng.standard_normal() for name in structures]
    tissues = {"csf": fluid, "gm": grey, "wm": WHITE}
    return np.array(found + [tissues[name] for name in TISSUES], dtype=np.float32)
