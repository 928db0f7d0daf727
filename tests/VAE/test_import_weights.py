"""VAE.import_weights, the command: what it writes encodes and decodes as MONAI's network did, and other commands take
it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

from cohort.grids import GRIDS
from tests.support.monai_networks import file_of, monai, older
from tests.support.processes import run_here, script
from VAE.checkpoint import load_vae
from VAE.latents import read_statistics

COARSE = {"channels": (8, 16), "attention_levels": (False, True)}
MAISI = {"kind": AutoencoderKlMaisi}
LINEAR, TRANSPOSED = ("--upsampling", "linear"), ("--upsampling", "transposed")
VARIANTS = {
    # network of MONAI, what the file does not tell
    "plain": ({}, ()),
    "middle": ({"middle": True}, ()),
    "attention at some levels": ({"attention_levels": (False, True, True)}, ()),
    "attention at one inner level": ({"attention_levels": (False, True, False), "blocks": 2}, ()),
    "attention at all levels and in the middle": ({**COARSE, "attention_levels": (True, True), "middle": True}, ()),
    "attention after each of two blocks": ({**COARSE, "blocks": 2, "middle": True}, ()),
    "combined queries, keys and values": ({**COARSE, "use_combined_linear": True}, ()),
    "attention without projection": ({**COARSE, "include_fc": False}, ()),
    "unequal blocks": ({"blocks": (1, 3, 2)}, ()),
    "unequal blocks, middle": ({"blocks": (2, 1, 1), "middle": True}, ()),
    "transposed": ({"use_convtranspose": True}, ()),
    "encoder's middle": ({"with_encoder_nonlocal_attn": True}, ()),
    "decoder's middle": ({"with_decoder_nonlocal_attn": True}, ()),
    "all at once": (
        {"blocks": (2, 1, 3), "attention_levels": (False, True, True), "use_convtranspose": True,
         "with_decoder_nonlocal_attn": True}, (),
    ),
    "MAISI": (MAISI, LINEAR),
    "MAISI, transposed": ({**MAISI, "use_convtranspose": True}, TRANSPOSED),
    "MAISI, attention": ({**MAISI, "attention_levels": (False, True, True), "include_fc": True}, LINEAR),
    "MAISI, unequal blocks, one middle": ({**MAISI, "blocks": (1, 2, 2), "with_encoder_nonlocal_attn": True}, LINEAR),
    "MAISI, all at once": (
        {**MAISI, "blocks": (2, 1, 3), "attention_levels": (False, True, True), "use_convtranspose": True,
         "with_decoder_nonlocal_attn": True}, TRANSPOSED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_three_containers_give_the_same_posterior_and_volume(variant: str, tmp_path: Path) -> None:
    options, words = VARIANTS[variant]
    theirs = monai(**options)
    x = torch.rand(1, 1, 16, 16, 16)
    mu, sigma = theirs.encode(x)
    x_hat = theirs.decode(mu)
    assert min(mu.std(), x_hat.std()) > 0.05
    for container in (None, "state_dict", "vae_state_dict"):
        state = theirs.state_dict()
        torch.save({container: state, "epoch": 3} if container else state, tmp_path / "monai.pt")
        out = tmp_path / f"{container}.pt"
        run_here("VAE.import_weights", tmp_path / "monai.pt", "--groups", 4, "--grid", "smoke", *words, "--out", out)
        ours = load_vae(out).model
        my_mu, my_logvar = ours.encode(x)
        for mine, value in ((my_mu, mu), (torch.exp(0.5 * my_logvar), sigma), (ours.decode_raw(mu), x_hat)):
            torch.testing.assert_close(mine, value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, {**MAISI, "use_convtranspose": True}])
@torch.no_grad()
def test_the_older_package_with_attention_levels_and_unequal_blocks(options: dict, tmp_path: Path) -> None:
    theirs = monai(attention_levels=(False, True, True), blocks=(1, 2, 1), include_fc=False, **options)
    torch.save(older(theirs), tmp_path / "old.pth")
    words = TRANSPOSED if options else ("--upsampling", "nearest")
    run_here("VAE.import_weights", tmp_path / "old.pth", "--groups", 4, *words, "--out", tmp_path / "vae.pt")
    ours = load_vae(tmp_path / "vae.pt").model
    x = torch.rand(1, 1, 8, 8, 8)
    mu = theirs.encode(x)[0]
    torch.testing.assert_close(ours.encode(x)[0], mu, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.decode_raw(mu), theirs.decode(mu), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_real_command(tmp_path: Path) -> None:
    theirs = monai(attention_levels=(False, True, False), blocks=(1, 2, 1), use_convtranspose=True)
    file, out = file_of(tmp_path / "monai.pt", theirs), tmp_path / "vae.pt"
    script("VAE.import_weights", file, "--groups", 4, "--grid", "smoke", "--out", out)
    config = load_vae(out).model.config
    assert (config.channels, config.blocks, config.groups) == ((8, 8, 16), (1, 2, 1), 4)
    assert (config.attention, config.attention_levels) == (False, (False, True, False))
    assert config.upsampling == "transposed"
    assert run_here("VAE.import_weights", file, "--out", out, ok=False).returncode == 2  # nothing is overwritten


REFUSED = {
    "MAISI does not tell": (
        MAISI, (), r"does not say how its decoder .*: give --upsampling linear, or --upsampling transposed if",
    ),
    "MAISI never repeats voxels": (MAISI, ("--upsampling", "nearest"), "is linear or transposed, not nearest"),
    "AutoencoderKL tells": ({}, TRANSPOSED, "the upsampling of its decoder is nearest, not transposed"),
    "AutoencoderKL tells, transposed": ({"use_convtranspose": True}, LINEAR, "is transposed, not linear"),
    "groups": ({}, ("--groups", 16), r"groups=16 does not divide its widths \[8, 8, 16\]; .* by --groups"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_file_does_not_tell_or_contradicts_is_refused(case: str, tmp_path: Path) -> None:
    options, words, message = REFUSED[case]
    file = file_of(tmp_path / "monai.pt", monai(**options))
    done = run_here("VAE.import_weights", file, "--groups", 4, *words, "--out", tmp_path / "vae.pt", ok=False)
    assert done.returncode == 2
    assert re.search(message, " ".join(done.stderr.split()))
    assert not (tmp_path / "vae.pt").exists()


def test_one_level_has_no_upsampling_to_tell(tmp_path: Path) -> None:
    file = file_of(tmp_path / "monai.pt", monai(**MAISI, channels=(8,)))
    run_here("VAE.import_weights", file, "--groups", 4, "--out", tmp_path / "vae.pt")


def test_encoder_and_decoder_of_different_levels_are_refused(tmp_path: Path) -> None:
    one, other = monai(blocks=(1, 2, 1)).state_dict(), monai(blocks=(2, 1, 1)).state_dict()
    state = {name: value for name, value in one.items() if name.startswith("encoder.")}
    state |= {name: value for name, value in other.items() if not name.startswith("encoder.")}
    torch.save(state, tmp_path / "monai.pt")
    done = run_here("VAE.import_weights", tmp_path / "monai.pt", "--out", tmp_path / "vae.pt", ok=False)
    assert done.returncode == 2
    levels = "its levels are ['R', 'R', 'RR'], not the encoder's ['R', 'RR', 'R'] in reverse"
    assert levels in " ".join(done.stderr.split())


CHAINS = {
    "two levels": ({"channels": (8, 16)}, ()),
    "attention levels": (
        {**COARSE, "blocks": (1, 2), "with_decoder_nonlocal_attn": True}, (),
    ),
    "MAISI, transposed": ({**MAISI, "channels": (8, 16), "middle": True, "use_convtranspose": True}, TRANSPOSED),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CHAINS)
@torch.no_grad()
def test_the_command_makes_what_the_other_commands_take(case: str, cohort_dir: Path, tmp_path: Path) -> None:
    """Imported, measured, encoded, trained further: each as a user types it."""
    options, words = CHAINS[case]
    theirs, out, cache = monai(**options), tmp_path / "vae.pt", ("--cache-dir", cohort_dir / "cache")
    file = file_of(tmp_path / "monai.pt", theirs)
    said = run_here("VAE.import_weights", file, "--groups", 4, "--grid", "smoke", *words, "--out", out).stdout
    loaded = load_vae(out)
    x = torch.rand(1, 1, *GRIDS["smoke"].shape)
    mu = theirs.encode(x)[0]
    torch.testing.assert_close(loaded.model.encode(x)[0], mu, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loaded.model.decode_raw(mu), theirs.decode(mu), atol=1e-5, rtol=1e-5)
    run_here("VAE.infer", "--checkpoint", out, "--csv", cohort_dir / "test.csv", "--out", tmp_path / "infer", *cache)
    csv = [cohort_dir / f"{name}.csv" for name in ("train", "val")]
    run_here("VAE.save_latent", "--checkpoint", out, "--csv", *csv, "--out", tmp_path / "latents", *cache)
    assert read_statistics(tmp_path / "latents").vae == loaded.hash
    flags = said[said.index("--init") :].split()  # what the import said, added to a preset with another network
    splits = ("--train-csv", csv[0], "--val-csv", csv[1], "--run-dir", tmp_path / "run", *cache)
    with torch.enable_grad():
        run_here("VAE.train", "smoke", *flags, *splits, "--steps", 1, "--lr", 0)
    further = load_vae(tmp_path / "run/checkpoints/best.pt").model.state_dict()
    assert all(torch.equal(value, further[name]) for name, value in loaded.model.state_dict().items())
