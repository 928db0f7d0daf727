"""The whole evaluation at the smoke grid: what it writes, that it is done once, and what it refuses."""

import dataclasses
import re
from functools import partial

import numpy as np
import pandas as pd
import pytest

from cohort.atlas import REGIONS
from cohort.grids import GRIDS
from cohort.ledger import ledger_of, ledger_of_subjects
from cohort.tables import LABELS, read_table
from cohort.volumes import Volume, volume_name, write_nifti, write_volume
from evaluation import evaluate_synth
from evaluation.effects import cohens_d
from evaluation.evaluate_synth import EvaluateConfig
from evaluation.privacy.embedding import EncoderConfig
from evaluation.references import controls
from runtime import distributed, workers
from runtime.checkpoints import checkpoint_hash
from runtime.cli import run_script
from runtime.errors import InputError, InputWarning
from runtime.files import read_json, write_json
from runtime.pickles import save_pickle
from runtime.workers import start_workers
from tests.support.volumes import volumes_ml, write_synthseg

GRID = GRIDS["smoke"]


def head(seed):
    """A ball with a smooth pattern and noise; no two are alike."""
    draw = np.random.default_rng(seed)
    places = np.meshgrid(*[np.linspace(-1, 1, size) for size in GRID.shape], indexing="ij")
    radius = np.sqrt(sum(place**2 for place in places)) + 0.05 * draw.normal()
    pattern = 0.6 + 0.3 * np.cos(6 * radius + draw.normal()) + draw.normal(0, 0.02, GRID.shape)
    return np.where(radius < 0.85, pattern, 0).astype(np.float32)


def write_reals(folder, name, per_class, first):
    rows = []
    for index in range(2 * per_class):
        path = folder / f"{name}{index}.nii.gz"
        write_nifti(path, head(first + index), GRID.affine)
        rows.append({"subject": f"{name}{index}", "file": path.name, "diagnosis": ("HC", "TLE")[index % 2]})
    pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    return folder / f"{name}.csv"


def write_synthetic(folder, name, count, first, sides="LR"):
    for index in range(count):
        side = {"side": sides[index % 2]} if name == "TLE" else {}
        volume = Volume(head(first + index), LABELS[name], index, GRID.affine, vae="a" * 16, diffusion="b" * 16, **side)
        write_volume(folder / volume_name(LABELS[name], index), volume)
    write_json(folder / "ledger.json", {"ledger": ledger_of_subjects(f"train{index}" for index in range(8))})
    return folder


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr("cohort.stacks.ROOT", tmp_path)  # the cache of decoded scans
    short = partial(EncoderConfig, steps=5, batch_size=8)  # no test here turns on what the encoder has learnt
    monkeypatch.setattr("evaluation.privacy.embedding.EncoderConfig", short)
    return EvaluateConfig(
        real_train=write_reals(tmp_path, "train", 4, 0),
        real_test=write_reals(tmp_path, "test", 4, 100),
        synth_hc=write_synthetic(tmp_path / "hc", "HC", 4, 200),
        synth_tle=write_synthetic(tmp_path / "tle", "TLE", 4, 300),
        out=tmp_path / "results" / "smoke.json",
        grid="smoke",
        slices=1,
        repeats=3,
        threads=1,
        parts=(),
        cache_dir=tmp_path / "features",
    )


@pytest.mark.slow
def test_writes_everything_a_reader_needs_and_is_done_once(config, capsys, monkeypatch):
    evaluate_synth.main(config)
    result = read_json(config.out)
    assert result["n"]["per_draw"] == {"overall": 4, "HC": 2, "TLE": 2}
    assert result["n"]["synthetic"] == {"HC": 4, "TLE": 4}
    assert result["checkpoints"] == {"vae": ["a" * 16], "diffusion": ["b" * 16]}
    assert result["leak"] is False
    assert sum("TOO FEW" in warning for warning in result["warnings"]) == 3
    for group in ("overall", "HC", "TLE"):
        samples = result["results"][group]["held_out"]
        assert {"floor", "training", "synthetic", "repeated", *controls.NAMES} <= set(samples)
        assert ("other_class" in samples) == (group != "overall")
        for sample in samples.values():
            assert sample["fid"]["low"] <= sample["fid"]["mean"] <= sample["fid"]["high"]
    overall = result["results"]["overall"]["held_out"]
    assert overall["floor"]["fid"]["mean"] < overall["shuffled"]["fid"]["mean"]
    assert result["views"]["region_intensities"]["all_volumes"]["overall"]["kid_p_value"] > 0
    assert result["views"]["inception_v3"]["skipped"].startswith("skipped: no weights were given")
    assert written(config) == {"smoke_fid.png", "smoke_sharpness.png", "smoke_nearest.png", "smoke.json", "smoke.md"}

    monkeypatch.setattr(evaluate_synth, "measure", lambda *_: pytest.fail("measured again"))
    capsys.readouterr()
    evaluate_synth.main(config)
    assert "done already" in capsys.readouterr().out
    with pytest.raises(InputError, match="other inputs") as refusal:
        evaluate_synth.main(dataclasses.replace(config, seed=1))
    assert "settings" in str(refusal.value)
    assert "real_test" not in str(refusal.value)
    assert read_json(config.out) == result


