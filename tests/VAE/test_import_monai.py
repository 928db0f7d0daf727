"""Autoencoders of MONAI in this project's model: the same outputs, and refusals of what it cannot hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.networks.nets import AutoencoderKL

from cohort.grids import GRIDS
from runtime.errors import InputError
from tests.support.monai_networks import file_of, monai, older
from VAE.checkpoint import import_monai, load_vae, save_vae

LINEAR = {AutoencoderKlMaisi: "linear"}
"""What the file does not tell."""
CASES = {
    "narrow": ({}, (16, 24, 8)),
    "two blocks": ({"blocks": 2, "channels": (8, 16)}, (16, 12, 8)),
    "one level": ({"channels": (16,)}, (6, 5, 4)),
    "eight times, middle": ({"channels": (8, 8, 16, 16), "blocks": 2, "middle": True}, (16, 24, 16)),
    "one block, middle": ({"middle": True}, (16, 12, 8)),
    "combined queries, keys and values": ({"middle": True, "use_combined_linear": True}, (16, 8, 8)),
    "odd sizes": ({}, (17, 20, 23)),
    "MAISI": ({"kind": AutoencoderKlMaisi}, (16, 24, 8)),
    "MAISI, two blocks, odd sizes": ({"kind": AutoencoderKlMaisi, "blocks": 2}, (17, 20, 23)),
    "MAISI, middle": ({"kind": AutoencoderKlMaisi, "middle": True}, (16, 8, 8)),
    "MAISI, middle with projection": ({"kind": AutoencoderKlMaisi, "middle": True, "include_fc": True}, (16, 8, 8)),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_same_posterior_and_reconstruction(case: str, tmp_path: Path) -> None:
    options, shape = CASES[case]
    theirs = monai(**options)
    ours = import_monai(
        file_of(tmp_path / "vae.pt", theirs), groups=4, upsampling=LINEAR.get(options.get("kind"))
    ).model
    x = ours.padded(torch.rand(2, 1, *shape))
    mu, sigma = theirs.encode(x)
    my_mu, my_logvar = ours.encode(x)
    torch.testing.assert_close(my_mu, mu, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(my_logvar, 2 * sigma.log(), atol=1e-4, rtol=1e-4)
    x_hat = theirs.decode(mu)
    assert x_hat.std() > 0.05
    torch.testing.assert_close(ours.decode_raw(mu), x_hat, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_posterior_width_is_clamped_alike(tmp_path: Path) -> None:
    theirs = monai()
    theirs.quant_conv_log_sigma.conv.bias.copy_(torch.tensor([-90.0, 0.0, 90.0]))
    ours = import_monai(file_of(tmp_path / "vae.pt", theirs), groups=4).model
    x = torch.rand(1, 1, 8, 8, 8)
    logvar = ours.encode(x)[1]
    assert (logvar.min(), logvar.max()) == (-30, 20)
    torch.testing.assert_close(torch.exp(0.5 * logvar), theirs.encode(x)[1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_odd_size_loses_nothing(tmp_path: Path) -> None:
    """Of 17 voxels MONAI's makes 8, without the last one; ours 9, as of 18 whose last is air."""
    theirs = monai(channels=(4, 4))
    ours = import_monai(file_of(tmp_path / "vae.pt", theirs), groups=4).model
    x = torch.rand(1, 1, 17, 4, 5)
    assert theirs.encode(x)[0].shape == (1, 3, 8, 2, 2)
    mu = theirs.encode(torch.nn.functional.pad(x, (0, 1, 0, 0, 0, 1)))[0]
    torch.testing.assert_close(ours.encode(x)[0], mu, atol=1e-4, rtol=1e-4)
    assert ours.decode_raw(mu, (17, 4, 5)).shape == x.shape


