"""The validation on networks whose truth is known by construction."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from classifier import validate_saliency
from classifier.config import PRESETS as CLASSIFIERS
from classifier.saliency import attribution
from classifier.validation import checks, counterfactuals, evidence, planted
from classifier.validation import study as map_study
from classifier.validation.config import Effort, ValidationConfig
from cohort.atlas import atlas
from cohort.grids import GRIDS
from cohort.volumes import write_nifti
from runtime.cli import parse
from runtime.errors import InputError

GRID = GRIDS["smoke"]
ATLAS = atlas(GRID)
LEFT, RIGHT = (ATLAS.mask(f"{side} Hippocampus") for side in ("Left", "Right"))
SIDES = ["L", "R"] * 4
AT = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in GRID.shape), indexing="ij"))
BRAIN = (AT**2).sum(0) < 0.7
METHODS = ("saliency", "integrated_gradients_hc", "grad_cam", "attention")
"""Enough of them: two that are measured and two that this network does not allow."""


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
        image = np.where(BRAIN, 0.6 + 0.05 * rng.standard_normal(GRID.shape), 0.0)
        if label:
            image[LEFT if SIDES[number] == "L" else RIGHT] -= dose
            if mark is not None:
                image[mark] = 0.6
        images.append(image)
    return torch.from_numpy(np.array(images, np.float32))[:, None]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study whose networks all read the hippocampi; only the volumes differ between conditions."""
    effort = Effort(
        patients=8, controls=4, nulls=39, cascade_patients=2, faithful_patients=2, faithful_draws=5,
        ig_steps=8, noise_samples=4, resamples=200,
    )  # fmt: skip
    config = ValidationConfig(grid="smoke", out=tmp_path_factory.mktemp("study"), effort=effort, seed=0)
    labels = [1] * 8 + [0] * 4

    def network_of(study, condition, *, controls):
        chosen = labels if controls else labels[:8]
        x = volumes(chosen, 0.6 * condition.signal, planted.mark_of(GRID) if condition.mark else None)
        frame = pd.DataFrame(
            {"subject": [f"s{k}" for k in range(len(chosen))], "side": (SIDES + [""] * 4)[: len(chosen)]}
        )
        mean = torch.from_numpy(np.where(BRAIN, 0.6, 0.0).astype(np.float32))
        regions = torch.from_numpy(ATLAS.labels.astype(np.int64))[None, None]
        context = attribution.Context(mean[None, None], regions, ig_steps=8, noise_samples=4)
        loaded = SimpleNamespace(model=Reader().eval(), hash=condition.name, mean_hc=mean)
        return map_study.Network(condition, loaded, SimpleNamespace(frame=frame, batch=x.__getitem__), SIDES, context)

    def truth(study, network):
        shares = [(LEFT if side == "L" else RIGHT).astype(float) for side in network.sides]
        return evidence.truth_of(shares, network.sides, BRAIN, GRID.spacing_mm, 39, np.random.default_rng(0))

    device = SimpleNamespace(kind=torch.device("cpu"))
    chosen = planted.conditions((0.6, 0.3), (0.0,))
    names = ([f"s{k}" for k in range(8)], [f"s{k}" for k in range(8, 12)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(map_study, "open_network", network_of)
        patch.setattr(map_study, "truth_for", truth)
        patch.setattr(attribution, "METHODS", {name: attribution.METHODS[name] for name in METHODS})
        yield map_study.Study(config, device, chosen, ATLAS, names, frozenset({chosen[0].name, "shortcut"}))


@pytest.fixture(scope="module")
def found(study):
    return map_study.gather(study)


def test_methods_find_what_a_network_is_known_to_read(found):
    assert set(found.skipped) == {"attention", "grad_cam"}  # this network has neither
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
    assert exact["shortcut"]["rank"] > checks.FIRST_RANKS
    assert abs(exact["cascade_end"]) <= 1
    answers = checks.answers(exact)
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


def write_counterfactuals(folder, subjects, to="HC"):
    """As diffusion.counterfactual writes them: patients' darker hippocampus brightens again, controls stay."""
    rows = []
    for number, subject in enumerate(subjects):
        change = np.zeros(GRID.shape, np.float32)
        if number < len(SIDES):
            change[LEFT if SIDES[number] == "L" else RIGHT] = 0.3
        own = f"TLE-{SIDES[number]}" if number < len(SIDES) else "HC"
        for kind in ("counterfactual", "difference"):
            write_nifti(folder / f"{subject}_{kind}.nii.gz", change, GRID.affine)
        row = {"subject": subject, "file": f"{subject}_counterfactual.nii.gz", "diagnosis": to, "own": own}
        rows.append({**row, "difference": f"{subject}_difference.nii.gz"})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)


def test_counterfactuals_are_measured_as_one_more_method(study, tmp_path):
    write_counterfactuals(tmp_path, [*study.subjects[0], *study.subjects[1]])
    config = dataclasses.replace(study.config, counterfactuals=tmp_path)
    found = map_study.gather(dataclasses.replace(study, config=config))
    evidence = found.evidence["counterfactual"]
    assert set(METHODS) - set(found.skipped) | {"counterfactual"} == set(found.evidence)
    assert evidence["raw"]["average_precision"]["value"] == 1
    answers = checks.answers(evidence)
    of_networks = {"silence", "response", "forgetting", "permuted", "shortcut"}
    assert {name for name, answer in answers.items() if answer is None} == of_networks
    assert all(answers[name] for name in ("pointing", "enrichment", "precision", "difference", "side", "deletion"))
    row = checks.table({"counterfactual": evidence}, judged=True).loc[0]
    assert row["asked"] == len(checks.CHECKS) - len(of_networks)


def test_folders_of_other_counterfactuals_are_refused(tmp_path):
    write_counterfactuals(tmp_path, ["s0", "s8"])
    assert counterfactuals.read_maps(tmp_path, ["s8", "s0"], GRID)[1].max() == pytest.approx(0.3)
    with pytest.raises(InputError, match=r"no counterfactuals of these test subjects .1.:\n  - s1"):
        counterfactuals.read_maps(tmp_path, ["s0", "s1"], GRID)
    with pytest.raises(InputError, match="those of the study have"):
        counterfactuals.read_maps(tmp_path, ["s0"], GRIDS["demo"])
    write_counterfactuals(tmp_path, ["s0"], to="TLE-L")
    with pytest.raises(InputError, match="made for --to TLE-L; the map of a disease needs --to HC"):
        counterfactuals.read_maps(tmp_path, ["s0"], GRID)


def results(low: float):
    """In place of `prepare`: results of networks whose intervals of the AUC begin there."""
    auc = {"value": 0.6, "low": low, "high": 0.8}
    return lambda plan, chosen: {
        condition.name: {"metrics": {"test": {"auc": auc}}, "checkpoint": "x"} for condition in chosen
    }


def test_a_network_that_learned_nothing_is_not_judged(tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(validate_saliency.PRESETS["smoke"], out=tmp_path / "out", measure_unlearned=False)
    monkeypatch.setattr(validate_saliency, "prepare", results(0.45))
    monkeypatch.setattr(validate_saliency, "gather", lambda study: pytest.fail("measured all the same"))
    validate_saliency.main(config)
    assert "The interval contains 0.5" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert written["judged"] is False
    assert "methods" not in written
    with pytest.raises(InputError, match=r"'subjects': 48.*'subjects': 60"):
        validate_saliency.main(dataclasses.replace(config, subjects=60))


def test_what_is_written_has_one_row_per_method(study, found, tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(validate_saliency.PRESETS["smoke"], out=tmp_path / "out", threads=1)
    monkeypatch.setattr(validate_saliency, "prepare", results(0.55))
    monkeypatch.setattr(validate_saliency, "open_study", lambda *_: study)
    monkeypatch.setattr(validate_saliency, "gather", lambda _: found)
    validate_saliency.main(config)
    written = json.loads((tmp_path / "out" / "validation.json").read_text())
    table = pd.read_csv(tmp_path / "out" / "validation.csv")
    assert written["judged"] is True
    assert list(written["methods"]) == table["method"].tolist()
    assert set(written["skipped"]) | set(table["method"]) == set(METHODS)
    assert set(written["checks"]) == set(checks.CHECKS)
    assert written["not_counted"] == ["silence", "permuted"]
    assert {f"passes_{name}" for name in checks.CHECKS} <= set(table)
    passes = table[[f"passes_{name}" for name in checks.CHECKS if name not in written["not_counted"]]]
    assert (table["passed"] == passes.fillna(False).sum(axis=1)).all()
    assert (table["asked"] == passes.notna().sum(axis=1)).all()
    assert {"raw_enrichment", "raw_enrichment_low", "raw_enrichment_high", "raw_enrichment_p"} <= set(table)
    assert table.loc[0, "method"] in capsys.readouterr().out
    assert all((tmp_path / "out" / name).stat().st_size > 10_000 for name in ("scores.png", "differences.png"))


def test_a_mark_that_no_network_learned_is_not_asked_for(found):
    exact = found.evidence["integrated_gradients_hc"]
    unlearned = {**exact, "shortcut": {**exact["shortcut"], "learned": False}}
    assert checks.answers(unlearned)["shortcut"] is None
    table = checks.table({"method": unlearned}, judged=True)
    assert table.loc[0, "asked"] == len(checks.CHECKS) - 3  # two are not counted
    blunt = {**exact, "nothing": {"enrichment": {"value": 1.0, "p": 0.9}}, "permuted": {"enrichment": {"p": 0.9}}}
    sharp = {**exact, "nothing": {"enrichment": {"value": 9.0, "p": 0.001}}, "permuted": {"enrichment": {"p": 0.001}}}
    both = checks.table({"blunt": blunt, "sharp": sharp}, judged=True)
    assert both["passes_silence"].tolist() == [True, False]
    assert both["passed"].nunique() == 1


def test_presets_judge_what_they_say_and_share_no_folder():
    presets = validate_saliency.PRESETS
    assert len({config.out for config in presets.values()}) == len(presets)
    for config in presets.values():
        validate_saliency.check(config)
    first = {name: planted.conditions(config.signals, config.doses)[0].name for name, config in presets.items()}
    assert (first["demo"], first["doses"]) == ("signal_0.6", "dose_6")
    assert {1.9, 1.0, 0.5, 0.0} <= set(presets["doses"].doses)


@pytest.mark.parametrize("name", validate_saliency.PRESETS)
def test_networks_learn_no_volumes_of_another_cohort(name, tmp_path, monkeypatch):
    """The classifier's preset demo has those of the demo cohort as a second lesson."""
    config = dataclasses.replace(validate_saliency.PRESETS[name], out=tmp_path)
    asked = []
    monkeypatch.setattr(planted, "run_script", lambda module, *words: asked.extend(map(str, words)))
    planted.train(config, planted.conditions(config.signals, config.doses)[0])
    trained = parse(CLASSIFIERS, asked)
    assert (trained.volumes, trained.volumes_weight) == (None, 0)


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
