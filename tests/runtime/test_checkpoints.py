"""Checkpoints: what is written is read, and nothing else is."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from runtime.checkpoints import (
    checkpoint_hash,
    config_from,
    load_checkpoint,
    load_tensors,
    load_weights,
    plain_fields,
    save_checkpoint,
)
from runtime.errors import InputError


def test_round_trip(tmp_path: Path) -> None:
    save_checkpoint(
        tmp_path / "a.pt", "vae", {"weights": {"w": torch.eye(2)}, "step": 3, "sizes": [1, 2], "none": None}
    )
    record = load_checkpoint(tmp_path / "a.pt", "vae")
    assert torch.equal(record["weights"]["w"], torch.eye(2))
    assert (record["step"], record["sizes"], record["none"]) == (3, [1, 2], None)
    assert len(checkpoint_hash(tmp_path / "a.pt")) == 16


def test_another_kind_is_refused_with_both_names(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", "vae", {})
    with pytest.raises(InputError, match="'vae', format 1, expected 'diffusion'"):
        load_checkpoint(tmp_path / "a.pt", "diffusion")


def test_another_format_is_refused(tmp_path: Path) -> None:
    torch.save({"kind": "vae", "format": 99}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="format 99"):
        load_checkpoint(tmp_path / "a.pt", "vae")


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "cut.pt"
    save_checkpoint(path, "vae", {"w": torch.randn(1000)})
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(InputError, match=r"cut\.pt"):
        load_checkpoint(path, "vae")


def test_a_pickled_object_is_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "canary",))

    with (tmp_path / "evil.pt").open("wb") as file:
        pickle.dump(Attack(), file)
    with pytest.raises(InputError, match=r"evil\.pt"):
        load_checkpoint(tmp_path / "evil.pt", "vae")
    torch.save({"kind": "vae", "format": 1, "x": Attack()}, tmp_path / "evil2.pt")
    with pytest.raises(InputError, match=r"evil2\.pt"):
        load_checkpoint(tmp_path / "evil2.pt", "vae")
    assert not (tmp_path / "canary").exists()


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Path"):
        save_checkpoint(tmp_path / "a.pt", "vae", {"config": {"where": tmp_path}})
    assert not (tmp_path / "a.pt").exists()


def test_weights_that_do_not_fit_are_listed() -> None:
    weights = nn.Linear(3, 2).state_dict()
    weights["extra"] = torch.zeros(1)
    with pytest.raises(InputError, match="extra: not part") as caught:
        load_weights(nn.Linear(4, 2), weights, "a.pt")
    assert "weight: shape (2, 3), this network has (2, 4)" in str(caught.value)


@dataclass(frozen=True)
class Shape:
    widths: tuple[int, ...] = (1, 2)
    name: str = "a"


def test_a_configuration_comes_back_and_one_of_another_version_is_refused() -> None:
    fields = plain_fields(Shape((3, 4), "b"))
    assert fields == {"widths": [3, 4], "name": "b"}
    assert config_from(Shape, fields, "a.pt") == Shape((3, 4), "b")
    with pytest.raises(InputError, match=r"a\.pt: its configuration is not one of this version: .*depth"):
        config_from(Shape, {**fields, "depth": 3}, "a.pt")


def test_what_is_no_checkpoint_is_called_by_its_name(tmp_path: Path) -> None:
    """As users meet it: a whole module saved by torch.save."""
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(InputError, match=r"module.pt: holds Python objects.*state_dict") as refusal:
        load_tensors(tmp_path / "module.pt")
    assert "\x1b" not in str(refusal.value)