def written(config):
    return {path.name for path in config.out.parent.iterdir()}


@pytest.mark.slow
def test_a_network_measures_the_regions(config, random_labels):
    config = dataclasses.replace(config, parts=("anatomy",), labels_from=random_labels(0))
    evaluate_synth.main(config)
    found = read_json(config.out)["anatomy"]
    assert "by a network" in found["method"]
    assert found["failed"] == {"train": 0, "test": 0, "synthetic": 0}
    assert set(REGIONS) <= set(found["effects"]["synthetic"]["measures"])
    with pytest.raises(InputError, match="other inputs") as refusal:
        evaluate_synth.main(dataclasses.replace(config, labels_from=random_labels(1)))
    assert "labels" in str(refusal.value)
    with pytest.raises(InputError, match="on the grid smoke"):
        evaluate_synth.main(dataclasses.replace(config, grid="demo"))


@pytest.mark.slow
def test_all_parts_and_both_cards(config):
    swap = write_synthetic(config.out.parent.parent / "swap", "TLE", 4, 400, sides="RL")
    ml, names = volumes_ml(16), [f"{name}{k}" for name in ("train", "test") for k in range(8)]
    ml[3] = 0  # the tool failed there
    config = dataclasses.replace(config, parts=evaluate_synth.PARTS, pairs=6, synth_swap=swap)
    config = dataclasses.replace(config, volumes=write_synthseg(config.out.parent.parent, ml, names))
    with pytest.warns(InputWarning, match=r"1 of 16 scans .*\n  - train3: no volume \(0 or empty\)"):
        evaluate_synth.main(config)
    other = write_synthseg(config.out.parent.parent / "other", 1.1 * ml, names)
    with pytest.raises(InputError, match=r"holds a result of other inputs.*\(1\):\n  - settings"):
        evaluate_synth.main(dataclasses.replace(config, volumes=other))
    result = read_json(config.out)
    known = result["anatomy"]["known"]
    assert (known["tool"], known["scans"], known["of"]) == ("SynthSeg", 15, 16)
    there = np.arange(16) != 3
    d = cohens_d(ml[there], np.arange(16)[there] % 2)
    found = result["anatomy"]["known_effects"]["measures"]
    assert [found[name]["d"] for name in known["regions"]] == pytest.approx(
        [d[REGIONS.index(name)] for name in known["regions"]], rel=1e-3
    )
    assert {"smoke_effects.png", "smoke_closest.png", "smoke_privacy.md", "smoke.md"} <= written(config)
    assert set(result["privacy"]["audit"]["spaces"]) == {"voxels", "encoder"}
    assert result["privacy"]["attacks"]["DiT: loss"] == "skipped: needs --vae and --diffusion"
    assert result["anatomy"]["label_swap"]["n"] == 4  # seeds 0 to 3 in both folders
    laterality = result["anatomy"]["laterality"]
    assert laterality["sides"]["synthetic"] == {"left": 2, "right": 2, "unknown": 0}
    assert set(laterality["effects"]) == {"synthetic"}  # the tables of scans name no sides
    swaps = {name: found["n"] for name, found in laterality["label_swap"].items()}
    assert swaps == {"HC to TLE": 4, "HC to TLE-L": 4, "HC to TLE-R": 4, "TLE-L to TLE-R": 4}
    assert set(result["diversity"]) == {"support", "ms_ssim"}
    for card in (config.out.with_suffix(".md"), config.out.with_name("smoke_privacy.md"), config.out):
        text = card.read_text()
        assert "train0" not in text  # no subject is named
        assert "no memorization" not in text.lower()
    card = config.out.with_suffix(".md").read_text()
    assert "known volumes: SynthSeg, of 15 of 16 scans" in card
    assert "TLE-L to TLE-R, 4 seeds, same noise: Left Hippocampus" in card
    for heading in ("Realism", "Diversity", "Anatomy", "Privacy", "Use", "Limits", "Licences"):
        assert f"## {heading}" in card


