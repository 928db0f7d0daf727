"""Regional volumes: tissue shares, the bias, a planted change on its side; and the true volumes of simulated scans."""

from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from cohort.anatomy import grey_matter, regional_volumes
from cohort.atlas import REGIONS, atlas, tissue
from cohort.grids import GRIDS
from runtime.errors import InputError

GRID = GRIDS["demo"]
LEVELS = np.array([0.2, 0.55, 0.9])


@cache
def tissues_of_template():
    return tissue(GRID)


def brain(extra=None):
    """The template's tissues at fixed intensities; `extra`: places set to another intensity."""
    tissues = tissues_of_template()
    volume = sum(level * tissues[name] for level, name in zip(LEVELS, grey_matter.TISSUES, strict=True))
    volume = np.where(sum(tissues.values()) > 0.5, volume, 0.0).astype(np.float32)
    for place, value in extra or ():
        volume[place] = value
    return volume


def test_fractions_sum_to_one_in_the_brain_and_follow_the_template():
    volume, tissues = brain(), tissues_of_template()
    fractions = grey_matter.tissue_fractions(volume, grey_matter.tissue_levels(volume, tissues))
    np.testing.assert_allclose(fractions.sum(axis=0), volume > 0, atol=1e-9)
    for share, name in zip(fractions, grey_matter.TISSUES, strict=True):
        assert np.corrcoef(share[volume > 0], tissues[name][volume > 0])[0, 1] > 0.8


def test_a_smooth_bias_is_taken_out():
    volume, tissues = brain(), tissues_of_template()
    place = np.linspace(-1, 1, GRID.shape[1])[None, :, None]
    biased = volume * np.exp(0.3 * place).astype(np.float32)
    found = grey_matter.without_bias(biased, tissues, GRID)
    inside = ndimage.binary_erosion(volume > 0, iterations=2)
    before, after = (np.std(np.log(entry[inside] / volume[inside])) for entry in (biased, found))
    assert after < 0.35 * before
    assert not found[volume == 0].any()


def test_table_names_regions_with_enough_voxels_and_asymmetries_of_pairs():
    names, table = regional_volumes.region_table([brain()] * 2, GRID)
    assert table.shape == (2, len(names))
    assert np.isfinite(table).all()
    assert "Left Accumbens" in names
    assert "Right Inf Lat Vent" not in names  # 2 and 6 voxels
    assert "asymmetry of Hippocampus" in names
    assert len(set(names)) == len(names)
    sides = {name.partition(" ")[2] for name in names if name.startswith("Left ")}
    assert sides == {name.partition(" ")[2] for name in names if name.startswith("Right ")}
    assert regional_volumes.region_table([], GRID)[1].shape == (0, len(names))


def test_volumes_are_sums_over_the_dilated_region():
    region = regional_volumes.dilated_mask("Left Lateral Ventricle", GRID)
    assert region.sum() > atlas(GRID).mask("Left Lateral Ventricle").sum()
    csf = grey_matter.tissue_fractions(brain(), grey_matter.tissue_levels(brain(), tissues_of_template()))[0]
    found = regional_volumes.region_volumes([brain()], GRID, ("Left Lateral Ventricle", "Brain Stem"), unbias=False)
    assert found[0, 0] == pytest.approx(csf[region].sum() * 0.064)
    assert regional_volumes.tissues_in("Left Thalamus") == ("gm",)
    assert regional_volumes.tissues_in("Brain Stem") == ("gm", "wm")
    assert regional_volumes.tissues_in("Right Cerebral White Matter") == ("wm",)


def test_a_larger_ventricle_is_measured_on_its_side():
    wider = regional_volumes.dilated_mask("Left Lateral Ventricle", GRID) & (brain() > 0)
    names, table = regional_volumes.region_table([brain(), brain([(wider, LEVELS[0])])], GRID)
    change = dict(zip(names, table[1] - table[0], strict=True))
    assert change["Left Lateral Ventricle"] > 2
    assert abs(change["Right Lateral Ventricle"]) < 0.3 * change["Left Lateral Ventricle"]
    assert change["asymmetry of Lateral Ventricle"] > 0.05
    mirrored = [entry[::-1] for entry in (brain(), brain([(wider, LEVELS[0])]))]  # the grid is symmetric about x = 0
    change = np.diff(regional_volumes.region_table(mirrored, GRID)[1], axis=0)[0]
    assert change[names.index("asymmetry of Lateral Ventricle")] < -0.05


def test_measures_do_not_depend_on_the_scale_of_intensity():
    volume = brain() * np.float32(1) + np.random.default_rng(0).normal(0, 0.02, GRID.shape).astype(np.float32)
    volume = np.clip(volume, 0, None) * (brain() > 0)
    table = regional_volumes.region_table([volume, np.float32(0.4) * volume], GRID)[1]
    np.testing.assert_allclose(table[1], table[0], rtol=1e-3, atol=1e-4)


def test_wanted_columns_are_found_in_their_order():
    assert regional_volumes.columns_of(("x", "Left Caudate", "y"), ("y", *REGIONS)) == [2, 1]


def grey_matter_map(loss: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """As CAT12's modulated maps: the grey matter there is, with a share lost in the left hippocampus."""
    volume = tissues_of_template()["gm"].astype(np.float32)
    volume[atlas(GRID).mask("Left Hippocampus")] *= 1 - loss
    return scale * volume


def test_grey_matter_maps_are_summed_and_follow_what_was_lost():
    names, table = regional_volumes.region_table([grey_matter_map(loss) for loss in (0.0, 0.2, 0.4)], GRID)
    hippocampus = table[:, names.index("Left Hippocampus")]
    lost = grey_matter_map()[atlas(GRID).mask("Left Hippocampus")].sum() * 0.064
    np.testing.assert_allclose(hippocampus[0] - hippocampus, lost * np.array([0, 0.2, 0.4]), rtol=1e-3, atol=1e-3)
    assert np.ptp(table[:, names.index("Right Hippocampus")]) < 1e-3


def test_kinds_of_images_are_told_apart_and_mixtures_refused():
    t2 = np.where(brain() > 0, 1.1 - brain(), 0)  # fluid bright, white matter dark
    for volumes, kind in (([brain(), 0.3 * brain()], "T1"), ([t2], "T1"), ([grey_matter_map(0.4)], "grey-matter map")):
        assert regional_volumes.contrast_of(volumes, GRID) == kind
    with pytest.raises(InputError, match="1 of 2 volumes are grey-matter maps"):
        regional_volumes.region_table([brain(), grey_matter_map()], GRID)
