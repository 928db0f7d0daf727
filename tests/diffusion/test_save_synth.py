"""save_synth as a script: the same bytes in any run, kills, tables, both classes, BIDS, refusals."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cohort.tables import read_table
from cohort.volumes import read_volume
from diffusion import save_synth
from diffusion.checkpoint import load_diffusion
from diffusion.config import ProcessConfig
from diffusion.generation.refusal import Refusal
from diffusion.generation.volumes import Models, accepted, sample, synthesise
from diffusion.save_synth import SaveSynthConfig
from diffusion.synthetic_folder import Settings, Wanted
from runtime.checkpoints import checkpoint_hash, load_checkpoint
from runtime.device import Device
from runtime.errors import InputError
from runtime.files import read_json, sha256
from tests.support.processes import kill_when, script
from VAE.checkpoint import load_vae
from VAE.latents import Latent, write_latent


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*.pkl"))}


def table(folder: Path, text: str) -> Path:
    path = folder / "wanted.csv"
    path.write_text(text, encoding="utf-8")
    return path


def refused(config: SaveSynthConfig, *parts: str) -> None:
    with pytest.raises(InputError) as refusal:
        save_synth.main(config)
    for part in parts:
        assert part in str(refusal.value)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 4])
def test_volume_k_has_the_same_bytes_in_any_run(
    random_vae: Path, random_diffusion: Callable[..., Path], tmp_path: Path, rank: int
) -> None:
    """At once, alone, with others beside it, in two processes, and after SIGKILL in the middle; one by one, or eight
    at a time as a linear start has it.
    """
    diffusion, count = random_diffusion(rank=rank), 18
    config = SaveSynthConfig(
        vae=random_vae, diffusion=diffusion, label="TLE", count=count, sampler="ddpm", guidance=2.0, threads=1, steps=60
    )

    def words(name: str) -> tuple[object, ...]:
        return (
            "diffusion.save_synth", "--vae", random_vae, "--diffusion", diffusion, "--label", "TLE", "--sampler",
            "ddpm", "--guidance", 2.0, "--threads", 1, "--steps", 60, "--out", tmp_path / name, "--count", count,
        )  # fmt: skip

    save_synth.main(replace(config, out=tmp_path / "one"))
    expected = contents(tmp_path / "one")
    assert list(expected) == [f"TLE_{seed:06d}.pkl" for seed in range(count)]
    assert len({read_volume(tmp_path / "one" / name).image.tobytes() for name in expected}) == count
    save_synth.main(replace(config, batch_size=4, count=3, out=tmp_path / "three"))
    assert contents(tmp_path / "three") == {name: expected[name] for name in list(expected)[:3]}
    save_synth.main(replace(config, count=1, first_seed=4, out=tmp_path / "alone"))
    assert contents(tmp_path / "alone") == {"TLE_000004.pkl": expected["TLE_000004.pkl"]}
    script(*words("two"), processes=2)
    assert contents(tmp_path / "two") == expected

    kill_when(lambda: len(contents(tmp_path / "killed")) >= 2, *words("killed"))
    assert len(contents(tmp_path / "killed")) < count
    save_synth.main(replace(config, out=tmp_path / "killed"))
    assert contents(tmp_path / "killed") == expected
    for name in ("one", "two", "killed"):
        manifest = pd.read_csv(tmp_path / name / "manifest.csv")
        assert manifest["seed"].tolist() == list(range(count))
        assert manifest["sha256"].tolist() == [sha256(tmp_path / name / file) for file in manifest["file"]]
        assert not list((tmp_path / name).glob(".rows-*"))


def test_a_finished_folder_is_left_alone_and_damage_is_found(config: SaveSynthConfig) -> None:
    save_synth.main(config)
    made = contents(config.out)
    manifest = (config.out / "manifest.csv").read_bytes()
    save_synth.main(replace(config, verify=True))
    assert contents(config.out) == made
    assert (config.out / "manifest.csv").read_bytes() == manifest
    settings = read_json(config.out / "settings.json")
    assert (settings["sampler"], settings["steps"], settings["guidance_interval"]) == ("dpmpp", 3, [0.0, 1.0])
    assert read_json(config.out / "ledger.json")["ledger"] == ["a" * 16, "b" * 16, "c" * 16]
    assert (config.out / "contact_sheet.png").stat().st_size > 0

    path = config.out / "HC_000001.pkl"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    refused(replace(config, verify=True), "HC_000001.pkl")
    path.unlink()
    save_synth.main(replace(config, verify=True))
    assert contents(config.out) == made


def test_a_table_makes_both_classes_with_their_covariates(
    config: SaveSynthConfig, knowing: Path, tmp_path: Path
) -> None:
    wanted = table(tmp_path, "label,seed,age,sex,count\nHC,4,25,F,1\nTLE,4,25,F,1\nTLE,,70,,2\n")
    config = replace(config, diffusion=knowing, label=None, count=None, table=wanted)
    refused(config, "{label}")
    both = replace(config, out=tmp_path / "made_{label}")
    save_synth.main(both)
    assert list(contents(tmp_path / "made_HC")) == ["HC_000004.pkl"]
    assert list(contents(tmp_path / "made_TLE")) == ["TLE_000000.pkl", "TLE_000001.pkl", "TLE_000004.pkl"]
    rows = pd.read_csv(tmp_path / "made_TLE/manifest.csv", dtype=str, keep_default_na=False)
    assert rows[["seed", "age", "sex"]].to_numpy().tolist() == [["0", "70", ""], ["1", "70", ""], ["4", "25", "F"]]
    first = read_volume(tmp_path / "made_TLE/TLE_000004.pkl").image

    table(tmp_path, "label,seed,age,sex\nTLE,4,60,F\n")
    refused(both, "TLE_000004.pkl: age 25, wanted 60")
    for name, row in {"older": "TLE,4,60,F", "man": "TLE,4,25,M", "unknown": "TLE,4,,"}.items():
        table(tmp_path, f"label,seed,age,sex\n{row}\n")
        save_synth.main(replace(config, out=tmp_path / name))
        other = read_volume(tmp_path / name / "TLE_000004.pkl").image
        assert np.abs(other - first).max() > 1e-3, name


def test_a_wanted_hippocampus_reaches_the_network_and_one_it_does_not_know_is_refused(
    config: SaveSynthConfig, random_diffusion: Callable[..., Path], tmp_path: Path
) -> None:
    knowing = random_diffusion(covariates={"hippocampus_left": (3.0, 0.5)})
    config = replace(config, diffusion=knowing, label=None, count=None)
    images = {}
    for ml in ("2", "4", "n/a"):
        wanted = table(tmp_path, f"label,seed,hippocampus_left\nHC,4,{ml}\n")
        out = tmp_path / f"made_{ml[0]}"
        save_synth.main(replace(config, table=wanted, out=out))
        images[ml] = read_volume(out / "HC_000004.pkl").image
    assert np.abs(images["2"] - images["4"]).max() > 1e-3
    assert np.abs(images["2"] - images["n/a"]).max() > 1e-3
    wanted = table(tmp_path, "label,seed,ventricles\nHC,4,30\n")
    refused(replace(config, table=wanted), "asks for ventricles", "hippocampus_left")


def test_sides_alternate_with_the_seed_and_are_written_everywhere(
    config: SaveSynthConfig, random_diffusion: Callable[..., Path], tmp_path: Path
) -> None:
    """By default mixed; the volume of a seed and a side is the same whichever way it was asked for."""
    config = replace(config, diffusion=random_diffusion(sides=True), label="TLE", bids=tmp_path / "bids", first_seed=3)
    save_synth.main(config)
    manifest = pd.read_csv(config.out / "manifest.csv")
    assert manifest[["seed", "side"]].to_numpy().tolist() == [[3, "R"], [4, "L"]]
    images = {seed: read_volume(config.out / f"TLE_{seed:06d}.pkl") for seed in (3, 4)}
    assert (images[3].side, images[4].side) == ("R", "L")
    frame = read_table(tmp_path / "bids/participants.tsv")
    assert frame["diagnosis"].tolist() == ["TLE-R", "TLE-L"]
    sidecar = next((tmp_path / "bids/sub-synTLE0004").rglob("*.json"))
    assert read_json(sidecar)["Side"] == "R"
    refused(replace(config, side="L"), "Side: the dataset has 'R', this command 'L'")
    config = replace(config, bids=None)
    refused(replace(config, side="L"), "TLE_000003.pkl: side R, wanted L")

    found = {}
    for side in ("R", "L", "unknown"):
        save_synth.main(replace(config, side=side, count=1, out=tmp_path / side))
        found[side] = read_volume(tmp_path / side / "TLE_000003.pkl")
    np.testing.assert_array_equal(found["R"].image, images[3].image)
    assert found["unknown"].side == ""
    for one, other in (("R", "L"), ("R", "unknown"), ("L", "unknown")):
        assert np.abs(found[one].image - found[other].image).max() > 1e-3
    wanted = table(tmp_path, "label,seed,side\nTLE,3,L\nTLE,4,\nHC,3,\n")
    save_synth.main(replace(config, label=None, count=None, table=wanted, out=tmp_path / "{label}"))
    np.testing.assert_array_equal(read_volume(tmp_path / "TLE/TLE_000003.pkl").image, found["L"].image)
    assert read_volume(tmp_path / "TLE/TLE_000004.pkl").side == ""


def test_a_side_is_refused_where_there_is_none(config: SaveSynthConfig, tmp_path: Path) -> None:
    refused(replace(config, side="L"), "--side L goes with --label TLE")
    refused(replace(config, label="TLE", side="mixed"), "--side mixed", "was trained without sides; leave --side out")
    wanted = table(tmp_path, "label,side\nTLE,R\n")
    refused(replace(config, label=None, count=None, table=wanted), "asks for side", "knows of these: none")
    save_synth.main(replace(config, label="TLE", count=1))
    assert read_volume(config.out / "TLE_000000.pkl").side == ""


def test_averaged_and_raw_weights_give_other_volumes(config: SaveSynthConfig, tmp_path: Path) -> None:
    save_synth.main(config)
    raw = replace(config, weights="raw")
    refused(raw, "weights: the folder has 'ema', this command 'raw'")
    save_synth.main(replace(raw, out=tmp_path / "raw"))
    first, second = (read_volume(folder / "HC_000000.pkl").image for folder in (config.out, tmp_path / "raw"))
    assert np.abs(first - second).max() > 1e-3


def test_samplers_that_follow_a_flow_are_refused_on_a_diffusion(
    config: SaveSynthConfig, random_diffusion: Callable[..., Path]
) -> None:
    refused(replace(config, sampler="heun"), "--sampler heun", "dpmpp")
    refused(replace(config, steps=1001), "the schedule has 1000")
    flow = random_diffusion(process=ProcessConfig(schedule="flow", target="velocity"))
    save_synth.main(replace(config, diffusion=flow, sampler="heun"))
    assert read_json(config.out / "settings.json")["sampler"] == "heun"


def test_what_would_mislead_is_refused_before_anything_is_written(
    config: SaveSynthConfig, random_vae: Path, random_diffusion: Callable[..., Path], tmp_path: Path
) -> None:
    refused(replace(config, label=None), "--label", "--table")
    refused(replace(config, table=table(tmp_path, "label\nHC\n")), "--label", "--table")
    refused(replace(config, count=0), "--count 0")
    refused(replace(config, diffusion=random_diffusion(label_dropout=0.0), guidance=2.0), "no null class")
    refused(replace(config, guidance_interval=(0.8, 0.2)), "--guidance-interval")
    aged = replace(config, label=None, count=None, table=table(tmp_path, "label,age\nHC,40\n"))
    refused(aged, "asks for age", "knows of these: none")
    changed = load_checkpoint(random_vae, "vae")
    torch.save({**changed, "step": 2}, tmp_path / "changed.pt")
    refused(replace(config, vae=tmp_path / "changed.pt"), "was trained on latents of")
    assert not config.out.exists()


def test_a_worse_model_guides(config: SaveSynthConfig, random_diffusion: Callable[..., Path], tmp_path: Path) -> None:
    """Its hash and its subjects travel with the volumes, and guidance 1 would ask nothing of it."""
    guide = random_diffusion(sides=True)
    guiding = replace(config, guidance=2.0, guide_by=guide, out=tmp_path / "guided")
    record = load_checkpoint(guide, "diffusion")
    torch.save({**record, "ledger": [*record["ledger"], "d" * 16]}, guide)
    for one in (config, replace(config, guidance=2.0, out=tmp_path / "classes"), guiding):
        save_synth.main(one)
    plain, classes, guided = (
        read_volume(one / "HC_000000.pkl").image for one in (config.out, tmp_path / "classes", guiding.out)
    )
    assert min(np.abs(guided - other).max() for other in (plain, classes)) > 1e-3
    assert read_json(guiding.out / "settings.json")["guide"] == checkpoint_hash(guide)
    assert "d" * 16 in read_json(guiding.out / "ledger.json")["ledger"]
    refused(replace(guiding, guide_by=None), "guide: the folder has")

    fresh = replace(guiding, out=tmp_path / "refused")
    refused(replace(fresh, guidance=1.0), "--guide-by", "at --guidance 1 nothing is guided")
    for what, other in {
        "VAE": random_diffusion(vae="other"), "covariates": random_diffusion(covariates={"age": (40.0, 10.0)}),
        "schedule": random_diffusion(process=ProcessConfig(schedule="cosine", target="velocity")),
    }.items():  # fmt: skip
        refused(replace(fresh, guide_by=other), f"--guide-by: of other {what} than")
    assert not fresh.out.exists()


def test_latents_of_unrecorded_origin_are_accepted_by_their_shape(
    config: SaveSynthConfig, random_diffusion: Callable[..., Path]
) -> None:
    save_synth.main(replace(config, diffusion=random_diffusion(vae="")))
    assert len(contents(config.out)) == 2


def test_empty_places_of_a_batch_are_filled_up(random_vae: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network sees one batch shape, and the volumes are those of the full batch."""
    vae, diffusion = load_vae(random_vae), load_diffusion(plain)
    models = Models(vae, diffusion, Device(torch.device("cpu"), torch.float32))
    settings = Settings(0, vae.hash, diffusion.hash, "ema", "ddim", 3, 1.0, (0.0, 1.0))
    wanted = [Wanted(0, seed) for seed in range(4)]
    full, _ = synthesise(wanted, models, settings)
    seen, original = set(), diffusion.model.forward
    monkeypatch.setattr(diffusion.model, "forward", lambda z_t, *rest: seen.add(len(z_t)) or original(z_t, *rest))
    some, refused = synthesise([None, wanted[1], None, wanted[3]], models, settings)
    np.testing.assert_array_equal(some, full[[1, 3]])
    assert (seen, refused) == ({4}, [0, 0])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler needs g++ on a CPU")
