"""The autoencoder: shapes, odd sizes, the linear path's start, agreement with MONAI's building blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from runtime.device import Device
from runtime.errors import InputError
from VAE.config import PRESETS, ModelConfig
from VAE.model import Autoencoder
from VAE.model.autoencoder import SelfAttention, Upsample, depth_to_space, lowest_frequencies, space_to_depth


@pytest.mark.parametrize(
    ("config", "shape", "latent"),
    [
        (ModelConfig(channels=(16, 32, 64), groups=8), (16, 24, 16), (4, 4, 6, 4)),
        (ModelConfig(channels=(16, 32), latent_channels=3, groups=8, blocks=2), (10, 14, 6), (3, 5, 7, 3)),
        (
            ModelConfig(channels=(16,), latent_channels=8, groups=8, stem_patch=4, linear_path=True),
            (8, 12, 4),
            (8, 2, 3, 1),
        ),
        (PRESETS["smoke"].model, (20, 24, 20), (4, 10, 12, 10)),
        (ModelConfig(channels=(8, 8, 8, 16), groups=4, attention=True), (16, 24, 8), (4, 2, 3, 1)),  # 8x
        (
            ModelConfig(
                channels=(8, 12), groups=4, blocks=(1, 3), attention_levels=(False, True), attention=True,
                attention_side="decoder", upsampling="transposed", stem_patch=2, linear_path=True,
            ),
            (8, 12, 4), (4, 2, 3, 1),
        ),
    ],
)  # fmt: skip
def test_shapes(config: ModelConfig, shape: tuple, latent: tuple) -> None:
    model = Autoencoder(config)
    assert model.latent_shape(shape) == latent
    x = torch.rand(2, 1, *shape)
    x_hat, mu, logvar = model(x, torch.randn(2, *latent))
    assert x_hat.shape == (2, 1 + config.support, *shape)
    assert mu.shape == logvar.shape == (2, *latent)
    x_hat.mean().backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters())


@pytest.mark.parametrize("field", ["blocks", "attention_levels"])
def test_levels_of_another_number_than_channels_are_refused(field: str) -> None:
    with pytest.raises(InputError, match=rf"model.channels gives 3 levels.* model.{field} 2"):
        Autoencoder(ModelConfig(**{field: (1, 1)}))


def test_the_paper_preset_has_the_published_latent() -> None:
    assert Autoencoder(PRESETS["paper"].model).latent_shape((112, 136, 112)) == (4, 28, 34, 28)


@pytest.mark.parametrize("linear_path", [False, True])
def test_sizes_that_do_not_divide_are_padded_behind_and_cropped_again(linear_path: bool) -> None:
    """The same as who pads with air and crops by hand; on sizes that divide, as if there were no padding."""
    torch.manual_seed(0)
    model = Autoencoder(ModelConfig(channels=(8, 8, 8), groups=4, linear_path=linear_path, support=True)).eval()
    for layer in (model.to_mu, model.decoder.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.1)
    shape, whole = (16, 18, 21), (16, 20, 24)
    assert model.latent_shape(shape) == model.latent_shape(whole) == (4, 4, 5, 6)
    x = torch.rand(2, 1, *shape)
    by_hand = torch.zeros(2, 1, *whole)
    by_hand[..., :16, :18, :21] = x
    assert torch.equal(model.padded(x), by_hand)
    assert model.padded(by_hand) is by_hand
    eps = torch.randn(2, 4, 4, 5, 6)
    with torch.no_grad():
        (raw, mu, logvar), expected = model(x, eps), model(by_hand, eps)
        assert torch.equal(raw, expected[0][..., :16, :18, :21])
        assert torch.equal(mu, expected[1])
        assert torch.equal(logvar, expected[2])
        assert torch.equal(model.decode(mu, shape), model.finish(model.decode_raw(mu))[..., :16, :18, :21])


def test_padding_keeps_the_layout_that_convolutions_are_fast_in() -> None:
    x = Device(torch.device("cpu"), torch.float32).tensor(torch.rand(2, 1, 7, 9, 5))
    assert Autoencoder(ModelConfig(channels=(8, 8), groups=4)).padded(x).stride() == (480, 1, 60, 6, 1)


@pytest.mark.parametrize("p", [2, 3, 4])
def test_space_to_depth_is_undone(p: int) -> None:
    x = torch.randn(2, 3, 2 * p, 3 * p, p)
    h = space_to_depth(x, p)
    assert h.shape == (2, 3 * p**3, 2, 3, 1)
    assert torch.equal(depth_to_space(h, p), x)
    assert torch.equal(h[0, : p**3, 0, 0, 0], x[0, 0, :p, :p, :p].flatten())


@pytest.mark.parametrize("p", [2, 4])
def test_the_dct_basis_is_orthonormal_and_complete(p: int) -> None:
    basis = lowest_frequencies(p, p**3)
    torch.testing.assert_close(basis @ basis.T, torch.eye(p**3), atol=1e-6, rtol=0)
    torch.testing.assert_close(basis[0], torch.full((p**3,), p**-1.5))


def test_the_linear_path_starts_as_the_best_low_pass_codec() -> None:
    """A new network reconstructs what its DCT frequencies can carry exactly: a linear ramp within each block."""
    model = Autoencoder(ModelConfig(channels=(16,), groups=8, latent_channels=8, stem_patch=2, linear_path=True))
    x = torch.rand(1, 1, 8, 8, 8)
    torch.testing.assert_close(model.decode_raw(model.encode(x)[0]), x, atol=1e-5, rtol=0)  # all 8 of 8 frequencies
    few = Autoencoder(ModelConfig(channels=(16,), groups=8, latent_channels=4, stem_patch=2, linear_path=True))
    slopes = [torch.arange(8.0) // 2 + torch.arange(8) % 2 * k for k in (0.1, 0.2, 0.3)]
    ramps = torch.stack(torch.meshgrid(*slopes, indexing="ij")).sum(0)
    torch.testing.assert_close(few.decode_raw(few.encode(ramps[None, None])[0])[0, 0], ramps, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("shape", "blocks"), [((16, 16, 16), 1), ((16, 24, 8), 2)])
def test_equal_to_monai_with_the_same_weights(shape: tuple, blocks: int) -> None:
    """MONAI's AutoencoderKL has the same arithmetic: with its weights in our network the outputs agree."""
    from monai.networks.nets import AutoencoderKL

    channels = (16, 32, 32)
    theirs = AutoencoderKL(
        spatial_dims=3, in_channels=1, out_channels=1, channels=channels, latent_channels=3, norm_num_groups=8,
        num_res_blocks=(blocks,) * 3, attention_levels=(False,) * 3, with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    ).eval()  # fmt: skip
    ours = Autoencoder(ModelConfig(channels=channels, blocks=blocks, groups=8, latent_channels=3)).eval()
    # Both list their parameters in the order the data flow, the 1x1x1 shortcut of a block last.
    mine, other = list(ours.state_dict().items()), list(theirs.state_dict().items())
    assert [value.shape for _, value in mine] == [value.shape for _, value in other]
    ours.load_state_dict({name: value for (name, _), (_, value) in zip(mine, other, strict=True)})
    x = torch.rand(1, 1, *shape)
    with torch.no_grad():
        mu, sigma = theirs.encode(x)
        my_mu, my_logvar = ours.encode(x)
        torch.testing.assert_close(my_mu, mu, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.exp(0.5 * my_logvar), sigma, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.decode_raw(mu), theirs.decode(mu), atol=1e-4, rtol=1e-4)


