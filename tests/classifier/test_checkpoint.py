import dataclasses

import pytest
import torch

from classifier.checkpoint import KIND, load_classifier, resume_classifier, save_classifier, set_operating_point
from classifier.config import ModelConfig
from classifier.model import MODELS, Classifier, build_model
from cohort.grids import GRIDS, Grid
from runtime.checkpoints import load_checkpoint, save_checkpoint
from runtime.errors import InputError

GRID = Grid("small", (34, 33, 36), 5.0, (0.0, -17.0, 8.0))
SMALL = ModelConfig(widths=(8, 16, 24), blocks=2, stem_stride=1)


def scrambled(config: ModelConfig, grid: Grid = GRID) -> Classifier:
    """A network without the zeros of its initialisation."""
    torch.manual_seed(0)
    model = build_model(config, grid, 0.3, 0.2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def stored(path, config=SMALL, grid=GRID):
    model = scrambled(config, grid)
    ema = {name: value + 1 for name, value in model.state_dict().items()}
    save_classifier(
        path, model, grid=grid, ledger=["ab"], mean_hc=torch.ones(grid.shape), step=7,
        ema=ema, temperature=1.5, threshold=0.4,
    )  # fmt: skip
    return model, ema


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("outputs", [1, 2])
def test_checkpoint_rebuilds_its_network(tmp_path, name, outputs):
    config = dataclasses.replace(SMALL, name=name, outputs=outputs)
    model, ema = stored(tmp_path / "c.pt", config)
    raw = load_classifier(tmp_path / "c.pt", weights="raw")
    x = torch.rand(1, 1, *GRID.shape)
    with torch.no_grad():
        assert torch.equal(raw.model.both(x), model.both(x))
    assert raw.model.config == config
    assert type(raw.model) is MODELS[name]
    loaded = load_classifier(tmp_path / "c.pt")
    assert (loaded.step, loaded.temperature, loaded.threshold, loaded.ledger) == (7, 1.5, 0.4, ["ab"])
    assert loaded.grid == GRID
    assert loaded.model.state_dict().keys() == ema.keys()
    assert all(torch.equal(value, ema[name]) for name, value in loaded.model.state_dict().items())
    assert not loaded.model.training


def test_checkpoint_of_another_architecture_or_grid_is_refused(tmp_path):
    grid = GRIDS["smoke"]
    stored(tmp_path / "c.pt", grid=grid)
    with pytest.raises(InputError, match=r"model_config.blocks: the checkpoint has 2, this command 1"):
        resume_classifier(tmp_path / "c.pt", scrambled(dataclasses.replace(SMALL, blocks=1), grid), grid)
    with pytest.raises(InputError, match=r"grid.name: the checkpoint has 'smoke', this command 'demo'"):
        resume_classifier(tmp_path / "c.pt", scrambled(SMALL), GRIDS["demo"])
    with pytest.raises(InputError, match=r"model_config.outputs: the checkpoint has 1, this command 2"):
        resume_classifier(tmp_path / "c.pt", scrambled(dataclasses.replace(SMALL, outputs=2), grid), grid)


def test_a_run_of_an_older_version_goes_on(tmp_path):
    """Its configuration lacks later fields, which had their defaults."""
    path, grid = tmp_path / "c.pt", GRIDS["smoke"]
    model, _ = stored(path, grid=grid)
    old, later = load_checkpoint(path, KIND)["model_config"], {"region", "margin_mm", "summaries", "volumes"}
    changed(path, model_config={name: old[name] for name in old.keys() - later})
    assert resume_classifier(path, scrambled(SMALL, grid), grid)["step"] == 7
    assert load_classifier(path).model.config == model.config


def changed(path, **changes):
    """The checkpoint with other contents."""
    record = load_checkpoint(path, KIND)
    save_checkpoint(path, KIND, {**record, **changes})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "vgg"}, r"c.pt: .*not one of this version: --model.name vgg: unknown; there are: resnet"),
        ({"heads": 3}, r"c.pt: .*not one of this version: .*'heads'"),
        ({"name": "densenet121", "stem_stride": 2}, r"c.pt: .*keeps only 1 of"),
        ({"pool": "mean"}, r"c.pt: weights do not fit .*\n  - score.0.bias: not part of this network"),
        ({"outputs": 2}, r"c.pt: weights do not fit .*\n  - head.bias: shape \(1,\), this network has \(2,\)"),
    ],
)  # fmt: skip
def test_a_file_that_contradicts_itself_is_refused(tmp_path, config, message):
    path = tmp_path / "c.pt"
    model, _ = stored(path)
    record = load_checkpoint(path, KIND)["model_config"]
    changed(path, model_config={**record, **config})
    with pytest.raises(InputError, match=message):
        load_classifier(path)
    changed(path, model_config=record)
    assert torch.equal(load_classifier(path, weights="raw").model.head.weight, model.head.weight)


def test_missing_weights_are_named(tmp_path):
    path = tmp_path / "c.pt"
    _, ema = stored(path)
    del ema["blocks.0.conv1.weight"]
    changed(path, ema=ema)
    with pytest.raises(InputError, match=r"c.pt: weights do not fit .*\n  - blocks.0.conv1.weight: missing"):
        load_classifier(path)


def test_the_operating_point_changes_nothing_else(tmp_path):
    path = tmp_path / "c.pt"
    stored(path)
    before = load_checkpoint(path, KIND)
    set_operating_point(path, temperature=0.8, threshold=0.7)
    after = load_checkpoint(path, KIND)
    assert (after["temperature"], after["threshold"]) == (0.8, 0.7)
    assert before.keys() == after.keys()
    for part in ("weights", "ema"):
        assert all(torch.equal(value, after[part][name]) for name, value in before[part].items())
    assert before["model_config"] == after["model_config"]
