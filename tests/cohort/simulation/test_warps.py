import numpy as np
import pytest
from scipy import ndimage

from cohort.simulation import warps

SHAPE = (20, 24, 18)


@pytest.fixture
def velocity():
    rng = np.random.default_rng(3)
    field = warps.random_velocity(SHAPE, 4.0, [(16.0, 3.0), (8.0, 2.0)], rng)
    inside = ndimage.gaussian_filter(np.pad(np.ones([n - 10 for n in SHAPE]), 5), 1.0).astype(np.float32)
    return field * inside


def test_sample_equals_scipys_linear_interpolation():
    rng = np.random.default_rng(0)
    field = rng.standard_normal((3, *SHAPE)).astype(np.float32)
    points = rng.uniform(-3, 27, (3, 500)).astype(np.float32)
    expected = [ndimage.map_coordinates(channel, points, order=1, mode="nearest") for channel in field]
    np.testing.assert_allclose(warps.sample(field, points), expected, atol=2e-5)


def test_sample_at_the_nodes_returns_the_field():
    field = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(warps.sample(field, warps.nodes(SHAPE)), field, atol=1e-6)


def test_exponential_of_zero_is_the_identity():
    assert not warps.exponential(np.zeros((3, *SHAPE), np.float32)).any()


def test_exponential_of_a_linear_field_is_the_matrix_exponential():
    rate = -0.3
    centre = (np.array(SHAPE).reshape(3, 1, 1, 1) - 1) / 2
    velocity = (rate * (warps.nodes(SHAPE) - centre)).astype(np.float32)
    displacement = warps.exponential(velocity)
    expected = np.expm1(rate) * (warps.nodes(SHAPE) - centre)
    np.testing.assert_allclose(displacement, expected, atol=0.01)
    np.testing.assert_allclose(warps.jacobian_determinant(displacement), np.exp(3 * rate), rtol=2e-3)


def test_opposite_velocities_are_inverse_maps(velocity):
    there, back = warps.exponential(velocity), warps.exponential(-velocity)
    left_over = warps.compose(back, there)
    assert np.abs(there).max() > 0.5
    assert np.abs(left_over).max() < 0.1  # voxels
    assert np.sqrt(np.square(left_over).mean()) < 0.01


def test_jacobian_integrates_to_the_volume_of_the_box(velocity):
    determinant = warps.jacobian_determinant(warps.exponential(velocity))
    assert determinant.min() > 0
    assert determinant.std() > 0.05
    assert determinant.mean() == pytest.approx(1, abs=1e-3)


def test_compose_applies_the_inner_map_first():
    at, centre = warps.nodes(SHAPE), (np.array(SHAPE).reshape(3, 1, 1, 1) - 1) / 2
    shrink = (-0.5 * (at - centre)).astype(np.float32)
    shift = np.zeros_like(shrink)
    shift[1] = 2.0
    first_shift = warps.compose(shrink, shift)
    first_shrink = warps.compose(shift, shrink)
    middle = (slice(None), *(slice(3, -3) for _ in SHAPE))  # a shift of 2 voxels stays inside there
    np.testing.assert_allclose(first_shift[middle], (shift + shrink)[middle] - 0.5 * shift[middle], atol=1e-5)
    np.testing.assert_allclose(first_shrink, shrink + shift, atol=1e-5)


def test_jacobian_of_a_linear_map_is_its_determinant():
    matrix = np.array([[1.1, 0.3, -0.2], [0.25, 0.9, 0.15], [-0.1, 0.35, 1.2]])
    displacement = np.einsum("ij,jdhw->idhw", matrix - np.eye(3), warps.nodes(SHAPE)).astype(np.float32)
    np.testing.assert_allclose(warps.jacobian_determinant(displacement), np.linalg.det(matrix), rtol=1e-4)


def test_jacobian_sees_a_fold():
    folded = np.zeros((3, *SHAPE), np.float32)
    folded[0, 10] = 1.5
    assert warps.jacobian_determinant(folded).min() < 0


def test_random_velocity_has_the_stated_amplitude_and_smoothness():
    shape, spacing = (48, 48, 48), 2.0
    field = warps.random_velocity(shape, spacing, [(8.0, 3.0), (4.0, 4.0)], np.random.default_rng(1))
    assert spacing * np.sqrt(np.square(field).sum(axis=0).mean()) == pytest.approx(5.0, rel=0.15)
    single = warps.random_velocity(shape, spacing, [(6.0, 1.0)], np.random.default_rng(1))
    slope = np.diff(single, axis=1).std() / single.std() / spacing
    assert slope == pytest.approx(
        1 / (np.sqrt(2) * 6.0), rel=0.15
    )  # a Gaussian kernel's: correlation exp(-r^2 / 4 s^2)


def test_random_velocity_is_decided_by_its_generator():
    draws = [warps.random_velocity(SHAPE, 4.0, [(10.0, 2.0)], np.random.default_rng(seed)) for seed in (5, 5, 6)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 0.1


def test_affine_part_is_removed_and_nothing_else(velocity):
    weight = np.pad(np.ones([n - 4 for n in SHAPE]), 2)
    basis = warps.affine_basis(weight)
    matrix = np.random.default_rng(2).normal(size=(3, 3)) * 0.05
    affine = np.tensordot(matrix, warps.nodes(SHAPE), axes=1) + 1.5
    assert np.abs(warps.without_affine(affine, basis, weight)).max() < 1e-3
    cleaned = warps.without_affine(velocity, basis, weight)
    np.testing.assert_allclose(warps.without_affine(velocity + affine, basis, weight), cleaned, atol=1e-3)
