"""The validation on networks whose truth is known by construction."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from classifier import validate_saliency
from classifier.saliency.attribution import METHODS, Context
from classifier.validation import evidence as map_evidence
from classifier.validation import planted
from classifier.validation import study as map_study
from classifier.validation import verdicts as map_verdicts
from classifier.validation.evidence import Maps
from classifier.validation.planted_runs import Plan, run_script
from classifier.validation.weight_randomisation import cascade, rank_correlation, stages
from cohort.atlas import atlas
from cohort.scans import GRIDS, load_scans
from cohort.tables import read_table, write_table
from cohort.volumes import write_nifti
from runtime.errors import InputError

GRID = GRIDS["smoke"]
ATLAS = atlas(GRID)
LEFT, RIGHT = (ATLAS.mask(f"{side} Hippocampus") for side in ("Left", "Right"))
SIDES = ["L", "R"] * 4


def brain() -> np.ndarray:
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in GRID.shape), indexing="ij"))
    return (at**2).sum(0) < 0.7


class Reader(nn.Module):
    """A logit that falls with the darker of both hippocampi: the change on either side, and nothing else, moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 1)
        with torch.no_grad():
            self.head.weight.fill_(1.0)
            self.head.bias.fill_(0.0)
        self.register_buffer("masks", torch.from_numpy(np.stack([LEFT, RIGHT])).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        brightness = torch.einsum("bdhw,sdhw->bs", x[:, 0], self.masks) / self.masks.sum((1, 2, 3))
        return self.head(20 * nn.functional.relu(0.5 - brightness))[:, 0]


def volumes(labels: list[int], dose: float, mark: np.ndarray | None = None) -> torch.Tensor:
    """Textured brains; in patients the hippocampus of their side is darker by `dose`."""
    rng = np.random.default_rng(0)
    images = []
    for number, label in enumerate(labels):
        image = np.where(brain(), 0.6 + 0.05 * rng.standard_normal(GRID.shape), 0.0)
        if label:
            image[LEFT if SIDES[number] == "L" else RIGHT] -= dose
            if mark is not None:
                image[mark] = 0.6
        images.append(image)
    return torch.from_numpy(np.array(images, np.float32))[:, None]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study whose networks all read the hippocampi; only the volumes differ between conditions."""
    plan = Plan(tmp_path, "smoke", 16, 0, (), 1, 1)
    effort = map_study.Effort(
        patients=8, controls=4, nulls=39, cascade_patients=2, cascade_points=2, faithful_patients=2, faithful_draws=5,
        ig_steps=8, noise_samples=4, resamples=200,
    )  # fmt: skip
    labels = [1] * 8 + [0] * 4

    def network_of(study, condition, *, controls):
        chosen = labels if controls else labels[:8]
        x = volumes(chosen, 0.6 * condition.signal, planted.mark_of(GRID) if condition.mark else None)
        frame = pd.DataFrame(
            {"subject": [f"s{k}" for k in range(len(chosen))], "side": (SIDES + [""] * 4)[: len(chosen)]}
        )
        mean = torch.from_numpy(np.where(brain(), 0.6, 0.0).astype(np.float32))
        context = Context(mean[None, None], torch.from_numpy(ATLAS.labels.astype(np.int64))[None, None],
                          ig_steps=8, noise_samples=4, shap_samples=4)  # fmt: skip
        loaded = SimpleNamespace(model=Reader().eval(), hash=condition.name, mean_hc=mean)
        return map_study.Network(condition, loaded, SimpleNamespace(frame=frame, batch=x.__getitem__), 8, context)

    def truth(study, network):
        shares = [(LEFT if side == "L" else RIGHT).astype(float) for side in network.sides]
        return map_evidence.truth_of(shares, network.sides, brain(), GRID.spacing_mm, 39, np.random.default_rng(0))

    monkeypatch.setattr(map_study, "open_network", network_of)
    monkeypatch.setattr(map_study, "truth_for", truth)
    device = SimpleNamespace(kind=torch.device("cpu"))
    chosen = planted.conditions((0.6, 0.3), (0.0,))
    names = ([f"s{k}" for k in range(8)], [f"s{k}" for k in range(8, 12)])
    return map_study.Study(plan, effort, device, chosen, ATLAS, names, frozenset({chosen[0].name, "shortcut"}))


def test_methods_find_what_a_network_is_known_to_read(study):
    found = map_study.gather(study)
    assert {"attention", "grad_cam"} <= set(found.skipped)  # this network has neither
    exact = found.evidence["integrated_gradients_hc"]
    assert exact["raw"]["pointing"]["value"] == exact["side"]["difference"]["value"] == 1
    assert exact["raw"]["average_precision"]["value"] > 0.8
    assert exact["raw"]["enrichment"]["p"] == pytest.approx(1 / 40)
    assert exact["group"]["enrichment"]["p"] == pytest.approx(1 / 40)
    assert exact["side"]["raw"]["low"] == pytest.approx(0.025 ** (1 / 8))  # the exact interval of 8 hits of 8
    assert exact["deletion_gain"]["value"] > 0
    assert exact["insertion_gain"]["value"] > 0
    assert exact["response"]["signal"]["value"] > 0.5
    assert exact["response"]["signal"]["at_0"] == 0  # no gradient where nothing is dark
    assert exact["shortcut"]["share"]["value"] == 0  # this network does not see the mark, so no map may show it
    assert exact["shortcut"]["rank"] > map_verdicts.FIRST_RANKS
    answers = map_verdicts.verdicts(exact)
    assert all(
        answers[name] for name in ("pointing", "enrichment", "precision", "difference", "response", "side", "deletion")
    )
    assert answers["shortcut"] is False


def test_maps_on_disk_are_read_and_made_again_for_another_checkpoint(study, monkeypatch):
    network = map_study.open_network(study, study.conditions[0], controls=True)
    before = map_study.maps_of(study, network, "saliency")
    monkeypatch.setattr(map_study, "_explain", lambda *_: pytest.fail("made again"))
    np.testing.assert_array_equal(map_study.maps_of(study, network, "saliency").patients, before.patients)
    monkeypatch.setattr(map_study, "_explain", lambda *_: np.zeros((12, *GRID.shape), np.float32))
    other = dataclasses.replace(network, loaded=SimpleNamespace(**{**vars(network.loaded), "hash": "another"}))
    assert not map_study.maps_of(study, other, "saliency").patients.any()


def test_mirrored_patients_and_differences_are_in_one_frame():
    patients = np.stack([np.where(LEFT, 2.0, 0.5), np.where(np.flip(LEFT, 0), 2.0, 0.5)])
    maps = Maps(patients, ["L", "R"], np.full((3, *GRID.shape), 0.5))
    for left in maps.difference():
        np.testing.assert_array_equal(left, np.where(LEFT, 1.5, 0.0))
    np.testing.assert_array_equal(maps.raw()[0], maps.raw()[1])


def test_edges_that_all_classes_share_vanish_from_the_difference():
    """Maps that are stronger on an edge, in everybody, than on the truth: only their difference points at it."""
    edge = np.where(ATLAS.mask("Left Thalamus") | ATLAS.mask("Right Thalamus"), 5.0, 0.0)
    patients = np.stack([edge + np.where(LEFT if side == "L" else RIGHT, 1.0, 0.0) for side in SIDES])
    maps = Maps(patients, SIDES, np.stack([edge] * 3))
    shares = [(LEFT if side == "L" else RIGHT).astype(float) for side in SIDES]
    truth = map_evidence.truth_of(shares, SIDES, brain(), GRID.spacing_mm, 39, np.random.default_rng(0))
    assert map_evidence.localisation(maps.raw(), truth)["pointing"][:, 0].mean() == 0
    assert map_evidence.localisation(maps.difference(), truth)["pointing"][:, 0].mean() == 1


def test_trend_is_spearman_and_covers_no_trend():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 20)) + np.array([[0.0], [1.0], [2.0]])
    found = map_evidence.trend([0.0, 1.0, 1.9], values, rng, 500)
    assert found["value"] == pytest.approx(spearmanr(np.repeat([0.0, 1.0, 1.9], 20), values.ravel()).statistic)
    assert found["low"] > 0
    flat = map_evidence.trend([0.0, 1.0, 1.9], rng.standard_normal((3, 20)), rng, 500)
    assert flat["low"] < 0 < flat["high"]


def test_a_mark_that_a_map_shows_ranks_first():
    mark = planted.mark_of(GRID)
    rng = np.random.default_rng(0)
    maps = 0.01 * rng.standard_normal((6, *GRID.shape)) + mark
    weights = map_evidence.weights_of(6, 100, rng)
    found = map_evidence.mark_exposure(maps, mark, ATLAS, weights)
    assert found["rank"] == 1
    assert found["enrichment"]["value"] == pytest.approx(found["share"]["value"] / mark.mean())
    assert found["enrichment"]["low"] > 10
    assert map_evidence.mark_exposure(np.ones_like(maps), mark, ATLAS, weights)["rank"] == found["regions"]


def test_the_coarse_atlas_keeps_the_modelled_regions_and_loses_no_voxel():
    coarse = map_evidence.merged(ATLAS)
    np.testing.assert_array_equal(coarse.mask("Left Hippocampus"), LEFT)
    np.testing.assert_array_equal(coarse.labels > 0, ATLAS.labels > 0)
    assert len(np.unique(coarse.labels)) < 22


def test_randomisation_goes_from_the_head_to_the_stem_and_keeps_sizes():
    from classifier.config import PRESETS
    from classifier.model import build_model

    model = build_model(PRESETS["smoke"].model, GRID.shape, 0.0, 1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    names = [name for name, _ in stages(model)]
    assert names[0] == "head"
    assert names[-1] == "stem"
    assert sorted(name for _, part in stages(model) for name in part) == sorted(dict(model.named_parameters()))
    trained = {name: value.detach().clone() for name, value in model.named_parameters()}
    steps = list(cascade(model, seed=0))
    assert [name for name, _ in steps] == names
    for number, (_, copy) in enumerate(steps):
        changed = {name for name, value in copy.named_parameters() if not torch.equal(value, trained[name])}
        several = {name for name, value in trained.items() if value.numel() > 1}
        assert changed & several == {name for _, part in stages(model)[: number + 1] for name in part} & several
    for name, value in steps[-1][1].named_parameters():
        if value.numel() > 500:
            assert float(value.detach().std() / trained[name].std()) == pytest.approx(1, abs=0.15)
    assert all(torch.equal(value, trained[name]) for name, value in model.named_parameters())
    assert [name for name, _ in cascade(model, 0, points=2)] == ["head", "stem"]


def test_rank_correlation_is_of_magnitudes():
    rng = np.random.default_rng(0)
    a = rng.standard_normal(GRID.shape)
    assert rank_correlation(a, -3 * a, brain()) == pytest.approx(1)
    assert abs(rank_correlation(a, rng.standard_normal(GRID.shape), brain())) < 0.1
    assert rank_correlation(a, np.zeros(GRID.shape), brain()) == 0


def test_a_marked_cohort_differs_in_patients_corners_only(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for number, diagnosis in enumerate(("HC", "TLE-L", "TLE-R", "HC")):
        path = tmp_path / f"s{number}.nii.gz"
        image = np.where(brain(), rng.uniform(100, 900, GRID.shape), 0).astype(np.int16)
        nib.save(nib.Nifti1Image(image, GRID.affine), path)
        rows.append({"subject": f"s{number}", "file": str(path), "diagnosis": diagnosis})
    write_table(tmp_path / "index.csv", pd.DataFrame(rows))
    edit = planted.editor(planted.Condition("shortcut", mark=True), GRID, tmp_path)
    planted.write_edited(tmp_path / "index.csv", edit, tmp_path / "marked", tmp_path / "marked.csv")
    before, after = read_table(tmp_path / "index.csv"), read_table(tmp_path / "marked.csv")
    assert list(after["diagnosis"]) == list(before["diagnosis"])
    mark = planted.mark_of(GRID)
    assert not (mark & brain()).any()
    for one, other, label in zip(before["file"], after["file"], before["label"], strict=True):
        a, b = (np.asarray(nib.load(path).dataobj) for path in (one, other))
        assert ((a != b) == (mark if label else False)).all()
    scaled = load_scans(after, GRID, cache_dir=tmp_path / "cache").volumes
    assert (scaled[1][mark] > 0.3).all()


def test_a_signal_is_lost_where_the_region_is_and_nowhere_else(tmp_path):
    share = np.where(LEFT, 1.0, 0.0)
    share[tuple(np.argwhere(LEFT)[0])] = 0.5
    write_nifti(tmp_path / "s1.nii.gz", share, GRID.affine)
    image = np.full(GRID.shape, 200, np.int16)
    found = planted.editor(planted.Condition("signal_0.6", signal=0.6), GRID, tmp_path)("s1", image)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, np.where(share == 1, 80, np.where(share == 0.5, 140, 200)))
    assert planted.editor(planted.Condition("dose_1", dose=1.0), GRID, tmp_path) is None


def test_conditions_share_data_and_come_strongest_first():
    found = planted.conditions((0.3, 0.6), (0.0, 1.9, 0.5))
    names = [one.name for one in found]
    assert names == ["signal_0.6", "signal_0.3", "dose_1.9", "dose_0.5", "dose_0", "permuted", "shortcut"]
    assert [one.data for one in found[-2:]] == ["signal_0.6", "marked"]
    assert {one.cohort for one in found if one.signal or one.mark} == {"dose_0"}
    assert planted.levels(found) == {
        "signal": {"signal_0.6": 0.6, "signal_0.3": 0.3, "dose_0": 0.0},
        "dose": {"dose_1.9": 1.9, "dose_0.5": 0.5, "dose_0": 0.0},
    }
    assert list(planted.levels(planted.conditions((), (1.9, 0.0)))) == ["dose"]


def results(low: float) -> dict:
    return {"metrics": {"test": {"auc": {"value": 0.6, "low": low, "high": 0.8}}}, "checkpoint": "x"}


def test_a_network_that_learned_nothing_is_not_judged(tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(validate_saliency.PRESETS["smoke"], out=tmp_path / "out", measure_unlearned=False)
    monkeypatch.setattr(validate_saliency, "prepare", lambda plan, chosen: {one.name: results(0.45) for one in chosen})
    monkeypatch.setattr(validate_saliency, "gather", lambda study: pytest.fail("measured all the same"))
    validate_saliency.main(config)
    assert "The interval contains 0.5" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert written["judged"] is False
    assert "methods" not in written
    with pytest.raises(InputError, match=r"'subjects': 48.*'subjects': 60"):
        validate_saliency.main(dataclasses.replace(config, subjects=60))


def test_what_is_written_has_one_row_per_method(study, tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(validate_saliency.PRESETS["smoke"], out=tmp_path / "out", threads=1)
    monkeypatch.setattr(validate_saliency, "prepare", lambda plan, chosen: {one.name: results(0.55) for one in chosen})
    monkeypatch.setattr(validate_saliency, "open_study", lambda *_: study)
    validate_saliency.main(config)
    written = json.loads((tmp_path / "out" / "validation.json").read_text())
    table = pd.read_csv(tmp_path / "out" / "validation.csv")
    assert written["judged"] is True
    assert list(written["methods"]) == table["method"].tolist()
    assert set(written["skipped"]) | set(table["method"]) == set(METHODS)
    assert (table["passed"] <= table["asked"]).all()
    share = (table["passed"] / table["asked"]).to_numpy()
    assert (np.diff(share) <= 1e-12).all()
    assert {"raw_enrichment", "raw_enrichment_low", "raw_enrichment_high", "raw_enrichment_p"} <= set(table)
    assert table.loc[0, "method"] in capsys.readouterr().out
    assert all((tmp_path / "out" / name).stat().st_size > 10_000 for name in ("scores.png", "differences.png"))


def test_presets_judge_what_they_say_and_share_no_folder():
    presets = validate_saliency.PRESETS
    assert len({config.out for config in presets.values()}) == len(presets)
    for config in presets.values():
        validate_saliency.check(config)
    first = {name: planted.conditions(config.signals, config.doses)[0].name for name, config in presets.items()}
    assert (first["demo"], first["doses"]) == ("signal_0.6", "dose_6")
    assert {1.9, 1.0, 0.5, 0.0} <= set(presets["doses"].doses)


def test_settings_that_answer_nothing_are_all_named(tmp_path):
    smoke = validate_saliency.PRESETS["smoke"]
    effort = dataclasses.replace(smoke.effort, nulls=5, patients=1)
    config = dataclasses.replace(smoke, out=tmp_path / "no", doses=(7.0,), signals=(1.5,), jobs=0, effort=effort)
    with pytest.raises(InputError) as refused:
        validate_saliency.main(config)
    assert all(
        flag in str(refused.value)
        for flag in ("0 among them", "0 to 6", "--signals (1.5,)", "--effort.nulls 5", "--jobs 0")
    )
    assert "--effort.patients" in str(refused.value)
    assert not (tmp_path / "no").exists()


def test_a_script_that_fails_is_shown():
    with pytest.raises(InputError, match=r"cohort.split .*status 2:\n(.|\n)*nowhere.csv"):
        run_script("cohort.split", "--index", "nowhere.csv")