@torch.no_grad()
def test_the_older_package(tmp_path: Path) -> None:
    theirs = monai(middle=True, include_fc=False)
    old = older(theirs)
    assert len(old) == len(theirs.state_dict()) + 4
    torch.save(old, tmp_path / "old.pth")
    ours = import_monai(tmp_path / "old.pth", groups=4, upsampling="nearest").model
    x = torch.rand(1, 1, 8, 12, 16)
    torch.testing.assert_close(ours.encode(x)[0], theirs.encode(x)[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.decode_raw(theirs.encode(x)[0]), theirs.reconstruct(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("container", [None, "vae_state_dict", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_containers_prefixes_and_groups(container: str | None, prefix: str, tmp_path: Path) -> None:
    network = monai(AutoencoderKlMaisi, channels=(32, 64), norm_num_groups=16)
    state = {prefix + name: value for name, value in network.state_dict().items()}
    torch.save({container: state, "epoch": 7, "loss": 0.5} if container else state, tmp_path / "vae.pt")
    loaded = import_monai(tmp_path / "vae.pt", grid=GRIDS["demo"], upsampling="linear")
    assert loaded.model.config.groups == (16 if container == "vae_state_dict" else 32)
    assert loaded.model.config.channels == (32, 64)
    assert loaded.grid is GRIDS["demo"]
    assert (loaded.ledger, loaded.step, len(loaded.hash)) == ([], 0, 16)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize("kind", [AutoencoderKL, AutoencoderKlMaisi])
def test_an_imported_network_survives_our_own_checkpoint(kind: type, tmp_path: Path) -> None:
    file = file_of(tmp_path / "vae.pt", monai(kind, middle=True))
    ours = import_monai(file, groups=4, upsampling=LINEAR.get(kind))
    save_vae(tmp_path / "ours.pt", ours.model, grid=ours.grid, ledger=[], step=0)
    again = load_vae(tmp_path / "ours.pt", weights="raw")
    assert again.model.config == ours.model.config
    z = torch.randn(1, 3, 2, 2, 2)
    assert torch.equal(again.model.decode_raw(z), ours.model.decode_raw(z))


REFUSED = {
    r"encoder: its layers are CRSRSNC; this model's are C, levels.*\n.*decoder: its layers are CSRSRNC": {
        "blocks": (1, 1, 0), "channels": (8, 8, 8),
    },
    r"conv_in.weight: shape \(8, 1, 3, 3\), this network has \(8, 1, 3, 3, 3\)": {"spatial_dims": 2},
    r"encoder.conv_in.weight: shape \(8, 3, 3, 3, 3\)": {"in_channels": 3},
    r"decoder.conv_out.weight: shape \(2, 8, 3, 3, 3\)": {"out_channels": 2},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_networks_that_do_not_fit_are_refused(message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        import_monai(file_of(tmp_path / "vae.pt", monai(**REFUSED[message])), groups=4)


def test_groups_must_divide(tmp_path: Path) -> None:
    path = file_of(tmp_path / "vae.pt", monai(channels=(8, 24)))
    with pytest.raises(InputError, match=r"groups=32 does not divide its widths \[8, 24\].*by --groups"):
        import_monai(path)
    with pytest.raises(InputError, match="groups=16 does not divide"):
        import_monai(path, groups=16)


def test_files_that_are_no_such_weights_are_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path / "vae.pt", monai())
    (tmp_path / "cut.pt").write_bytes(path.read_bytes()[:-200])
    (tmp_path / "text.pt").write_text("weights")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3, "weights": {}}, tmp_path / "other.pt")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    torch.save({"model": Path("x")}, tmp_path / "object.pt")
    part = monai().state_dict()
    part.pop("quant_conv_mu.conv.bias")
    torch.save({**part, "loss.weight": torch.ones(1)}, tmp_path / "part.pt")
    part = monai().state_dict()
    part.pop("encoder.blocks.1.conv1.conv.bias")
    torch.save(part, tmp_path / "gap.pt")
    refusals = {
        "missing.pt": "no such file", "cut.pt": "not a readable", "text.pt": "not a readable", "list.pt": "a list",
        "other.pt": "no tensors: epoch, weights", "linear.pt": "not an autoencoder of MONAI",
        "object.pt": "holds Python objects", "part.pt": "loss.weight: not part of this network\n.*to_mu.bias: missing",
        "gap.pt": "encoder.layers.0.conv1.bias: missing",
    }  # fmt: skip
    for name, message in refusals.items():
        with pytest.raises(InputError, match=rf"(?s){name}.*{message}"):
            import_monai(tmp_path / name, groups=4)
