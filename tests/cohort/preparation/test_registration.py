"""Registration and the steps around it, on simulated heads whose position, brain and bias are known."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from cohort.atlas import load_template
from cohort.decoding import RefusedError
from cohort.grids import GRIDS
from cohort.preparation import brain as brain_extraction
from cohort.preparation import registration
from cohort.preparation.brain_network import network_brain
from cohort.preparation.registration import Working, target
from cohort.preparation.steps import (
    SCALE,
    Prepared,
    Scan,
    bias_field,
    by_head,
    first_within_limits,
    prepare,
    read_scan,
    rescale,
    working_copy,
)
from cohort.scans import normalise, resample, to_ras
from runtime.errors import InputError
from tests.support.heads import Head, Look, Pose, canvas, dice, landmark_error_mm, scan

GRID = GRIDS["demo"]
CASES = {
    "pitched back, small, far off; bright fat, biased, noisy, thick slices, PIR": (
        Look(fat=1.4, scalp_mm=9, skull_mm=4),
        Pose(
            turn_degrees=(-25, 12, 10), shift_mm=(12, -20, 30), scale=(0.86, 0.9, 0.88), spacing_mm=(2.0, 2.0, 4.0),
            orientation="PIR", bias=0.25, noise=0.05,
        ),
    ),
    "another brain, thick skull, no neck, LAS": (
        Look(warp=1.2, skull_mm=8, fluid_mm=4, marrow=0.6, contrast=1.3),
        Pose(turn_degrees=(8, -15, 20), shear=0.04, orientation="LAS", cut_foot_mm=75),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain_head() -> Head:
    """A head at 4 mm, slightly turned."""
    return scan(canvas(Look()), Pose(turn_degrees=(10, 0, 5), spacing_mm=(4, 4, 4)))


def saved(head: Head, path) -> str:
    nib.save(head.image, path)
    return str(path)


def test_what_a_tool_padded_a_scan_with_changes_nothing(plain_head, tmp_path):
    image, affine = np.asarray(plain_head.image.dataobj), plain_head.image.affine
    plain, _ = read_scan(saved(plain_head, tmp_path / "plain.nii"), GRID)
    for fill in (-1000, 0, 50, int(image.max())):
        wide = affine.copy()
        wide[:3, 3] -= affine[:3, :3] @ [9, 12, 5]
        padded = np.pad(image, [(9, 17), (12, 0), (5, 21)], constant_values=fill)
        nib.save(nib.Nifti1Image(padded, wide), tmp_path / "padded.nii")
        found, notes = read_scan(tmp_path / "padded.nii", GRID)
        assert np.array_equal(found.image, plain.image)
        assert np.allclose(found.affine, plain.affine, atol=1e-4)
        assert notes == []


def true_brain(head: Head, matrix: np.ndarray) -> np.ndarray:
    """The known brain where a matrix puts it on GRID."""
    image, affine = to_ras(head.brain.astype(np.float32), head.image.affine)
    return resample(image, affine, matrix @ GRID.affine, GRID.shape)[0] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_moved_head_comes_back(case, tmp_path):
    look, pose = CASES[case]
    head = scan(canvas(look, seed=len(case)), pose, seed=1)
    made = prepare(saved(head, tmp_path / "head.nii.gz"), GRID)
    # A warped brain has no one true affine; its landmarks move by the warp, which has no affine part.
    assert landmark_error_mm(made.matrix, head.matrix) < 1.0
    assert made.measures["template_correlation"] > (0.9 if look.warp == 0 else 0.8)
    assert dice(made.brain, true_brain(head, made.matrix)) > 0.93
    # The network's brain has the fluid in and around the sulci, and the simulation a layer of it.
    true_ml = head.brain.sum() * np.prod(pose.spacing_mm) / 1000
    assert 0.98 * true_ml < made.measures["brain_ml"] < 1.15 * true_ml
    assert made.measures["affine_jacobian"] == pytest.approx(np.linalg.det(head.matrix), rel=0.04)
    assert not made.image[~made.brain].any()
    assert 0 < normalise(made.image)[made.brain].mean() < 1
    assert (normalise(made.image) > 0).sum() > 0.98 * made.brain.sum()
    assert np.percentile(made.image[made.brain], 99.5) == pytest.approx(SCALE, rel=0.01)


@pytest.mark.slow
def test_a_given_mask_replaces_the_templates(plain_head, tmp_path, quick_steps):
    head = plain_head
    half = head.brain.copy()
    half[: half.shape[0] // 2 - 12] = False  # a mask that no template would give
    nib.save(nib.Nifti1Image(half.astype(np.uint8), head.image.affine), tmp_path / "mask.nii.gz")
    made = prepare(saved(head, tmp_path / "head.nii.gz"), GRID, tmp_path / "mask.nii.gz")
    image, affine = to_ras(half.astype(np.float32), head.image.affine)
    there = resample(image, affine, made.matrix @ GRID.affine, GRID.shape)[0] > 0.5
    assert (made.brain == there).all()
    assert made.measures["warp_jacobian_min"] is None


@pytest.mark.slow
def test_a_whole_head_comes_back_without_the_network(plain_head, quick_steps):
    """What is tried where the network's brain leads nowhere."""
    head = plain_head
    working = working_copy(Scan(*to_ras(head.image.get_fdata(dtype=np.float32), head.image.affine)))
    space = by_head(working, None)
    assert landmark_error_mm(space.matrix, head.matrix) < 1.5
    onto = space.matrix @ GRID.affine
    assert dice(space.brain.onto(onto, GRID.shape) > 0.5, true_brain(head, space.matrix)) > 0.93
    assert brain_extraction.jacobian_range(space.warp)[0] > 0


