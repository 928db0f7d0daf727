"""explore_volumes.ipynb shows the volumes that it was given, their reconstructions, and the samples of save_synth."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ipywidgets.embed import dependency_state

from cohort.grids import GRIDS
from cohort.scans import load_scan, normalise
from cohort.volumes import Volume, read_volume, write_volume
from notebooks import exploring, generating, viewing
from notebooks.report import execute
from runtime.errors import InputError
from runtime.files import ROOT
from tests.support import small_results
from tests.support.processes import run_here
from tests.support.small_results import volumes_in

GRID = GRIDS["smoke"]
NOTEBOOK = ROOT / "notebooks/explore_volumes.ipynb"


@pytest.fixture(scope="module")
def results(random_vae, random_diffusion, tmp_path_factory) -> Path:
    """Folder with scans, and in runs a VAE, a diffusion model and two volumes of it."""
    folder = small_results.brains(tmp_path_factory.mktemp("explore"), {"test": 3})
    vae = small_results.autoencoder(folder / "runs", random_vae)
    diffusion = folder / "runs/diffusion/checkpoints/best.pt"
    diffusion.parent.mkdir(parents=True)
    diffusion.write_bytes(random_diffusion(sides=True).read_bytes())
    made = ("--vae", vae, "--diffusion", diffusion, "--label", "TLE", "--side", "R", "--count", 2, "--steps", 3)
    run_here("diffusion.save_synth", *made, "--out", folder / "runs/made")
    return folder


@pytest.fixture(scope="module")
def models(results) -> generating.Models:
    return generating.load_models(*(results / f"runs/{stage}/checkpoints/best.pt" for stage in ("vae", "diffusion")))


def test_a_file_a_folder_and_a_table_become_volumes_to_choose_from(results, tmp_path):
    assert list(viewing.files_of(results / "test.csv")) == ["test00 HC", "test01 TLE-L", "test02 HC"]
    assert viewing.files_of(results / "test01.nii.gz") == {"test01.nii.gz": results / "test01.nii.gz"}
    found = viewing.files_of(results / "runs/made")
    assert list(found) == ["TLE_000000.pkl", "TLE_000001.pkl"]
    (tmp_path / ".partial.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"no volumes in it: expected names ending in \.nii\.gz"):
        viewing.files_of(tmp_path)
    with pytest.raises(InputError, match="nowhere: no such file"):
        viewing.files_of(tmp_path / "nowhere")


def test_a_volume_is_shown_where_it_lies(tmp_path):
    """Turned to RAS order, its voxels as they are; a pickle without an affine on the grid of its shape."""
    image = np.random.default_rng(0).uniform(1, 2, (5, 6, 7)).astype(np.float32)
    affine = np.diag([-3.0, 1.0, 2.0, 1.0])
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "odd.nii")
    shown = viewing.open_volume(tmp_path / "odd.nii")
    assert np.array_equal(shown.image, normalise(image[::-1]))
    assert np.array_equal(shown.affine @ [0, 0, 0, 1], affine @ [4, 0, 0, 1])
    assert viewing.size_text(shown) == "5 x 6 x 7 voxels of 3 x 1 x 2 mm"
    volume = np.random.default_rng(1).uniform(0, 1, GRID.shape).astype(np.float32)
    write_volume(tmp_path / "made.pkl", Volume(volume, label=1))
    assert np.array_equal(viewing.open_volume(tmp_path / "made.pkl").affine, GRID.affine)


def test_what_a_viewer_is_told_reaches_a_slow_browser_too():
    """anywidget drops what a widget is sent while its code loads: none waits for the code of NiiVue, sent once."""
    viewer = viewing.Viewer(("first", "second"))
    window = {"model_module": "anywidget", "model_name": "AnyModel"}
    before = dependency_state(viewer.widget)
    viewer.show("second", viewing.Shown("made", np.ones(GRID.shape, np.float32), GRID.affine))
    after = dependency_state(viewer.widget)
    told = [name for name, model in before.items() if model != after[name]]
    assert len(told) == 2  # a title and a column
    assert not [name for name in told if window.items() <= after[name].items()]
    sizes = sorted(len(str(model)) for model in before.values())
    assert sizes[-1] > 1e6 > 1e4 > sizes[-2]


def test_samples_are_those_of_save_synth(models, results):
    for seed in (0, 1):
        made = read_volume(results / f"runs/made/TLE_{seed:06d}.pkl").image
        assert np.array_equal(models.sample(models.noise(seed), "TLE, right", steps=3), made)
    assert not np.allclose(models.sample(models.noise(1), "TLE, left", steps=3), made, atol=1e-3)
    assert not np.allclose(models.sample(models.noise(1), "TLE, right", guidance=2.0, steps=3), made, atol=1e-3)


def test_slerp_leads_from_noise_to_noise(models):
    first, second = models.noise(0), models.noise(1)
    assert torch.allclose(generating.slerp(first, second, 0.0), first)
    assert torch.allclose(generating.slerp(first, second, 1.0), second, atol=1e-5)
    assert torch.equal(generating.slerp(first, first, 0.5), first)
    assert float(generating.slerp(first, second, 0.5).std()) == pytest.approx(float(first.std()), rel=0.02)


def test_what_a_model_does_not_know_is_refused(random_vae, random_diffusion, tmp_path):
    plain = generating.load_models(random_vae, random_diffusion(label_dropout=0.0))
    with pytest.raises(InputError, match="trained without sides"):
        plain.sample(plain.noise(0), "TLE, left")
    with pytest.raises(InputError, match="guidance has to be 1"):
        plain.sample(plain.noise(0), "HC", guidance=2.0)
    with pytest.raises(InputError, match="trained on latents of"):
        generating.load_models(random_vae, random_diffusion(vae="another"))
    assert generating.load_models(random_vae, tmp_path / "absent.pt").diffusion is None


def test_sliders_change_the_picture(models, results):
    """And beside it stands the one before."""
    panel = exploring.sampling(models, steps=3)
    first = panel.viewer.shown["now"]
    assert np.array_equal(first.image, models.sample(models.noise(0), "HC", steps=3))
    panel.controls["kind"].value = "TLE, right"
    panel.controls["seed"].value = 1
    made = read_volume(results / "runs/made/TLE_000001.pkl").image
    assert np.array_equal(panel.viewer.shown["now"].image, made)
    panel.controls["other"].value = 0
    panel.controls["share"].value = 1.0
    other = read_volume(results / "runs/made/TLE_000000.pkl").image
    assert np.allclose(panel.viewer.shown["now"].image, other, atol=1e-3)
    assert np.array_equal(panel.viewer.shown["before"].image, made)
    assert "100% of the way to seed 0" in panel.viewer.shown["now"].name


def test_between_two_scans(models, results):
    files = viewing.files_of(results / "test.csv")
    panel = exploring.between(models, files)
    panel.controls["share"].value = 0.0
    x = load_scan(files["test00 HC"], GRID)
    assert np.array_equal(panel.viewer.shown["from"].image, x)
    assert np.allclose(panel.viewer.shown["between"].image, models.reconstruct(x), atol=1e-5)
    panel.controls["share"].value = 1.0
    last = load_scan(files["test02 HC"], GRID)
    assert np.allclose(panel.viewer.shown["between"].image, models.reconstruct(last), atol=1e-5)


def test_the_same_voxels_are_not_sent_again_and_others_are():
    viewer = viewing.Viewer(["one"])
    viewer.show("one", viewing.Shown("a", np.ones(GRID.shape, np.float32), GRID.affine))
    (first,) = viewer._views["one"].volumes
    viewer.show("one", viewing.Shown("b", np.ones(GRID.shape, np.float32), GRID.affine))
    assert viewer._views["one"].volumes == [first]
    viewer.show("one", viewing.Shown("c", np.zeros(GRID.shape, np.float32), GRID.affine))
    (other,) = viewer._views["one"].volumes
    assert other is not first
    assert other.data != first.data


def test_a_scan_that_is_elsewhere_is_shown_and_not_reconstructed(models, tmp_path):
    shifted = GRID.affine + np.array([[0, 0, 0, 500.0], *np.zeros((3, 4))])
    nib.save(nib.Nifti1Image(np.random.default_rng(0).uniform(size=GRID.shape), shifted), tmp_path / "away.nii.gz")
    panel = exploring.choosing(viewing.files_of(tmp_path), {}, models)
    assert list(panel.viewer.shown) == ["real"]
    assert "does not lie on the grid" in panel.line.value
    assert "<b>error:</b>" in panel.line.value


@pytest.mark.slow
def test_notebook_shows_what_it_was_given(results, models):
    parameters = {
        "EXPLORE_RUNS": str(results / "runs"), "EXPLORE_REAL": str(results / "test.csv"),
        "EXPLORE_SYNTHETIC": str(results / "runs/made"),
    }  # fmt: skip
    shown = volumes_in(execute(NOTEBOOK, parameters))
    x = load_scan(results / "test00.nii.gz", GRID)
    assert np.allclose(shown["real"], x, atol=0.51 / 255)
    assert np.allclose(shown["reconstruction"], models.reconstruct(x), atol=0.51 / 255)
    assert np.allclose(shown["difference"], models.reconstruct(x) - x, atol=1e-5)
    made = read_volume(results / "runs/made/TLE_000000.pkl").image
    assert np.allclose(shown["synthetic"], normalise(made), atol=0.51 / 255)
    assert np.allclose(shown["now"], models.sample(models.noise(0), "HC"), atol=0.51 / 255)
    assert np.allclose(shown["to"], load_scan(results / "test02.nii.gz", GRID), atol=0.51 / 255)


@pytest.mark.slow
def test_notebook_without_checkpoints_names_the_commands(results, tmp_path):
    parameters = {"EXPLORE_RUNS": str(tmp_path), "EXPLORE_REAL": str(results / "test01.nii.gz"),
                  "EXPLORE_SYNTHETIC": str(tmp_path / "none")}  # fmt: skip
    done = execute(NOTEBOOK, parameters)
    assert set(volumes_in(done)) == {"real"}
    said = "".join(output["data"].get("text/markdown", "") for cell in done.cells for output in cell.get("outputs", []))
    for command in (
        "python -m VAE.train demo",
        "python -m diffusion.train demo --vae",
        "python -m diffusion.save_synth",
    ):
        assert command in said


@pytest.mark.slow
def test_notebook_refuses_in_one_sentence(tmp_path):
    with pytest.raises(InputError) as refusal:
        execute(NOTEBOOK, {"EXPLORE_REAL": str(tmp_path / "nobody.nii.gz")})
    assert str(refusal.value) == f"{tmp_path}/nobody.nii.gz: no such file or folder"
