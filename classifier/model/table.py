"""The networks by name, and the one place that builds them."""

from classifier.config import ModelConfig
from classifier.model.classifier import Classifier, Shape
from classifier.model.published import CoronalEfficientNet, DenseNet121
from classifier.model.resnet import ResNet3D
from runtime.errors import InputError

MODELS: dict[str, type[Classifier]] = {
    "resnet": ResNet3D, "densenet121": DenseNet121, "efficientnet": CoronalEfficientNet
}  # fmt: skip


def build_model(config: ModelConfig, shape: Shape, mean: float, std: float) -> Classifier:
    """The network of a configuration for volumes of a shape, with weights drawn from torch's global generator."""
    if config.name not in MODELS:
        raise InputError(f"--model.name {config.name}: unknown; there are: {', '.join(MODELS)}")
    if min(config.stem_stride, config.groups) < 1 or not 0 <= config.dropout < 1:
        raise InputError("--model: stem-stride and groups are at least 1, dropout is a share from 0 to below 1")
    network = MODELS[config.name]
    if (left := min(network.last_level(config, shape))) < 2:
        what = f"the last level keeps only {left} of an axis of the grid {shape}, at least 2 voxels are needed"
        raise InputError(f"{what}; use --model.stem-stride 1, fewer --model.widths, or --model.name resnet")
    try:
        return network(config, shape, mean, std)
    except ValueError as error:  # of nn.GroupNorm
        raise InputError(f"--model.groups {config.groups}: has to divide every width; {error}") from None