@pytest.mark.slow
def test_the_template_registers_to_itself():
    goal = target(2.0)
    matrix = registration.register_affine(Working(goal.image, goal.grid.affine, np.ones(goal.image.shape, bool)))
    assert landmark_error_mm(matrix, np.eye(4)) < 0.15


@pytest.mark.slow
def test_a_shrunken_brain_is_not_blown_up_to_the_scalp():
    """Much fluid, little bone and bright fat: what the template's brain was laid on the whole head for."""
    look = Look(fluid_mm=9, skull_mm=4, scalp_mm=8, marrow=0.7, fat=2.0)
    head = scan(
        canvas(look, spacing_mm=4.0), Pose(turn_degrees=(12, 4, -6), scale=(0.84, 0.86, 0.82), spacing_mm=(4, 4, 4))
    )
    working = working_copy(Scan(*to_ras(head.image.get_fdata(dtype=np.float32), head.image.affine)))
    matrix = registration.register_affine(working)
    assert landmark_error_mm(matrix, head.matrix) < 3
    assert np.linalg.det(matrix[:3, :3]) == pytest.approx(np.linalg.det(head.matrix), rel=0.08)


def test_bright_fat_is_no_landmark():
    """Clipped is what is far brighter than the head's median; the brain stays as it is."""
    image = np.zeros((20, 20, 20), np.float32)
    image[4:16, 4:16, 4:16] = 0.5
    image[4:6] *= 3
    clipped = registration.clipped(image)
    assert clipped.max() == pytest.approx(registration.BRIGHTEST * 0.5)
    assert (clipped[6:] == image[6:]).all()


def made(name: str, **measures: float) -> Prepared:
    """A result with no more than a name (in its matrix) and measures."""
    nothing = np.zeros((1, 1, 1))
    found = {"template_correlation": 0.6, "affine_jacobian": 0.8} | measures
    return Prepared(nothing, nothing, nothing > 0, name, found)


def raises():
    raise RefusedError("no brain")


def test_the_other_way_is_tried_where_the_first_is_lost_and_only_there():
    tried = []

    def way(result):
        return lambda: tried.append(result.matrix) or result

    good, lost, worse = (
        made("good"),
        made("lost", affine_jacobian=1.5),
        made("worse", affine_jacobian=1.5, brain_ml=3000),
    )
    close = made("close", affine_jacobian=1.2, template_correlation=0.65)
    for ways, chosen in (
        ((way(good), way(close)), "good"),
        ((way(lost), way(good)), "good"),
        ((raises, way(lost)), "lost"),
        ((way(lost), raises), "lost"),
        ((way(worse), way(lost)), "lost"),
        ((way(lost), way(close)), "close"),
    ):
        assert first_within_limits(ways).matrix == chosen
    assert tried[0] == "good"
    assert tried[1] != "close"
    with pytest.raises(RefusedError, match="no brain"):
        first_within_limits((raises, raises))


def test_no_brain_is_refused_by_the_network():
    empty = Working(np.zeros((40, 40, 40), np.float32), np.diag([2.0, 2, 2, 1]), np.ones((40, 40, 40), bool))
    with pytest.raises(RefusedError, match="no brain"):
        network_brain(empty)


