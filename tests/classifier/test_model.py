import dataclasses

import pytest
import torch

from classifier.checkpoint import load_classifier, resume_classifier, save_classifier
from classifier.config import PRESETS, ModelConfig
from classifier.model import ResNet3D, smallest_side
from cohort.scans import GRIDS
from runtime.errors import InputError

SMALL = ModelConfig(widths=(8, 16, 24), blocks=2, stem_stride=1)


def scrambled(config: ModelConfig) -> ResNet3D:
    """A network without the zeros of its initialisation."""
    torch.manual_seed(0)
    model = ResNet3D(config, 0.3, 0.2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("shape", [(20, 24, 20), (19, 23, 21), (8, 9, 11)])
@pytest.mark.parametrize("stem_stride", [1, 2])
def test_one_logit_per_volume_on_any_size(shape, stem_stride):
    model = scrambled(dataclasses.replace(SMALL, stem_stride=stem_stride))
    x = torch.rand(3, 1, *shape)
    logits = model(x)
    assert logits.shape == (3,)
    torch.testing.assert_close(model(x[:1]), logits[:1])  # no volume depends on its batch
    features = model.blocks(model.stem(x))
    assert min(features.shape[2:]) == smallest_side(model.config, shape)


def test_untrained_network_is_undecided():
    assert ResNet3D(SMALL)(torch.rand(2, 1, 10, 10, 10)).tolist() == [0.0, 0.0]


def test_constants_standardise_the_input():
    model = scrambled(SMALL)
    plain = ResNet3D(SMALL)
    plain.load_state_dict({**model.state_dict(), "mean": torch.tensor(0.0), "std": torch.tensor(1.0)})
    x = torch.rand(2, 1, 10, 12, 10)
    torch.testing.assert_close(model(x), plain((x - 0.3) / 0.2))


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_fit_their_grids(name):
    config = PRESETS[name]
    assert smallest_side(config.model, GRIDS[config.grid].shape) >= 2
    assert config.steps > config.warmup_steps
    ResNet3D(config.model)


def stored(path):
    model = scrambled(SMALL)
    ema = {name: value + 1 for name, value in model.state_dict().items()}
    save_classifier(
        path, model, grid=GRIDS["smoke"], ledger=["ab"], mean_hc=torch.ones(GRIDS["smoke"].shape), step=7,
        ema=ema, temperature=1.5, threshold=0.4,
    )  # fmt: skip
    return model, ema


def test_checkpoint_rebuilds_its_network(tmp_path):
    model, ema = stored(tmp_path / "c.pt")
    raw = load_classifier(tmp_path / "c.pt", weights="raw")
    x = torch.rand(2, 1, 20, 24, 20)
    torch.testing.assert_close(raw.model(x), model(x).detach(), rtol=0, atol=0)
    loaded = load_classifier(tmp_path / "c.pt")
    assert (loaded.step, loaded.temperature, loaded.threshold, loaded.ledger) == (7, 1.5, 0.4, ["ab"])
    assert loaded.grid == GRIDS["smoke"]
    assert all(torch.equal(value, ema[name]) for name, value in loaded.model.state_dict().items())


def test_checkpoint_of_another_architecture_or_grid_is_refused(tmp_path):
    stored(tmp_path / "c.pt")
    other = ResNet3D(dataclasses.replace(SMALL, blocks=1))
    with pytest.raises(InputError, match=r"model_config.blocks: the checkpoint has 2, this run 1"):
        resume_classifier(tmp_path / "c.pt", other, GRIDS["smoke"])
    with pytest.raises(InputError, match=r"grid.name: the checkpoint has 'smoke', this run 'demo'"):
        resume_classifier(tmp_path / "c.pt", ResNet3D(SMALL), GRIDS["demo"])
