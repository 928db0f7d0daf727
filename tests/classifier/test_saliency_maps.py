import dataclasses
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread

from classifier.checkpoint import save_classifier
from classifier.config import ModelConfig
from classifier.generate_saliency_maps import SaliencyConfig, main
from classifier.model import build_model
from classifier.saliency import attribution
from cohort.grids import GRIDS
from cohort.ledger import ledger_of
from cohort.tables import read_table, write_table
from cohort.volumes import Volume, write_nifti, write_volume
from runtime.errors import InputError
from runtime.files import read_json

GRID = GRIDS["smoke"]


def save_network(
    path: Path, ledger: list[str], mean_hc: torch.Tensor, *, pool: str = "attention", seed: int = 0, **state
):
    """A checkpoint of a small network with random weights."""
    torch.manual_seed(seed)
    model = build_model(ModelConfig(widths=(8, 16), blocks=1, stem_stride=2, pool=pool), GRID, 0.4, 0.3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {"temperature": 1.0, "threshold": 0.5, **state}
    save_classifier(path, model, grid=GRID, ledger=ledger, mean_hc=mean_hc, step=1, ema=model.state_dict(), **state)


@pytest.fixture(scope="module")
def checkpoint(cohort, scans, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("network") / "best.pt"
    mean_hc = torch.from_numpy(scans.volumes[:][scans.labels == 0].mean(0))
    save_network(path, ledger_of(read_table(cohort / "train.csv")), mean_hc)
    return path


@pytest.fixture(scope="module")
def reconstructions(cohort, tmp_path_factory) -> Path:
    """A folder as VAE.infer --nifti leaves it: two files per scan."""
    folder = tmp_path_factory.mktemp("infer")
    frame = read_table(cohort / "test.csv")
    for row in frame.iloc[:6].itertuples():
        image = nib.load(row.file).get_fdata().astype(np.float32)
        write_nifti(folder / f"{row.subject}_reconstruction.nii.gz", 0.9 * image, GRID.affine)
        write_nifti(folder / f"{row.subject}_scan.nii.gz", image, GRID.affine)
    return folder


@pytest.fixture
def config(cohort, checkpoint, tmp_path) -> SaliencyConfig:
    return SaliencyConfig(
        checkpoint=checkpoint, csv=cohort / "test.csv", methods=("saliency", "integrated_gradients_hc"),
        out=tmp_path / "maps", limit=4, pictures=0, ig_steps=4, noise_samples=2, resamples=20,
        threads=1, cache_dir=cohort / "cache",
    )  # fmt: skip


def image(path: Path) -> np.ndarray:
    return nib.load(path).get_fdata()


def test_all_methods_write_maps_and_tables(config):
    config = dataclasses.replace(config, methods=tuple(attribution.METHODS))
    main(config)
    for method in attribution.METHODS:
        maps = {path.name for path in (config.out / method / "real").glob("test*.nii.gz")}
        assert maps == {f"test{number:02d}.nii.gz" for number in range(4)}
    assert not list(config.out.rglob("*.png"))
    first = nib.load(config.out / "saliency/real/test00.nii.gz")
    np.testing.assert_allclose(first.affine, GRID.affine)
    assert first.get_data_dtype() == np.float32
    table = pd.read_csv(config.out / "region_ranking.csv")
    assert set(table["method"]) == set(attribution.METHODS)
    assert table.groupby("method")["mean_abs"].apply(lambda part: part.is_monotonic_decreasing).all()
    written = read_json(config.out / "maps.json")
    assert written["volumes"] == {"real": {"HC": 2, "TLE": 2}}
    assert written["leak"] is False
    assert written["not_signed"] == ["attention"]
    assert set(written["completeness_error_logits"]) == set(attribution.COMPLETE)
    assert written["completeness_error_logits"]["integrated_gradients_hc"]["max_abs"] < 0.1


@pytest.mark.slow
def test_pictures_are_drawn_as_many_as_asked_for(config):
    main(dataclasses.replace(config, methods=("smoothgrad", "attention"), pictures=1, limit=2))
    for method in ("smoothgrad", "attention"):
        folder = config.out / method / "real"
        assert not (folder / "test01.png").exists()
        for name in ("test00.png", "mean_TLE.png", "mean_TLE_minus_HC.png"):
            picture = imread(folder / name)[..., :3]
            assert picture.shape[1] > 500
            colours = np.unique((picture * 255).astype(int) @ [65536, 256, 1])
            assert len(colours) > 50


def test_real_synthetic_and_reconstructed_volumes_in_one_call(config, cohort, reconstructions):
    folders = (cohort / "synth_HC", cohort / "synth_TLE")
    main(dataclasses.replace(config, volumes=folders, reconstructions=(reconstructions,)))
    cases = pd.read_csv(config.out / "cases.csv", keep_default_na=False)
    assert cases.groupby("origin").size().to_dict() == {"real": 4, "synthetic": 4, "reconstruction": 4}
    again = cases[cases["origin"] == "reconstruction"]
    assert again["subject"].tolist() == cases[cases["origin"] == "real"]["subject"].tolist()
    assert again["side"].tolist() == cases[cases["origin"] == "real"]["side"].tolist()
    called = cases["probability"] >= 0.5
    for outcome, label, positive in (("TP", 1, True), ("FN", 1, False), ("FP", 0, True), ("TN", 0, False)):
        assert ((cases["outcome"] == outcome) == ((cases["label"] == label) & (called == positive))).all()
    groups = pd.read_csv(config.out / "groups.csv")
    for origin, rows in cases.groupby("origin"):
        counts = groups[groups["origin"] == origin].set_index("group")["volumes"].to_dict()
        assert counts["HC"] == counts["TLE"] == 2
        assert sum(counts.get(outcome, 0) for outcome in ("TP", "TN", "FP", "FN")) == 4
        for group in counts:
            members = rows[(rows["outcome"] == group) | (rows["diagnosis"].str.replace("-", "_") == group)
                           | (rows["label"].map({0: "HC", 1: "TLE"}) == group)]  # fmt: skip
            folder = config.out / "saliency" / origin
            mean = np.mean([image(folder / f"{stem}.nii.gz") for stem in members["stem"]], axis=0)
            np.testing.assert_allclose(image(folder / f"mean_{group}.nii.gz"), mean, atol=1e-6 * np.abs(mean).max())
    ranking = pd.read_csv(config.out / "region_ranking.csv")
    assert set(ranking["origin"]) == {"real", "synthetic", "reconstruction"}
    complete = ranking["method"].isin(attribution.COMPLETE)
    assert 0 < complete.sum() < len(ranking)
    assert ranking["logits_TLE_minus_HC"].notna().equals(complete)  # sums of other maps mean nothing
    agreement = pd.read_csv(config.out / "agreement.csv")
    assert agreement["ceiling"].between(0, 1).all()
    between = agreement.groupby("between").size()
    assert between["origins"] == 3 * 2 * 2  # pairs of origins, methods, quantities
    assert between["methods"] == 3 * 2
    row = agreement[(agreement["between"] == "origins") & (agreement["origin_b"] == "reconstruction")
                    & (agreement["origin_a"] == "real") & (agreement["quantity"] == "mean_abs")].iloc[0]  # fmt: skip
    assert row["spearman"] > 0.8  # a reconstruction here is its scan, a little darker, and normalised again
    lateral = pd.read_csv(config.out / "lateralisation.csv")
    assert set(lateral[lateral["origin"] == "real"]["group"]) == {"HC", "TLE-L", "TLE-R", "TLE-L minus TLE-R"}
    assert set(lateral[lateral["origin"] == "synthetic"]["group"]) == {"HC", "TLE-L", "TLE-R", "TLE-L minus TLE-R"}


def test_maps_that_are_there_are_not_made_again(config, checkpoint, scans, tmp_path):
    main(config)
    stamps = {path: path.stat().st_mtime_ns for path in config.out.rglob("test*.nii.gz")}
    assert len(stamps) == 8

    def made_again(**changes) -> tuple[dict, set]:
        main(dataclasses.replace(config, **changes))
        new = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
        stamps.update({path: path.stat().st_mtime_ns for path in stamps})
        return read_json(config.out / "maps.json")["maps_made_now"], {(p.parents[1].name, p.name) for p in new}

    assert made_again() == ({"saliency": 0, "integrated_gradients_hc": 0}, set())
    made, new = made_again(ig_steps=5)  # a setting of one of the two methods
    assert made == {"saliency": 0, "integrated_gradients_hc": 4}
    assert {method for method, _ in new} == {"integrated_gradients_hc"}
    lost = config.out / "saliency/real/test02.nii.gz"
    before = image(lost)
    lost.with_name("test02.json").unlink()  # as if stopped between the map and its note
    made, new = made_again(ig_steps=5)
    assert made["saliency"] == 1
    assert new == {("saliency", "test02.nii.gz")}
    np.testing.assert_allclose(image(lost), before, atol=1e-4 * np.abs(before).max())
    other = tmp_path / "other.pt"
    save_network(other, [], torch.zeros(GRID.shape), seed=1)
    made, new = made_again(ig_steps=5, checkpoint=other)
    assert set(made.values()) == {4}


def test_a_map_does_not_depend_on_the_table_its_volume_stands_in(config, cohort, tmp_path):
    config = dataclasses.replace(config, methods=("smoothgrad",))
    main(config)
    frame = read_table(cohort / "test.csv")
    turned = tmp_path / "turned.csv"
    write_table(turned, frame.iloc[[3, 0]])
    main(dataclasses.replace(config, csv=turned, out=tmp_path / "turned"))
    a, b = (image(out / "smoothgrad/real/test03.nii.gz") for out in (config.out, tmp_path / "turned"))
    np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())


def test_reconstructions_without_their_scans_are_refused(config, reconstructions):
    with pytest.raises(InputError, match=r"(?s)of unknown class.*not in --csv \(6\).*test00_reconstruction"):
        main(dataclasses.replace(config, csv=None, reconstructions=(reconstructions,)))


def test_regions_can_be_chosen(config):
    main(dataclasses.replace(config, regions=("Left Hippocampus", "Right Hippocampus")))
    table = pd.read_csv(config.out / "region_ranking.csv")
    assert set(table["region"]) == {"Left Hippocampus", "Right Hippocampus"}


def test_a_checkpoint_without_threshold_has_no_outcomes(config, tmp_path, capsys):
    unfinished = tmp_path / "unfinished.pt"
    save_network(unfinished, [], torch.zeros(GRID.shape), threshold=None)
    main(dataclasses.replace(config, checkpoint=unfinished))
    assert pd.read_csv(config.out / "cases.csv")["outcome"].isna().all()
    assert set(pd.read_csv(config.out / "groups.csv")["group"]) == {"HC", "TLE", "TLE_L", "TLE_R"}
    assert "has no threshold" in capsys.readouterr().out


def test_subjects_of_the_training_are_refused_also_as_reconstructions(config, cohort, tmp_path):
    with pytest.raises(InputError, match="train00"):
        main(dataclasses.replace(config, csv=cohort / "train.csv"))
    folder, both = tmp_path / "infer", tmp_path / "both.csv"
    tables = [read_table(cohort / f"{split}.csv") for split in ("test", "train")]
    write_table(both, pd.concat([tables[0].iloc[:4], tables[1].iloc[:1]]))
    write_nifti(folder / "train00_reconstruction.nii.gz", nib.load(tables[1]["file"][0]).get_fdata(), GRID.affine)
    config = dataclasses.replace(config, csv=both, reconstructions=(folder,))  # --limit 4 leaves the scan itself out
    with pytest.raises(InputError, match="train00"):
        main(config)
    assert not config.out.exists()
    main(dataclasses.replace(config, allow_leak=True, methods=("saliency",)))
    assert read_json(config.out / "maps.json")["leak"] is True


def test_what_cannot_be_explained_is_refused_before_anything_is_written(config, cohort, tmp_path):
    with pytest.raises(InputError, match=r"unknown: gradcam; there are: smoothgrad"):
        main(dataclasses.replace(config, methods=("gradcam",)))
    with pytest.raises(InputError, match="near it: Left Hippocampus"):
        main(dataclasses.replace(config, regions=("left hippocampus",)))
    with pytest.raises(InputError, match="nothing to explain: give --csv"):
        main(dataclasses.replace(config, csv=None))
    with pytest.raises(InputError, match="no such folder"):
        main(dataclasses.replace(config, volumes=(tmp_path / "nowhere",)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no volume pickles"):
        main(dataclasses.replace(config, volumes=(tmp_path / "empty",)))
    with pytest.raises(InputError, match="no reconstructions"):
        main(dataclasses.replace(config, reconstructions=(tmp_path / "empty",)))
    shutil.copytree(cohort / "synth_HC", tmp_path / "copy")
    with pytest.raises(InputError, match=r"(?s)one name would overwrite.*HC_000000"):
        main(dataclasses.replace(config, volumes=(cohort / "synth_HC", tmp_path / "copy")))
    assert not config.out.exists()


def test_volumes_of_another_grid_are_all_named(config, tmp_path):
    folder, rng = tmp_path / "volumes", np.random.default_rng(0)
    write_volume(
        folder / "HC_000001.pkl", Volume(rng.random(GRIDS["demo"].shape, np.float32), 0, 1, GRIDS["demo"].affine)
    )
    moved = GRID.affine.copy()
    moved[0, 3] += 8
    write_volume(folder / "TLE_000002.pkl", Volume(rng.random(GRID.shape, np.float32), 1, 2, moved))
    write_volume(folder / "TLE_000003.pkl", Volume(rng.random(GRID.shape, np.float32), 1, 3, GRID.affine))
    match = (
        r"(?s)not on the classifier's grid smoke \(20, 24, 20\), 8 mm \(2\).*000001.*\(40, 48, 40\).*000002.*elsewhere"
    )
    with pytest.raises(InputError, match=match):
        main(dataclasses.replace(config, csv=None, volumes=(folder,)))
    assert not config.out.exists()


def test_attention_of_a_network_without_it_is_refused(config, tmp_path):
    plain = tmp_path / "plain.pt"
    save_network(plain, [], torch.zeros(GRID.shape), pool="mean")
    with pytest.raises(InputError, match="has no attention head"):
        main(dataclasses.replace(config, checkpoint=plain, methods=("attention",)))


def test_a_damaged_map_is_named(config):
    main(config)
    broken = config.out / "saliency/real/test01.nii.gz"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(InputError, match=r"test01.nii.gz: not a whole map.*delete it"):
        main(config)
    broken.unlink()
    main(config)
    assert image(broken).shape == GRID.shape
