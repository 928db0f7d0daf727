"""Refuses samples that are nearer to a training subject than new people are.

Nearness is the angle between directions from the mean training latent: an average sample is near to everybody by
distance, and in nobody's direction more than a new person is; a copy is, also one that was shrunk towards the mean
(`evaluation.privacy.nearest.directional_squared` measures the same). How near new people come is read off held-out
latents: at level 0.05, one in twenty of them would be refused.

A refusal makes nobody safe who was learned otherwise than by copying, and it changes what is sampled: measure both
(evaluation.evaluate_synth), with people that neither split holds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from diffusion.dataset import Latents, LatentSpace
from runtime import seeding
from runtime.device import Device
from runtime.errors import InputError

MOST_DRAWS = 50
"""Samples drawn for one seed before it is given up: a generator refused so often copies, or is nobody's neighbour."""


@dataclass(frozen=True)
class Refusal:
    """What samples are compared with, and where they become too near."""

    centre: torch.Tensor
    """(F,): mean training latent in the network's space."""
    directions: torch.Tensor
    """(N, F): unit vectors from it to the training latents."""
    limit: float
    """Cosine above which a sample is refused."""

    def nearest(self, z: torch.Tensor) -> torch.Tensor:
        """Cosine of samples (B, C, D, H, W) in the network's space with the training subject most like them: (B,)."""
        return (F.normalize(z.flatten(1).float() - self.centre, dim=1) @ self.directions.T).amax(dim=1)

    def refuses(self, z: torch.Tensor) -> torch.Tensor:
        """bool (B,)."""
        return self.nearest(z) > self.limit

    def accepted(
        self, draw: Callable[[list[int], int], torch.Tensor], seeds: Sequence[int | None]
    ) -> tuple[torch.Tensor, list[int]]:
        """Samples of some seeds that are not refused, in the network's space, and how often each was before.

        Args:
            draw: latents of all places, of which the given ones count, by how many were drawn for these before.
            seeds: by place; None for a place whose sample nobody wants.

        Raises:
            InputError: MOST_DRAWS of one seed were refused.
        """
        z, refused = draw(list(range(len(seeds))), 0), [0] * len(seeds)
        for again in range(1, MOST_DRAWS + 1):
            found = torch.nonzero(self.refuses(z))[:, 0].tolist()
            near = [place for place in found if seeds[place] is not None]
            if not near:
                return z, refused
            if again < MOST_DRAWS:
                z[near] = draw(near, again)[near]
            for place in near:
                refused[place] = again
        listed = ", ".join(str(seeds[place]) for place in near)
        raise InputError(
            f"seeds {listed}: {MOST_DRAWS} samples in a row were nearer to a training subject than held-out people are;"
            " this model gives its training subjects away. Train with --mix-mm, fewer steps or a lower "
            "--model.linear-rank"
        )


def calibrate(
    folder: Path,
    space: LatentSpace,
    classes: int,
    device: Device,
    level: float,
    *,
    train: str = "train",
    held_out: str = "val",
) -> Refusal:
    """Reads the training and the held-out latents of a folder of VAE.save_latent; refuses `level` of the latter.

    Raises:
        InputError: the latents are not those that `space`, the diffusion model's, was fitted to; or so few are held out
            that none would be refused.
    """
    known, new = (Latents(folder, split, classes, device) for split in (train, held_out))
    there, trained = (known.vae, len(known)), (space.statistics.vae, space.statistics.count)
    if there != trained:
        raise InputError(
            f"{folder / train}: {there[1]} latents of VAE {there[0]}; the diffusion model was trained on {trained[1]} "
            f"of {trained[0]}, and with others nothing would be too near"
        )
    if not 0 < level < 1 or level * len(new) < 1:
        raise InputError(
            f"--refuse-level {level:g}: expected above 0 and below 1, and with {len(new)} held-out latents in "
            f"{folder / held_out} at least {1 / len(new):.2g}"
        )
    entered = space.enter(known.mu).flatten(1)
    centre = entered.mean(0)
    found = Refusal(centre, F.normalize(entered - centre, dim=1), 1.0)
    draw = seeding.generator(0, "refusal", device=device.kind)  # samples are posterior samples, means are not
    samples = new.batch(torch.arange(len(new)), torch.randn(new.mu.shape, generator=draw, device=device.kind)).z
    limit = torch.quantile(found.nearest(space.enter(samples)), 1 - level, interpolation="lower")
    return Refusal(centre, found.directions, float(limit))
