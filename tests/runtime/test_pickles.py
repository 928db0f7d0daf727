"""Restricted pickles: data pass, programs do not."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.errors import InputError
from runtime.pickles import load_pickle, save_pickle


def test_arrays_and_plain_values_come_back(tmp_path: Path) -> None:
    value = {
        "image": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "affine": np.eye(4),
        "label": 1, "seed": np.int64(7), "name": "sub-01", "nested": [1.5, (None, True)], "raw": b"x",
    }  # fmt: skip
    save_pickle(tmp_path / "a.pkl", value)
    back = load_pickle(tmp_path / "a.pkl")
    np.testing.assert_array_equal(back.pop("image"), value.pop("image"))
    np.testing.assert_array_equal(back.pop("affine"), value.pop("affine"))
    assert back == value


@pytest.mark.parametrize("protocol", range(2, 6))
def test_other_writers_protocols_are_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"image": np.ones((2, 2), np.float32), "label": 0}, protocol=protocol))
    assert load_pickle(path)["image"].sum() == 4


class _Attack:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.canary}",)


def test_a_malicious_pickle_creates_nothing_and_is_named(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"image": np.ones(3), "label": _Attack(canary)}))
    with pytest.raises(InputError, match=r"evil\.pkl.*system"):
        load_pickle(path)
    assert not canary.exists()
    pickle.loads(path.read_bytes())  # the same bytes do harm in an ordinary reader: the test would notice a tame attack
    assert canary.exists()


@pytest.mark.parametrize(
    "source", ["builtins.eval", "builtins.getattr", "numpy.load", "numpy.testing._private.utils.runstring"]
)
def test_other_globals_are_refused(tmp_path: Path, source: str) -> None:
    module, name = source.rsplit(".", 1)
    path = tmp_path / "a.pkl"
    path.write_bytes(f"c{module}\n{name}\n.".encode())
    with pytest.raises(InputError, match=name):
        load_pickle(path)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_truncated_pickles_are_named(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "cut.pkl"
    save_pickle(path, {"image": np.ones((8, 8, 8))})
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(InputError, match=r"cut\.pkl"):
        load_pickle(path)


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"image": np.array([{}, None], dtype=object)}))
    with pytest.raises(InputError, match="objects"):
        load_pickle(path)


def test_torch_tensors_are_refused_with_what_to_save_instead(tmp_path: Path) -> None:
    path = tmp_path / "tensor.pkl"
    path.write_bytes(pickle.dumps({"image": torch.zeros(2, 2, 2), "label": 0}))
    with pytest.raises(InputError, match=r"tensor.pkl.*holds torch tensors; save numpy arrays"):
        load_pickle(path)
