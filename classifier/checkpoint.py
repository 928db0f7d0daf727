"""The classifier's checkpoint: what a run needs to go on, and what everything else needs to use the network."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from classifier.config import ModelConfig
from classifier.model import Classifier, build_model
from cohort.grids import Grid
from runtime import checkpoints
from runtime.config import with_defaults
from runtime.errors import InputError

KIND = "classifier"


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier in evaluation mode, with what came along in its file."""

    model: Classifier
    grid: Grid
    hash: str
    ledger: list[str]
    """Hashes of every subject it was trained on or chosen with, those behind its synthetic volumes included."""
    step: int
    temperature: float  # logits are divided by it before the sigmoid
    threshold: float | None  # probability at or above which a volume is TLE; None before the run's final evaluation
    mean_hc: torch.Tensor  # (D, H, W), the mean control of the training data


def save_classifier(
    path: Path, model: Classifier, *, grid: Grid, ledger: list[str], mean_hc: torch.Tensor, step: int, **state: Any
) -> None:
    """Writes a checkpoint; `state` holds ``ema``, ``temperature``, ``threshold`` and what the run wants back."""
    contents = {
        "model_config": checkpoints.plain_fields(model.config), "grid": grid.to_dict(),
        "normalisation": {"mean": float(model.mean), "std": float(model.std)},
        "weights": model.state_dict(), "ledger": ledger, "mean_hc": mean_hc, "step": step,
    }  # fmt: skip
    checkpoints.save_checkpoint(path, KIND, {**contents, **state})


def load_classifier(path: Path | str, *, weights: Literal["ema", "raw"] = "ema") -> LoadedClassifier:
    """Rebuilds the network from nothing but its file, strictly; InputError where the file contradicts itself."""
    record = checkpoints.load_checkpoint(path, KIND)
    grid, normalisation = Grid.from_dict(record["grid"]), record["normalisation"]
    config = checkpoints.config_from(ModelConfig, record["model_config"], path)
    try:
        model = build_model(config, grid, normalisation["mean"], normalisation["std"])
    except InputError as error:
        raise InputError(f"{path}: its configuration is not one of this version: {error}") from None
    checkpoints.load_weights(model, record["ema" if weights == "ema" else "weights"], path)
    model.eval().requires_grad_(False)
    return LoadedClassifier(
        model, grid, checkpoints.checkpoint_hash(path), record["ledger"], record["step"], record["temperature"],
        record["threshold"], record["mean_hc"],
    )  # fmt: skip


def set_operating_point(path: Path, *, temperature: float, threshold: float) -> None:
    """Writes what validation has fixed into a finished run's checkpoint."""
    record = checkpoints.load_checkpoint(path, KIND)
    checkpoints.save_checkpoint(path, KIND, {**record, "temperature": temperature, "threshold": threshold})


def resume_classifier(path: Path, model: Classifier, grid: Grid) -> dict[str, Any]:
    """Loads the raw weights into `model` for further training; the contents. Refuses another grid or architecture."""
    wanted = {"model_config": checkpoints.plain_fields(model.config), "grid": grid.to_dict()}
    record = checkpoints.load_checkpoint(path, KIND)
    record["model_config"] = with_defaults(record["model_config"], model.config)
    return checkpoints.resume(path, record, model, wanted)