@pytest.mark.slow
def test_two_threads_find_what_one_finds(config, tmp_path, random_vae, random_diffusion, monkeypatch):
    """To the bit; with two, the audit has a process of its own."""
    vae, diffusion = random_vae, random_diffusion()
    made = {"vae": checkpoint_hash(vae), "diffusion": checkpoint_hash(diffusion)}
    folders = {name: tmp_path / f"of_{name}" for name in LABELS}
    for place, (name, folder) in enumerate(folders.items()):
        for index in range(4):
            volume = Volume(head(300 + 2 * index + place), LABELS[name], index, GRID.affine, **made)
            write_volume(folder / volume_name(LABELS[name], index), volume)
        write_json(folder / "ledger.json", {"ledger": ledger_of_subjects(f"many{index}" for index in range(16))})
    config = dataclasses.replace(
        config, real_train=write_reals(tmp_path, "many", 8, 1000), real_test=write_reals(tmp_path, "others", 8, 2000),
        synth_hc=folders["HC"], synth_tle=folders["TLE"], parts=("privacy",), vae=vae, diffusion=diffusion,
    )  # fmt: skip
    monkeypatch.undo()  # a process of its own would know nothing of it
    results, processes = [], []
    monkeypatch.setattr(workers, "start_workers", lambda *words: processes.append(1) or start_workers(*words))
    for threads in (1, 2):
        own = {"cache_dir": tmp_path / f"features{threads}", "scan_cache": tmp_path / f"scans{threads}"}
        out = tmp_path / f"by{threads}" / "result.json"
        evaluate_synth.main(dataclasses.replace(config, threads=threads, out=out, **own))
        results.append(read_json(out))
    assert results[0] == results[1]
    assert len(processes) == 1
    assert results[0]["privacy"]["attacks"]["DiT: loss"]["n"] == {"members": 16, "others": 16}


@pytest.mark.slow
def test_a_copying_generator_is_found(config, tmp_path):
    """Training scans passed as synthetic: the audit says copying, and the distances warn."""
    config = dataclasses.replace(
        config, real_train=write_reals(tmp_path, "many", 12, 1000), real_test=write_reals(tmp_path, "others", 12, 2000),
        synth_hc=tmp_path / "copies_hc", synth_tle=tmp_path / "copies_tle", parts=("privacy",),
    )  # fmt: skip
    for place, (name, folder) in enumerate((("HC", config.synth_hc), ("TLE", config.synth_tle))):
        for index in range(12):
            volume = Volume(head(1000 + 2 * index + place), LABELS[name], index, GRID.affine)
            write_volume(folder / volume_name(LABELS[name], index), volume)
        write_json(folder / "ledger.json", {"ledger": ledger_of(read_table(config.real_train))})
    evaluate_synth.main(config)
    result = read_json(config.out)
    assert result["privacy"]["audit"]["finding"]["copying"] is True
    assert "copying" in config.out.with_suffix(".md").read_text()
    assert not re.search(r"many\d", config.out.read_text())  # subjects that were copied are counted, not named


def test_checkpoints_of_other_volumes_are_refused(config, tmp_path):
    (tmp_path / "other.pt").write_bytes(b"another checkpoint")
    refused(dataclasses.replace(config, vae=tmp_path / "other.pt"), "--vae", "the volumes name")
    refused(dataclasses.replace(config, weights=("inception_v3=nowhere.pt",)), "expected NAME=FILE=SHA256")


def refused(config, *parts):
    with pytest.raises(InputError) as refusal:
        evaluate_synth.main(config)
    for part in parts:
        assert part in str(refusal.value)
    assert not config.out.exists()


