"""The DiT: patches, attention, shapes, parameter and operation counts, conditions, silence at the start."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusion.config import VARIANTS, ModelConfig, ProcessConfig
from diffusion.model import DiT
from diffusion.model.dit import (
    FEW_TOKENS,
    Attention,
    attend,
    patchify,
    position_embedding,
    resized,
    rotary_table,
    rotate,
    unpatchify,
)
from diffusion.process import build_process
from runtime.errors import InputError
from runtime.memory import peak_bytes
from tests.support.checkpoints import awake

SMALL = ModelConfig(dim=32, depth=2, heads=2, patch=(2, 2, 2))
PAPER_LATENT = (4, 28, 34, 28)
NAN = math.nan


def inputs(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z_t of shape (count, 3, 4, 4, 4), t and y."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 4, 4, 4, generator=generator), torch.arange(count) * 300 + 1, torch.arange(count) % 3


@pytest.mark.parametrize("patch", [(4, 2, 4), (2, 2, 2), (1, 2, 2)])
def test_patches_are_undone_on_sizes_that_do_not_divide(patch: tuple[int, int, int]) -> None:
    z = torch.randn(2, 3, 5, 7, 6)
    tokens = patchify(z, patch)
    counts = [-(-size // p) for size, p in zip(z.shape[2:], patch, strict=True)]
    assert tokens.shape == (2, counts[0] * counts[1] * counts[2], 3 * patch[0] * patch[1] * patch[2])
    assert torch.equal(unpatchify(tokens, patch, (3, 5, 7, 6)), z)


def test_patch_embedding_equals_a_strided_convolution() -> None:
    z, layer = torch.randn(2, 3, 4, 6, 8), torch.nn.Conv3d(3, 16, (2, 3, 4), stride=(2, 3, 4))
    expected = layer(z).flatten(2).transpose(1, 2)
    actual = torch.nn.functional.linear(patchify(z, (2, 3, 4)), layer.weight.flatten(1), layer.bias)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "rotary"},
        {"qk_norm": False, "gelu": "exact"},
        {"covariates": ("age", "sex")},
    ],
    ids=["plain", "rotary", "older", "covariates"],
)
def test_output_has_the_latents_shape_and_is_zero_at_the_start(changes: dict) -> None:
    model = DiT(replace(SMALL, **changes), (3, 5, 7, 6))
    out = model(torch.randn(2, 3, 5, 7, 6), torch.tensor([0, 999]), torch.tensor([0, 2]))
    assert out.shape == (2, 3, 5, 7, 6)
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_time_class_and_position_all_matter(positions: str) -> None:
    model = awake(DiT(replace(SMALL, positions=positions), (3, 4, 4, 4)))
    z, t, y = torch.randn(1, 3, 4, 4, 4), torch.tensor([500]), torch.tensor([0])
    out = model(z, t, y)
    assert not torch.allclose(out, model(z, torch.tensor([500.25]), y))
    assert not torch.allclose(out, model(z, t, torch.tensor([1])))
    assert not torch.allclose(out, model(z, t, torch.tensor([model.null_class])))
    swapped, moved = z.roll(2, dims=2), out.roll(2, dims=2)  # the same patches, at other places along D
    assert not torch.allclose(moved, model(swapped, t, y), atol=1e-3)


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_recomputed_activations_give_the_same_gradients_and_hold_less_memory(positions: str) -> None:
    def gradients(*, recompute: bool) -> tuple[list[torch.Tensor], int]:
        model = awake(DiT(replace(SMALL, depth=6, positions=positions), (3, 4, 4, 4)))
        if recompute:
            model.recompute_activations()
        held = peak_bytes(lambda: model(*inputs(60)).square().mean().backward())
        return [parameter.grad for parameter in model.parameters()], held

    (kept, most), (again, less) = gradients(recompute=False), gradients(recompute=True)
    assert all(torch.equal(*pair) for pair in zip(kept, again, strict=True))
    assert less < 0.6 * most


def test_samples_do_not_see_each_other() -> None:
    changes = {"positions": "rotary", "covariates": ("age",)}
    model = awake(DiT(replace(SMALL, **changes), (3, 4, 4, 4)))
    (z, t, y), covariates = inputs(3), torch.tensor([[0.5], [NAN], [-1.0]])
    alone = torch.cat([model(*(value[k : k + 1] for value in (z, t, y, covariates))) for k in range(3)])
    torch.testing.assert_close(model(z, t, y, covariates), alone, atol=1e-5, rtol=1e-5)


def test_a_side_counts_only_where_the_network_has_sides() -> None:
    (z, t, y), names = inputs(3), DiT(SMALL, (3, 4, 4, 4)).state_dict().keys()
    plain = awake(DiT(SMALL, (3, 4, 4, 4)))
    assert torch.equal(plain(z, t, y, None, torch.tensor([0, 1, 2])), plain(z, t, y))
    model = awake(DiT(replace(SMALL, sides=True), (3, 4, 4, 4)))
    assert model.state_dict().keys() - names == {"side.weight"}
    left, right, unknown = (model(z, t, y, None, torch.full_like(y, side)) for side in range(3))
    assert torch.equal(unknown, model(z, t, y))
    assert not torch.allclose(left, right)
    assert not torch.allclose(left, unknown)


def test_heads_that_cannot_be_rotated_are_refused() -> None:
    with pytest.raises(InputError, match="heads of 15 dimensions, expected an even number"):
        DiT(replace(SMALL, positions="rotary", dim=30, heads=2), (3, 5, 7, 6))


def test_positions_are_distinct_on_every_axis() -> None:
    positions = position_embedding((5, 6, 7), 48)
    assert torch.cdist(positions, positions).add(10 * torch.eye(210)).min() > 0.05


def test_a_table_of_positions_is_interpolated_between_its_ends() -> None:
    places = torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in (3, 5, 2)), indexing="ij"), -1).view(-1, 3)
    table = resized(places, (3, 5, 2), (5, 5, 3)).view(5, 5, 3, 3)
    assert table[:, 0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2]
    assert table[0, :, 0, 1].tolist() == [0, 1, 2, 3, 4]
    assert table[0, 0, :, 2].tolist() == [0, 0.5, 1]
    assert torch.equal(resized(places, (3, 5, 2), (3, 5, 2)), places)


def test_positions_travel_with_the_weights() -> None:
    model = awake(DiT(SMALL, (3, 4, 4, 4)))
    model.positions.add_(torch.randn(model.positions.shape))
    other = DiT(SMALL, (3, 4, 4, 4))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(*inputs(2)), other(*inputs(2)))
    assert not {"positions", "rotation"} & DiT(replace(SMALL, positions="rotary"), (3, 4, 4, 4)).state_dict().keys()


def test_gelu_is_the_one_asked_for() -> None:
    tanh, exact = (awake(DiT(replace(SMALL, gelu=form), (3, 4, 4, 4))) for form in ("tanh", "exact"))
    for model, approximate in ((tanh, "tanh"), (exact, "none")):
        layer, x = model.blocks[0].mlp, torch.randn(5, 32)
        hidden = torch.nn.functional.gelu(layer[0](x), approximate=approximate)
        assert torch.equal(layer(x), layer[2](hidden))


def test_unknown_covariates_give_exactly_the_learned_vector() -> None:
    model = awake(DiT(replace(SMALL, covariates=("age", "sex")), (3, 4, 4, 4)))
    values = torch.tensor([[NAN, NAN], [0.7, NAN], [NAN, -1.0]])
    vectors, parts = model.covariates(values), model.covariates
    assert torch.equal(vectors[0], parts.unknown.sum(0))
    torch.testing.assert_close(vectors[1], parts.mlps[0](values[1, :1]) + parts.unknown[1])
    torch.testing.assert_close(vectors[2], parts.unknown[0] + parts.mlps[1](values[2, 1:]))
    z, t, y = inputs(3)
    assert torch.equal(model(z, t, y), model(z, t, y, torch.full((3, 2), NAN)))


def test_covariates_say_nothing_at_the_start_and_something_later() -> None:
    config = replace(SMALL, covariates=("age",))
    (z, t, y), age = inputs(2), torch.tensor([[0.5], [-2.0]])
    new = DiT(config, (3, 4, 4, 4))
    assert torch.equal(new.covariates(age), torch.zeros(2, 32))
    model = awake(new)
    assert not torch.allclose(model(z, t, y, age), model(z, t, y))
    assert not torch.allclose(model(z, t, y, age), model(z, t, y, age + 0.1))


@pytest.mark.parametrize("values", [[[NAN], [NAN]], [[NAN], [1.0]], [[0.0], [-3.0]]])
def test_gradients_are_finite_whatever_is_unknown(values: list) -> None:
    model = awake(DiT(replace(SMALL, covariates=("age",)), (3, 4, 4, 4)))
    model(*inputs(2), torch.tensor(values)).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    value = model.covariates.mlps[0][2].weight.grad.abs().max()
    unknown = model.covariates.unknown.grad.abs().max()
    assert (value > 0) == any(not math.isnan(row[0]) for row in values)
    assert (unknown > 0) == any(math.isnan(row[0]) for row in values)


def test_another_number_of_covariates_is_refused() -> None:
    model = DiT(replace(SMALL, covariates=("age", "sex")), (3, 4, 4, 4))
    with pytest.raises(ValueError, match="1 covariates"):
        model(*inputs(2), torch.zeros(2, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "rotary", "qk_norm": False, "covariates": ("age",)},
        {"linear_rank": 2},
    ],
    ids=["plain", "rotary", "linear start"],
)
def test_traces_without_graph_breaks(changes: dict) -> None:
    model = awake(DiT(replace(SMALL, **changes), (3, 4, 4, 4), build_process(ProcessConfig(target="velocity"))))
    z, t, y = inputs(2)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(z, t, y), model(z, t, y))


@pytest.mark.parametrize("name", ["S/4", "S/2", "S/1", "B/4", "L/4", "XL/4"])
def test_sizes_of_variants_at_the_paper_grid(name: str) -> None:
    """Parameters exactly; operations 24 N d^2 + 4 N^2 d per block, the patches in and out, and the condition."""
    config = VARIANTS[name]
    with torch.device("meta"):
        model = DiT(config, PAPER_LATENT)
        given = torch.empty(1, *PAPER_LATENT), torch.empty(1), torch.empty(1, dtype=torch.long)
    d, L, p = config.dim, config.depth, 4 * math.prod(config.patch)
    N = math.prod(-(-size // side) for size, side in zip(PAPER_LATENT[1:], config.patch, strict=True))
    block = 18 * d * d + 15 * d + 2 * d // config.heads
    outside = (256 * d + d) + (d * d + d) + 3 * d + (2 * d * d + 2 * d) + (p * d + d) + (d * p + p)
    assert sum(parameter.numel() for parameter in model.parameters()) == L * block + outside
    # The counter knows no formula for the CPU's fused attention; the plain one has the same products.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(*given)
    condition = 12 * L * d * d + 2 * (2 * d * d) + 2 * (256 * d + d * d)
    assert counter.get_total_flops() == L * (24 * N * d * d + 4 * N * N * d) + 4 * N * d * p + condition


def test_published_size_of_dit_s4_at_the_paper_grid() -> None:
    """32.5 million parameters, 48.4 GFLOP forward at 833 tokens."""
    N, d, L, p = 7 * 17 * 7, 384, 12, 4 * 32
    with torch.device("meta"):
        model = DiT(VARIANTS["S/4"], PAPER_LATENT)
    assert model.positions.shape == (N, d)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(32.5e6, rel=0.02)
    assert L * (24 * N * d * d + 4 * N * N * d) + 4 * N * d * p == pytest.approx(48.4e9, rel=0.01)


TOKENS = (3, 4, 6)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_equals_the_formula(qk_norm: bool, rotary: bool) -> None:
    torch.manual_seed(0)
    layer, x = Attention(24, 2, qk_norm=qk_norm), torch.randn(2, 72, 24)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    rotation = rotary_table(TOKENS, 12) if rotary else None
    q, k, v = layer.qkv(x).view(2, 72, 3, 2, 12).permute(2, 0, 3, 1, 4)
    if qk_norm:
        q, k = F.rms_norm(q, (12,)) * layer.scale_q, F.rms_norm(k, (12,)) * layer.scale_k
    if rotary:
        q, k = rotate(q, *rotation), rotate(k, *rotation)
    mixed = (q @ k.transpose(2, 3) / 12**0.5).softmax(-1) @ v
    expected = layer.out(mixed.transpose(1, 2).reshape(2, 72, 24))
    torch.testing.assert_close(layer(x, rotation), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tokens", [FEW_TOKENS, FEW_TOKENS + 1])  # by hand, and by the fused kernel
def test_attention_in_bfloat16_and_its_gradient_are_those_of_float64(tokens: int) -> None:
    torch.manual_seed(0)
    exact = [torch.randn(1, 2, tokens, 12, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    short = [part.detach().bfloat16().requires_grad_() for part in exact]
    q, k, v = exact
    expected, found = (q @ k.mT / 12**0.5).softmax(-1) @ v, attend(*short)
    assert found.dtype == torch.bfloat16
    for mixed in (expected, found):
        mixed.double().square().sum().backward()
    pairs = [(expected, found), *((a.grad, b.grad) for a, b in zip(exact, short, strict=True))]
    assert all((a - b).norm() < 0.02 * a.norm() for a, b in pairs)


def logits(shift: tuple[int, int, int]) -> torch.Tensor:
    """Of fixed queries and keys, independent of position, rotated for a block of 2 x 3 x 2 positions at `shift`."""
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 12, 64, generator=generator, dtype=torch.float64)
    (a, b, c), table = shift, rotary_table((9, 9, 9), 64).view(2, 9, 9, 9, 32)
    cos, sin = table[:, a : a + 2, b : b + 3, c : c + 2].flatten(1, 3)
    return rotate(q, cos, sin) @ rotate(k, cos, sin).T


@pytest.mark.parametrize("shift", [(7, 0, 0), (0, 6, 0), (0, 0, 7), (3, 1, 5)])
def test_rotary_logits_depend_on_relative_positions_alone(shift: tuple[int, int, int]) -> None:
    torch.testing.assert_close(logits(shift), logits((0, 0, 0)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_position_along_every_axis_turns_a_vector_differently(axis: int) -> None:
    sizes = tuple(28 if index == axis else 1 for index in range(3))
    cos, sin = rotary_table(sizes, 64)
    assert torch.pdist(rotate(torch.ones(28, 64), cos, sin)).min() > 0.5


@pytest.mark.parametrize("head_dim", [6, 12, 16, 64, 128])
def test_rotation_keeps_norms_and_the_remainder(head_dim: int) -> None:
    x = torch.randn(3, 72, head_dim)
    cos, sin = rotary_table(TOKENS, head_dim)
    turned = rotate(x, cos, sin)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    pairs, third = head_dim // 2, head_dim // 6
    still = [*range(3 * third, pairs), *range(pairs + 3 * third, head_dim)]
    assert torch.equal(turned[..., still], x[..., still])
    assert torch.equal(turned[:, 0], x[:, 0])
