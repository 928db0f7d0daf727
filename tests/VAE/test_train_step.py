"""One step of the VAE's training: which terms take part, from when on, and that their gradients are right."""

from dataclasses import replace

import pytest
import torch

from cohort.grids import GRIDS
from runtime.device import Device
from VAE.config import PRESETS, LossConfig
from VAE.losses import LossNetworks, term_weights
from VAE.train import VAEState, build, train_step

CPU = Device(torch.device("cpu"), torch.float32)


class _Scans:
    """Two random volumes in place of a table."""

    def __init__(self, device: Device = CPU) -> None:
        self.device = device
        self.x = torch.rand(4, 1, 20, 24, 20, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return 4

    def batch(self, rows: torch.Tensor) -> torch.Tensor:
        return self.x[rows]


def test_perceptual_and_adversarial_terms_take_part_when_asked() -> None:
    loss = LossConfig(
        perceptual=0.1, perceptual_slices=3, adversarial=0.05, adversarial_start_step=2, adversarial_warmup_steps=0
    )
    config = replace(PRESETS["smoke"], loss=loss, batch_size=2)
    model, networks = build(config, GRIDS["smoke"], CPU)
    assert isinstance(networks, LossNetworks)
    optimiser = torch.optim.AdamW(model.parameters())
    state = VAEState(model, optimiser, {}, networks=networks, grid=GRIDS["smoke"], ledger=[])
    before = [parameter.clone() for parameter in networks.discriminator.parameters()]
    first = train_step(model, state, _Scans(), 1, config, 2)
    assert "loss/perceptual" in first
    assert "loss/adversarial" not in first
    assert all(torch.equal(a, b) for a, b in zip(before, networks.discriminator.parameters(), strict=True))
    second = train_step(model, state, _Scans(), 2, config, 2)
    assert {"loss/adversarial", "loss/discriminator"} <= second.keys()
    assert any(not torch.equal(a, b) for a, b in zip(before, networks.discriminator.parameters(), strict=True))
    expected = second["loss/reconstruction"] + config.loss.kl * second["loss/kl"]
    expected = expected + 0.1 * second["loss/perceptual"] + 0.05 * second["loss/adversarial"]
    expected = expected + config.loss.support * second["loss/support"]
    torch.testing.assert_close(second["loss/train"], expected)
    torch.testing.assert_close(second["scaled/perceptual"], 0.1 * second["loss/perceptual"])


def test_parts_of_a_batch_share_its_slices_of_the_perceptual_term() -> None:
    config = replace(PRESETS["smoke"], loss=LossConfig(perceptual=1.0, perceptual_slices=3), batch_size=4)
    model, networks = build(config, GRIDS["smoke"], CPU)
    state = VAEState(model, torch.optim.SGD(model.parameters()), {}, networks=networks, grid=GRIDS["smoke"], ledger=[])
    weights, found = {name: value.clone() for name, value in model.state_dict().items()}, {}
    for cases in (4, 2, 1):  # three slices: of four parts, at least one has none
        model.load_state_dict(weights)
        said = train_step(model, state, _Scans(), 1, config, cases)
        found[cases] = {"perceptual": said["loss/perceptual"], "norm": said["grad/norm"]} | {
            name: parameter.grad.clone() for name, parameter in model.named_parameters()
        }
    for cases in (2, 1):
        torch.testing.assert_close(found[cases], found[4], rtol=1e-3, atol=1e-5)


def test_the_discriminator_of_patches_has_finite_gradients_in_bfloat16() -> None:
    """oneDNN's were not, within a few steps and by chance."""
    device = Device(torch.device("cpu"), torch.bfloat16)
    config = replace(PRESETS["smoke"], patch=16, loss=LossConfig(adversarial=0.1, adversarial_start_step=1))
    model, networks = build(config, GRIDS["smoke"], device)
    optimiser = torch.optim.AdamW(model.parameters())
    state = VAEState(model, optimiser, {}, networks=networks, grid=GRIDS["smoke"], ledger=[])
    for step in range(1, 9):
        train_step(model, state, _Scans(device), step, config, 2)
        assert all(parameter.grad.isfinite().all() for parameter in networks.discriminator.parameters())


def test_terms_count_from_their_first_step_and_the_adversarial_one_rises() -> None:
    loss = LossConfig(
        kl=0.5, kl_start_step=3, perceptual=0.1, perceptual_start_step=2, adversarial=0.8, adversarial_start_step=4,
        adversarial_warmup_steps=4,
    )  # fmt: skip
    always = {"reconstruction": 1.0, "support": 0.1}
    assert term_weights(loss, 1) == {**always, "kl": 0.0}
    assert term_weights(loss, 2) == {**always, "kl": 0.0, "perceptual": 0.1}
    assert term_weights(loss, 3)["kl"] == 0.5
    assert [term_weights(loss, step).get("adversarial", 0) for step in (3, 4, 7, 50)] == pytest.approx(
        [0, 0.2, 0.8, 0.8]
    )