def test_orientation_of_the_file_changes_nothing(plain_head, tmp_path):
    turned = plain_head.image.as_reoriented(nib.orientations.axcodes2ornt("SPL"))
    nib.save(plain_head.image, tmp_path / "a.nii.gz")
    nib.save(turned, tmp_path / "b.nii.gz")
    made, again = (prepare(tmp_path / name, GRID, assume_mni=True) for name in ("a.nii.gz", "b.nii.gz"))
    assert (made.image == again.image).all()
    assert (made.brain == again.brain).all()


@pytest.mark.slow
def test_demons_find_a_known_deformation():
    goal = target(2.0)
    source = load_template("icbm2009a")
    at = np.indices(goal.image.shape) * 2 + goal.grid.affine[:3, 3].reshape(3, 1, 1, 1)
    wave = 4 * np.exp(-((at[0] - 40) ** 2 + at[1] ** 2 + (at[2] - 30) ** 2) / (2 * 25**2))
    voxels = at + np.stack([wave, 0 * wave, 0 * wave]) - source.affine[:3, 3].reshape(3, 1, 1, 1)  # its voxels are 1 mm
    image = ndimage.map_coordinates(np.asarray(source.dataobj) / np.float32(255), voxels, order=1)
    found = brain_extraction.register_warp(Working(image, goal.grid.affine, np.ones(image.shape, bool)), np.eye(4))
    where = (wave > 2) & goal.brain
    assert np.abs(found[0] - wave)[where].mean() < 0.35 * wave[where].mean()
    assert np.abs(found[1:])[:, where].mean() < 0.5
    low, high = brain_extraction.jacobian_range(found)
    assert 0.5 < low < 1 < high < 2


@pytest.mark.slow
def test_n4_takes_out_a_known_field():
    goal = target(4.0)
    slope = np.linspace(-0.4, 0.4, goal.image.shape[1])[None, :, None]
    true = np.exp(slope + 0.2 * np.linspace(-1, 1, goal.image.shape[0])[:, None, None] ** 2) * np.ones(goal.image.shape)
    found = bias_field((goal.image * true).astype(np.float32), goal.brain, 4.0)
    ratio = np.log(found / true)[goal.brain]
    assert ratio.std() < 0.35 * np.log(true)[goal.brain].std()
    assert np.log(found[goal.brain]).mean() == pytest.approx(0, abs=0.02)


def test_rescaling_does_not_hang_on_gain_or_a_few_bright_voxels():
    draw = np.random.default_rng(0)
    image = draw.gamma(9, 10, (20, 20, 20))
    brain = image > 20
    bright = image.copy()
    bright[10, 10, 8:12] = 1e5
    assert np.allclose(rescale(image, brain), rescale(7.3 * image, brain), atol=1)
    inside = brain & (bright < 1e5)
    assert np.allclose(rescale(image, brain)[inside], rescale(bright, brain)[inside], rtol=0.02, atol=1)
    assert rescale(image, brain)[brain].min() >= 1


@pytest.mark.parametrize(
    ("volume", "edges", "words"),
    [
        (np.pad(np.ones((4, 4, 4)), 18), (0.5, 0.5, 0.5), "voxel sizes in mm"),
        (np.pad(np.ones((4, 4, 4)), 18), (60, 60, 60), "voxel sizes in mm"),
        (np.pad(-np.ones((4, 4, 4)), 18), (4, 4, 4), "brighter than its air"),
    ],
    ids=["micrometres", "metres", "negative"],
)
def test_what_is_no_head_is_refused_by_name(volume, edges, words, tmp_path):
    path = tmp_path / "strange.nii.gz"
    nib.save(nib.Nifti1Image(volume.astype(np.float32), np.diag([*edges, 1.0])), path)
    with pytest.raises(InputError, match=words) as refusal:
        prepare(path, GRID)
    assert "strange.nii.gz" in str(refusal.value)


def test_no_voxel_of_the_brain_becomes_background():
    """Nearly dark ones too, which would be rounded to 0, the mark of the background."""
    brain = np.zeros((4, 4, 4), dtype=bool)
    brain[1:3] = True
    image = np.where(brain, 1000.0, 0.0)
    image[1, 0, 0] = 1e-4
    made = rescale(image, brain)
    assert made[1, 0, 0] == 1
    assert (made > 0).sum() == brain.sum()
    assert made.max() == SCALE
