"""Devices: how many cases at once, and what happens when they are too many."""

import pytest
import torch

from runtime.device import Device, in_batches
from runtime.errors import InputError

CPU = Device(torch.device("cpu"), torch.float32)
GPU = Device(torch.device("cuda", 0), torch.bfloat16)


def room_for(limit: int):
    """Work that needs more memory than there is for batches above `limit`; the batches tried."""
    tried: list[int] = []

    def work(batch: list[int], _size: int) -> list[int]:
        tried.append(len(batch))
        if len(batch) > limit:
            raise torch.OutOfMemoryError("out of memory")
        return [10 * item for item in batch]

    return work, tried


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    work, tried = room_for(3)
    done = list(in_batches(range(11), 8, work))
    assert [item for batch, _ in done for item in batch] == list(range(11))
    assert [value for _, values in done for value in values] == list(range(0, 110, 10))
    assert tried == [8, 4, 2, 2, 2, 2, 2, 1]
    assert capsys.readouterr().out.splitlines()[-1] == "out of memory; going on with batches of 2"


def test_a_single_case_that_does_not_fit_is_an_error_message() -> None:
    with pytest.raises(InputError, match="no room for a single case"):
        list(in_batches(range(3), 2, room_for(0)[0]))


def test_as_many_cases_as_the_free_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * 2**30, 24 * 2**30))
    assert GPU.inference_batch(None, 2**30) == 8
    assert GPU.inference_batch(None, 2**20) == 16
    assert GPU.inference_batch(None, 20 * 2**30) == 1
    assert GPU.inference_batch(5, 2**30) == 5
    assert CPU.inference_batch(None, 2**20) == 1
