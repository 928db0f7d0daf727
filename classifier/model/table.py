"""The networks by name, and the one place that builds them."""

from classifier.config import ModelConfig
from classifier.model.classifier import Classifier
from classifier.model.hemispheres import Hemispheres
from classifier.model.published import CoronalEfficientNet, DenseNet121
from classifier.model.resnet import ResNet3D
from cohort.grids import Grid
from runtime.errors import InputError

MODELS: dict[str, type[Classifier]] = {
    "resnet": ResNet3D, "hemispheres": Hemispheres, "densenet121": DenseNet121, "efficientnet": CoronalEfficientNet
}  # fmt: skip


def build_model(config: ModelConfig, grid: Grid, mean: float, std: float) -> Classifier:
    """The network of a configuration for volumes on a grid, with weights drawn from torch's global generator."""
    if config.name not in MODELS:
        raise InputError(f"--model.name {config.name}: unknown; there are: {', '.join(MODELS)}")
    if min(config.stem_stride, config.groups, config.summaries) < 1 or not 0 <= config.dropout < 1:
        raise InputError(
            "--model: stem-stride, groups and summaries are at least 1, dropout is a share from 0 to below 1"
        )
    network = MODELS[config.name]
    if (left := min(network.last_level(config, grid))) < 2:
        what = f"the last level keeps only {left} of an axis of the grid {grid.shape}, at least 2 voxels are needed"
        raise InputError(f"{what}; use --model.stem-stride 1, fewer --model.widths, or --model.name resnet")
    try:
        return network(config, grid, mean, std)
    except ValueError as error:  # of nn.GroupNorm
        raise InputError(f"--model.groups {config.groups}: has to divide every width; {error}") from None
