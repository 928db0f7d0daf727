import nibabel as nib
import numpy as np
import pytest

from cohort import atlas
from cohort.grids import GRIDS


def centroid_mm(mask, grid):
    return nib.affines.apply_affine(grid.affine, np.argwhere(mask).mean(axis=0))


@pytest.mark.parametrize("name", ["paper", "demo"])
@pytest.mark.parametrize(
    ("region", "expected"), [("Left Hippocampus", (-25, -22, -14)), ("Right Hippocampus", (26, -21, -14))]
)
def test_hippocampi_lie_on_their_own_side(name, region, expected):
    grid = GRIDS[name]
    np.testing.assert_allclose(centroid_mm(atlas.atlas(grid).mask(region), grid), expected, atol=2.0)


def test_every_modelled_region_is_there_and_on_its_side():
    labelled = atlas.atlas(GRIDS["paper"])
    for region in atlas.REGIONS:
        x, _, _ = centroid_mm(labelled.mask(region), GRIDS["paper"])
        assert (x < 0) == region.startswith("Left"), region


def test_volumes_survive_resampling():
    grid = GRIDS["paper"]
    labels, _ = atlas.native_atlas()
    for region in ("Left Hippocampus", "Right Thalamus", "Left Lateral Ventricle"):
        native = labels.mask(region).sum() * 1.5**3
        assert atlas.atlas(grid).mask(region).sum() * grid.spacing_mm**3 == pytest.approx(native, rel=0.05)


def test_names_are_plain():
    names = set(atlas.native_atlas()[0].names.values())
    assert {"Left Thalamus", "Right Accumbens", "Left angular gyrus", "Left Inf Lat Vent", "Brain Stem"} <= names
    assert not any("_" in name for name in names)


def test_bilateral_pairs_have_opposite_names():
    names = atlas.native_atlas()[0].names
    pairs = atlas.bilateral_pairs(names)
    assert {structure for structure, _, _ in pairs} >= set(atlas.STRUCTURES)
    for structure, left, right in pairs:
        assert names[left] == f"Left {structure}"
        assert names[right] == f"Right {structure}"


@pytest.mark.parametrize("name", atlas.TEMPLATES)
def test_templates_are_ras_and_show_dark_ventricles_between_bright_white_matter(name):
    image = atlas.load_template(name)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    grid = GRIDS["paper"]
    volume = atlas.resample(np.asarray(image.dataobj), image.affine, grid)
    labelled = atlas.atlas(grid)
    ventricle = np.median(volume[labelled.mask("Left Lateral Ventricle")])
    assert ventricle < 0.75 * np.median(volume[labelled.mask("Left Cerebral White Matter")])


def test_brains_fit_into_the_field_of_view():
    grid = GRIDS["demo"]
    for name in atlas.TEMPLATES:
        image = atlas.load_template(name)
        world = nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj) > 0))
        half = np.array(grid.shape) * grid.spacing_mm / 2
        assert (np.abs(world - np.array(grid.centre_mm)) <= half).all(), name


def test_tissue_sums_to_the_brain():
    grid = GRIDS["demo"]
    maps = atlas.tissue(grid)
    total = sum(maps.values())
    assert total.max() <= 1.001
    labelled = atlas.atlas(grid)
    deep = labelled.mask("Left Thalamus") | labelled.mask("Left Lateral Ventricle")
    np.testing.assert_allclose(total[deep], 1, atol=0.02)
    assert maps["csf"][labelled.mask("Left Lateral Ventricle")].mean() > 0.5
    assert maps["wm"][labelled.mask("Right Cerebral White Matter")].mean() > 0.7
