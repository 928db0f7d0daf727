"""Windows axis by axis against PyTorch's pooling."""

import pytest
import torch
import torch.nn.functional as F

from runtime.layers.windows import over_windows


@pytest.mark.parametrize("margin", [1, 2])
@pytest.mark.parametrize("shape", [(2, 1, 7, 9, 6), (1, 3, 5, 6, 8)])
def test_windows_are_those_of_pooling(shape: tuple[int, ...], margin: int) -> None:
    x, side = torch.rand(shape, generator=torch.Generator().manual_seed(0)), 2 * margin + 1
    assert torch.equal(over_windows(x, margin, torch.maximum), F.max_pool3d(x, side, stride=1, padding=margin))
    mean = over_windows(x, margin, torch.add) / side**3
    torch.testing.assert_close(mean, F.avg_pool3d(x, side, stride=1, padding=margin))
