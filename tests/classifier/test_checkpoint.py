import dataclasses

import pytest
import torch
import torch.nn.functional as F

from classifier.checkpoint import KIND, load_classifier, resume_classifier, save_classifier, set_operating_point
from classifier.config import ModelConfig
from classifier.model import MODELS, Classifier, build_model
from cohort.scans import GRIDS, Grid
from runtime.checkpoints import load_checkpoint, save_checkpoint
from runtime.errors import InputError

GRID = Grid("small", (34, 33, 36), 5.0, (0.0, -17.0, 8.0))
SMALL = ModelConfig(widths=(8, 16, 24), blocks=2, stem_stride=1)


def scrambled(config: ModelConfig, grid: Grid = GRID) -> Classifier:
    """A network without the zeros of its initialisation."""
    torch.manual_seed(0)
    model = build_model(config, grid.shape, 0.3, 0.2)
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


def old_file(path, grid=GRID):
    """A checkpoint as it was written when there was one network, and what that network answered, step by step."""
    torch.manual_seed(3)

    def drawn(*shape):
        return 0.2 * torch.randn(shape)

    weights = {"mean": torch.tensor(0.3), "std": torch.tensor(0.2), "stem.weight": drawn(8, 1, 3, 3, 3)}
    for block, (before, after) in enumerate([(8, 8), (8, 16)]):
        for norm, width in (("norm1", before), ("norm2", after)):
            weights |= {f"blocks.{block}.{norm}.weight": 1 + drawn(width), f"blocks.{block}.{norm}.bias": drawn(width)}
        weights[f"blocks.{block}.conv1.weight"] = drawn(after, before, 3, 3, 3)
        weights[f"blocks.{block}.conv2.weight"] = drawn(after, after, 3, 3, 3)
    weights |= {"blocks.1.shortcut.weight": drawn(16, 8, 1, 1, 1), "norm.weight": 1 + drawn(16), "norm.bias": drawn(16)}
    weights |= {"head.weight": drawn(1, 16), "head.bias": drawn(1)}
    record = {
        "model_config": {"widths": [8, 16], "blocks": 1, "stem_stride": 2, "groups": 4, "dropout": 0.2},
        "grid": grid.to_dict(), "normalisation": {"mean": 0.3, "std": 0.2}, "weights": weights,
        "ledger": ["cd"], "mean_hc": torch.zeros(grid.shape), "step": 9,
        "ema": {name: value.clone() for name, value in weights.items()},
        "optimiser": {"state": {}, "param_groups": []}, "best": 0.5, "best_step": 8, "fingerprint": "ef",
        "temperature": 1.25, "threshold": 0.6,
    }  # fmt: skip
    save_checkpoint(path, KIND, record)

    def answer(x):
        w = {name: value.double() for name, value in weights.items()}
        h = F.conv3d((x.double() - w["mean"]) / w["std"], w["stem.weight"], stride=2, padding=1)
        for block, stride in ((0, 1), (1, 2)):
            n1, n2 = ((w[f"blocks.{block}.{n}.weight"], w[f"blocks.{block}.{n}.bias"]) for n in ("norm1", "norm2"))
            a = F.conv3d(F.silu(F.group_norm(h, 4, *n1)), w[f"blocks.{block}.conv1.weight"], stride=stride, padding=1)
            a = F.conv3d(F.silu(F.group_norm(a, 4, *n2)), w[f"blocks.{block}.conv2.weight"], padding=1)
            if block == 1:
                h = F.conv3d(F.avg_pool3d(h, 2, ceil_mode=True), w["blocks.1.shortcut.weight"])
            h = h + a
        h = F.silu(F.group_norm(h, 4, w["norm.weight"], w["norm.bias"])).mean((2, 3, 4))
        return (h @ w["head.weight"].T + w["head.bias"])[:, 0]

    return weights, answer


def test_older_files_are_averaging_resnets(tmp_path):
    path = tmp_path / "old.pt"
    _, answer = old_file(path)
    x = torch.rand(2, 1, *GRID.shape)
    loaded = load_classifier(path)
    torch.testing.assert_close(loaded.model(x).double(), answer(x), rtol=1e-4, atol=1e-5)
    assert (loaded.model.config.name, loaded.model.config.pool, loaded.model.config.outputs) == ("resnet", "mean", 1)
    assert loaded.model.attention(x) is None
    set_operating_point(path, temperature=2.0, threshold=0.3)
    again = load_classifier(path)
    assert (again.temperature, again.threshold, again.step, again.ledger) == (2.0, 0.3, 9, ["cd"])
    assert torch.equal(again.model(x), loaded.model(x))


def test_older_files_go_on_as_what_they_were(tmp_path):
    path = tmp_path / "old.pt"
    weights, _ = old_file(path)
    config = ModelConfig(widths=(8, 16), blocks=1, groups=4, pool="mean", feature_norm=False)
    model = build_model(config, GRID.shape, 0.0, 1.0)
    record = resume_classifier(path, model, GRID)
    assert (record["step"], record["fingerprint"]) == (9, "ef")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    other = build_model(dataclasses.replace(config, pool="attention"), GRID.shape, 0.0, 1.0)
    with pytest.raises(InputError, match=r"model_config.pool: the checkpoint has 'mean', this run 'attention'"):
        resume_classifier(path, other, GRID)


def test_checkpoint_of_another_architecture_or_grid_is_refused(tmp_path):
    grid = GRIDS["smoke"]
    stored(tmp_path / "c.pt", grid=grid)
    with pytest.raises(InputError, match=r"model_config.blocks: the checkpoint has 2, this run 1"):
        resume_classifier(tmp_path / "c.pt", scrambled(dataclasses.replace(SMALL, blocks=1), grid), grid)
    with pytest.raises(InputError, match=r"grid.name: the checkpoint has 'smoke', this run 'demo'"):
        resume_classifier(tmp_path / "c.pt", scrambled(SMALL), GRIDS["demo"])
    with pytest.raises(InputError, match=r"model_config.outputs: the checkpoint has 1, this run 2"):
        resume_classifier(tmp_path / "c.pt", scrambled(dataclasses.replace(SMALL, outputs=2), grid), grid)


def changed(path, **changes):
    """The checkpoint with other contents."""
    record = load_checkpoint(path, KIND)
    save_checkpoint(path, KIND, {**record, **changes})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "vgg"}, r"c.pt: .*not one of this version: --model.name vgg: unknown; there are: resnet"),
        ({"heads": 3}, r"c.pt: .*not one of this version: .*'heads'"),
        ({"name": "densenet121", "stem_stride": 2}, r"c.pt: .*leave 1 voxel"),
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