def test_too_few_volumes_state_the_minimum_for_both_classes_at_once(config):
    for folder in (config.synth_hc, config.synth_tle):
        sorted(folder.glob("*.pkl"))[0].unlink()
    refused(config, "synthetic volumes: 3 of class HC, at least 4", "3 of class TLE, at least 4")
    for path in config.synth_hc.glob("*.pkl"):
        path.unlink()
    refused(config, "synthetic volumes: 0 of class HC, at least 4")


def test_a_class_missing_among_the_reals_is_refused(config):
    rows = pd.read_csv(config.real_test)
    rows[rows["diagnosis"] == "HC"].to_csv(config.real_test, index=False)
    refused(config, "--real-test: 0 of class TLE")


def test_missing_and_repeated_folders_are_refused(config, tmp_path):
    refused(dataclasses.replace(config, synth_tle=config.synth_hc / ".." / "hc"), "the same folder")
    refused(dataclasses.replace(config, synth_tle=tmp_path / "nowhere"), "nowhere")


def test_all_bad_volumes_are_named_at_once(config):
    files = sorted(config.synth_tle.glob("*.pkl"))
    write_volume(files[0], Volume(head(1), LABELS["HC"], 0, GRID.affine))
    write_volume(files[1], Volume(np.ones((8, 8, 8), dtype=np.float32), LABELS["TLE"], 1))
    write_volume(files[2], Volume(head(2), LABELS["TLE"], 2, GRIDS["demo"].affine))
    files[3].write_bytes(files[3].read_bytes()[:500])
    refused(config, "class HC in the folder for TLE", "shape (8, 8, 8)", "its affine is not", files[3].name)


def test_non_finite_volumes_are_refused(config):
    # Written past the checks of write_volume, as another program would.
    image = head(5)
    image[3, 3, 3] = np.nan
    path = sorted(config.synth_hc.glob("*.pkl"))[1]
    save_pickle(path, {"image": image, "label": 0})
    refused(config, path.name, "finite")


def test_another_grid_is_refused(config):
    refused(dataclasses.replace(config, grid="demo"), "voxels of 8 mm are too coarse", "the 4 mm of the grid demo")
    refused(dataclasses.replace(config, grid="huge"), "grid huge: expected paper, demo, smoke")
    refused(dataclasses.replace(config, repeats=0), "--repeats 0")


def test_leaks_are_refused_by_name_unless_allowed_and_then_stated(config):
    seen = ledger_of(read_table(config.real_test).iloc[:2])
    write_json(config.synth_tle / "ledger.json", {"ledger": seen})
    refused(config, "test0", "test1", "--allow-leak")
    evaluate_synth.main(dataclasses.replace(config, allow_leak=True))
    result = read_json(config.out)
    assert result["leak"] is True
    assert any("LEAK" in warning for warning in result["warnings"])


def test_subjects_that_the_generator_never_saw_are_not_audited_as_its_training_subjects(config):
    """All of --real-train has to be in the ledger, of both folders; else the audit is refused and figures warn."""
    write_json(config.synth_tle / "ledger.json", {"ledger": ledger_of_subjects(f"train{index}" for index in range(7))})
    refused(dataclasses.replace(config, parts=("privacy",)), "1 of 8 subjects of --real-train", "train7")
    evaluate_synth.main(config)
    assert any("1 of 8 subjects of --real-train" in warning for warning in read_json(config.out)["warnings"])


def test_held_out_subjects_in_the_training_table_are_refused(config):
    refused(dataclasses.replace(config, real_train=config.real_test), "test0")


def test_unknown_provenance_and_repeated_volumes_are_stated(config):
    (config.synth_hc / "ledger.json").unlink()
    for index in range(1, 4):
        write_volume(config.synth_hc / volume_name(0, index), Volume(head(200), 0, index, GRID.affine))
    evaluate_synth.main(config)
    result = read_json(config.out)
    assert any("ledger.json" in warning for warning in result["warnings"])
    assert "only 5 of 8 synthetic volumes are distinct" in result["warnings"]
    assert result["checkpoints"]["vae"] == ["a" * 16, "not stated"]


def test_only_the_main_process_works(config, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    evaluate_synth.main(config)
    assert not config.out.exists()


def test_a_refusal_ends_with_status_2(capsys):
    with pytest.raises(SystemExit) as ended:
        run_script(evaluate_synth.main, EvaluateConfig, argv=["--synth-hc", "nowhere"])
    assert ended.value.code == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
