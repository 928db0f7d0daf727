"""The networks by name, and the one place that builds them."""

from __future__ import annotations

import dataclasses

from classifier.config import ModelConfig
from classifier.model.classifier import Classifier, Shape
from classifier.model.densenet import DenseNet121
from classifier.model.efficientnet import CoronalEfficientNet
from classifier.model.resnet import ResNet3D
from runtime.errors import InputError

MODELS: dict[str, type[Classifier]] = {
    "resnet": ResNet3D,
    "densenet121": DenseNet121,
    "efficientnet": CoronalEfficientNet,
}


def build_model(config: ModelConfig, shape: Shape, mean: float, std: float) -> Classifier:
    """The network of a configuration, with weights drawn from torch's global generator.

    Args:
        config: architecture.
        shape: voxels (D, H, W) of the volumes it will see.
        mean: subtracted from the input; of the training data.
        std: the input is divided by it.

    Raises:
        InputError: an unknown name, numbers that do not fit together, or a grid of which the last level would keep
            fewer than 2 voxels along an axis.
    """
    if config.name not in MODELS:
        raise InputError(f"--model.name {config.name}: unknown; there are: {', '.join(MODELS)}")
    network = MODELS[config.name]
    problems = faults(config, network.width_divisor(config))
    if problems:
        raise InputError.of(f"--model.name {config.name}: refused", problems)
    left = min(network.last_level(config, shape))
    if left < 2:
        raise InputError(
            f"--model.name {config.name} --model.stem-stride {config.stem_stride}: {network.levels(config)} levels "
            f"leave {left} voxel{'' if left == 1 else 's'} of an axis of the grid {shape}, at least 2 are needed; "
            f"use {advice(config, shape)}"
        )
    return network.build(config, shape, mean, std)


def faults(config: ModelConfig, divisor: int) -> list[str]:
    """What in a configuration does not fit together, one line each."""
    problems = []
    if config.stem_stride < 1:
        problems.append(f"--model.stem-stride {config.stem_stride}: at least 1")
    if config.groups < 1 or divisor % config.groups:
        problems.append(f"--model.groups {config.groups}: has to divide every width, that is, {divisor}")
    if not 0 <= config.dropout < 1:
        problems.append(f"--model.dropout {config.dropout}: a share from 0 to below 1")
    return problems


def advice(config: ModelConfig, shape: Shape) -> str:
    """What would make a too coarse last level finer."""
    finer = dataclasses.replace(config, stem_stride=1)
    ways = []
    if min(MODELS[config.name].last_level(finer, shape)) >= 2:
        ways.append("--model.stem-stride 1")
    ways.append("fewer --model.widths" if config.name == "resnet" else "--model.name resnet")
    return " or ".join(ways)