def test_the_compiled_network_predicts_what_the_eager_one_does(plain: Path) -> None:
    """Compiled for real, by inductor."""
    model = load_diffusion(plain).model
    cases = [
        (value * torch.randn(1, *model.latent_shape), torch.tensor([t]), torch.tensor([0]))
        for value, t in ((1, 500), (2, 3))
    ]
    with torch.no_grad():
        expected = [model(*case) for case in cases]
        model.compile_step()
        for case, value in zip(cases, expected, strict=True):
            torch.testing.assert_close(model(*case), value, atol=2e-5, rtol=1e-4)


def test_compiled_steps_do_not_share_their_output(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replayed CUDA graph writes into the same memory each time; samplers keep earlier predictions."""
    model = load_diffusion(plain).model
    memory = torch.empty(1, *model.latent_shape)
    original = model.forward
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *words: memory.copy_(function(*words)))
    model.compile_step()
    z, t, y = torch.randn(1, *model.latent_shape), torch.tensor([500]), torch.tensor([0])
    with torch.no_grad():
        first, second = (model(value, t, y) for value in (z, 2 * z))
        assert torch.equal(first, original(z, t, y))
        assert torch.equal(second, original(2 * z, t, y))


def test_a_sample_that_is_a_training_subject_is_drawn_again(
    config: SaveSynthConfig, random_vae: Path, plain: Path, tmp_path: Path
) -> None:
    """One training latent is what seed 1 gives: it gets another volume, seed 0 keeps its own, and both are counted."""
    vae, diffusion = load_vae(random_vae), load_diffusion(plain)
    models = Models(vae, diffusion, Device(torch.device("cpu"), torch.float32))
    settings = Settings(0, vae.hash, diffusion.hash, "ema", "dpmpp", 3, 1.0, (0.0, 1.0))
    seeds = {"train": [*range(100, 111), 1], "val": range(200, 220)}  # all are what this model makes
    for split, chosen in seeds.items():
        for k, seed in enumerate(chosen):
            z = sample([Wanted(0, seed)], models, settings)
            mu = diffusion.space.leave(z)[0].numpy()
            latent = Latent(mu, np.full(mu.shape, -30, np.float32), k % 2, f"{split}{k}", vae.hash, {})
            write_latent(tmp_path / "latents" / split / f"{split}{k:02d}.pkl", latent)
    save_synth.main(config)
    plainly = contents(config.out)
    refusing = replace(config, refuse_near=tmp_path / "latents", out=tmp_path / "refusing")
    save_synth.main(refusing)
    found = contents(refusing.out)
    assert found["HC_000000.pkl"] == plainly["HC_000000.pkl"]
    assert found["HC_000001.pkl"] != plainly["HC_000001.pkl"]
    assert pd.read_csv(refusing.out / "manifest.csv")["refused"].tolist() == [0, 1]
    assert read_json(refusing.out / "settings.json")["refuse_level"] == 0.05
    save_synth.main(replace(refusing, out=tmp_path / "alone", first_seed=1, count=1))
    assert contents(tmp_path / "alone")["HC_000001.pkl"] == found["HC_000001.pkl"]
    refused(replace(refusing, refuse_near=None), "refuse_level: the folder has 0.05, this command 0.0")
    refused(replace(refusing, refuse_near=tmp_path / "none"), "none", "no latents")
    everybody = Refusal(torch.zeros(mu.size), torch.eye(1, mu.size), -1.0)
    with pytest.raises(InputError, match="seeds 5: 50 samples in a row were nearer to a training subject"):
        accepted([Wanted(0, 5), None], models._replace(refusal=everybody), settings)