def test_channels_last_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Autoencoder(ModelConfig(channels=(16, 32), groups=8))
    x, eps = torch.rand(2, 1, 8, 8, 8), torch.randn(2, 4, 4, 4, 4)
    expected = model(x, eps)[0]
    device = Device(torch.device("cpu"), torch.float32)
    torch.testing.assert_close(device.module(model)(device.tensor(x), eps)[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("given", ["by the device", "as a view"])
def test_the_first_block_has_the_layout_of_the_others(given: str) -> None:
    """A volume of one channel does not say its layout: the filters have to, or full resolution mixes two of them."""
    device = Device(torch.device("cpu"), torch.float32)
    encoder = device.module(Autoencoder(ModelConfig(channels=(16, 32), groups=8))).encoder
    x = torch.rand(2, 8, 8, 8)[:, None]
    seen: list[torch.Tensor] = []
    encoder.layers[0].register_forward_hook(lambda _, inputs, output: seen.extend((*inputs, output)))
    with torch.no_grad():
        encoder(device.tensor(x) if given == "by the device" else x)
    assert all(h.is_contiguous(memory_format=torch.channels_last_3d) for h in seen)


def test_every_preset_divides_its_grid() -> None:
    from cohort.grids import GRIDS

    for preset in PRESETS.values():
        assert len(Autoencoder(preset.model).latent_shape(GRIDS[preset.grid].shape)) == 4


def test_folded_upsampling_equals_doubling_then_convolving() -> None:
    """Values and all gradients, odd and single sizes too, in float64."""
    torch.manual_seed(0)
    layer = Upsample(3).double()
    for shape in ((2, 3, 3, 4, 5), (1, 3, 1, 1, 2)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        fast = layer(x)
        plain = layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        torch.testing.assert_close(fast, plain, atol=1e-12, rtol=0)
        wanted, downstream = [x, layer.conv.weight, layer.conv.bias], torch.randn_like(plain)
        for a, b in zip(
            torch.autograd.grad(fast, wanted, downstream), torch.autograd.grad(plain, wanted, downstream), strict=True
        ):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_attention_equals_the_materialised_softmax() -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(8, 4), torch.randn(2, 8, 2, 3, 2)
    h = layer.norm(x).flatten(2).transpose(1, 2)
    scores = torch.softmax(layer.to_q(h) @ layer.to_k(h).transpose(1, 2) / 8**0.5, dim=-1)
    expected = x + layer.out(scores @ layer.to_v(h)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


def test_recomputed_activations_give_the_same_gradients_and_hold_less_memory() -> None:
    def gradients(recompute: bool) -> tuple[list[torch.Tensor], int]:
        torch.manual_seed(0)
        model = Autoencoder(ModelConfig(channels=(8, 8), groups=4, attention=True))
        if recompute:
            model.recompute_activations()
        x, eps, held = torch.rand(1, 1, 16, 16, 16), torch.randn(1, 4, 8, 8, 8), {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            held[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(x, eps)[0].square().mean()
        loss.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None], sum(held.values())

    (plain, plain_bytes), (again, again_bytes) = gradients(False), gradients(True)
    assert all(torch.equal(*pair) for pair in zip(plain, again, strict=True))
    assert again_bytes < 0.6 * plain_bytes


@pytest.mark.parametrize("linear_path", [False, True])
def test_voxels_of_a_bfloat16_run_have_all_levels(linear_path: bool) -> None:
    """A volume that was rounded to bfloat16 has at most 129 values from 0.5 to 1."""
    torch.manual_seed(0)
    model = Autoencoder(ModelConfig(channels=(16,), groups=8, stem_patch=2, linear_path=linear_path))
    if linear_path:  # at first the convolutions add nothing to it
        torch.nn.init.normal_(model.decoder.conv_out.weight, std=0.05)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        x_hat = model.decode_raw(torch.randn(1, 4, 12, 12, 12))
    assert x_hat.dtype == torch.float32
    assert (x_hat != x_hat.bfloat16().float()).float().mean() > 0.9
