"""The network's training: it learns, goes on where it stopped, and its checkpoint rebuilds it."""

import dataclasses

import numpy as np
import pytest
import torch

from cohort.atlas import REGIONS
from cohort.grids import GRIDS
from cohort.labelling import train
from cohort.labelling.config import PRESETS
from cohort.labelling.network import LabelNetwork, ModelConfig, load_labels
from cohort.labelling.train import losses, main, validate
from runtime.checkpoints import load_checkpoint
from runtime.errors import InputError
from runtime.runs import read_log

SMALL = dataclasses.replace(
    PRESETS["smoke"], steps=6, warmup_steps=1, log_every_steps=1, val_every_steps=3, save_every_steps=3, held_out=2,
    precision="float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels") / "run"
    main(dataclasses.replace(SMALL, run_dir=folder))
    return folder


def test_loss_falls_and_the_checkpoint_rebuilds_the_network(run_dir):
    values = [line["loss/train"] for line in read_log(run_dir) if "loss/train" in line]
    assert len(values) == 6
    assert values[-1] < values[0]
    loaded = load_labels(run_dir / "checkpoints/best.pt")
    assert loaded.grid == GRIDS["smoke"]
    assert not loaded.model.training
    assert set(loaded.limits) == {"displacement_mm", "uncertainty"}


def test_more_levels_than_the_box_can_be_halved_are_refused_before_the_folder(tmp_path):
    """Of the 18 voxels of its longest side in the grid smoke, a fifth level has two, a sixth one."""
    deep = dataclasses.replace(SMALL, steps=1, val_every_steps=0, save_every_steps=0, run_dir=tmp_path / "run")
    with pytest.raises(InputError, match="6 levels, expected at most 5 for the 14x18x12 voxels of"):
        main(dataclasses.replace(deep, model=ModelConfig(channels=(4,) * 6)))
    assert not deep.run_dir.exists()
    main(dataclasses.replace(deep, model=ModelConfig(channels=(4,) * 5)))


def test_a_run_in_two_parts_ends_in_the_same_weights(run_dir, tmp_path, monkeypatch):
    stopped = dataclasses.replace(SMALL, run_dir=tmp_path / "run")

    def stop(run, state, *rest):
        run.interrupted = state.step == 3
        return validate(run, state, *rest)

    monkeypatch.setattr(train, "validate", stop)
    with pytest.raises(KeyboardInterrupt):
        main(stopped)
    assert load_checkpoint(stopped.run_dir / "checkpoints/last.pt", "labels")["step"] == 3
    monkeypatch.undo()
    main(stopped)
    whole, parts = (load_checkpoint(run / "checkpoints/last.pt", "labels") for run in (run_dir, stopped.run_dir))
    assert whole["limits"] == parts["limits"]
    for name, value in whole["ema"].items():
        assert torch.equal(value, parts["ema"][name]), name


def test_loss_is_least_for_the_true_shares():
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand((2, 1 + len(REGIONS), 3, 4, 5), generator=generator).softmax(dim=1)
    true = losses(shares.log(), shares, 8.0, SMALL)
    assert true["train"].item() == pytest.approx(0, abs=1e-5)
    other = losses(shares.log() + 0.3 * torch.randn(shares.shape, generator=generator), shares, 8.0, SMALL)
    assert other["voxels"] > 0.001
    more = shares.log()
    more[:, 1] += 0.5
    assert losses(more, shares, 8.0, SMALL)["volumes"] > true["volumes"]


@pytest.mark.parametrize("shape", [(20, 24, 20), (14, 18, 11), (9, 7, 13)])
def test_network_takes_any_size(shape):
    model = LabelNetwork(ModelConfig(channels=(4, 8, 8)))
    with torch.no_grad():
        assert model(torch.zeros(1, 1, *shape)).shape == (1, 1 + len(REGIONS), *shape)


def test_odd_batches_and_few_levels_are_refused(tmp_path):
    with pytest.raises(InputError, match="imaged twice"):
        main(dataclasses.replace(SMALL, run_dir=tmp_path, batch_size=3))
    with pytest.raises(InputError, match="--held-out 1"):
        main(dataclasses.replace(SMALL, run_dir=tmp_path, held_out=1))
    with pytest.raises(InputError, match="3 levels"):
        LabelNetwork(ModelConfig(channels=(4, 8)))
    assert not np.any([path.exists() for path in tmp_path.glob("checkpoints/*")])
