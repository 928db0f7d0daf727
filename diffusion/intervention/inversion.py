"""From a latent to the noise that DDIM makes it of, and back, to a stated error.

DDIM run backwards evaluates the network at the wrong end of each step, and the errors add up. Here each step is undone
by itself: the latent before it is the one that the step leads to the latent after it, an implicit equation, which is
solved by fixed-point iteration (the way of Pan et al. 2023, https://arxiv.org/abs/2309.04907) with Anderson's
acceleration. Samplers that carry two coupled latents and are undone without iteration (EDICT, Wallace et al. 2023,
https://arxiv.org/abs/2211.12446) are as exact, but the two drift apart on the way to noise, the further the more steps
there are (benchmarks/RESULTS.md).
"""

from collections.abc import Callable

import torch

from diffusion.process import Process
from diffusion.sampler import Denoise, Point, toward, transitions

TOLERANCE = 1e-6
"""Of a step's equation: root mean square by which an iteration moves latents whose positions vary by about 1."""
MOST_ITERATIONS = 50
"""Of a step; four are usual."""
DEPTH = 3
"""Earlier iterations that the acceleration combines."""


@torch.no_grad()
def invert(denoise: Denoise, z: torch.Tensor, process: Process, steps: int) -> torch.Tensor:
    """The noise that `generate` makes the latent z (B, C, D, H, W) of, with the same `denoise` and steps.

    Three to eight evaluations a step. With very few steps it may not converge: compare what `generate` makes of it.
    InputError for steps that the process does not have.
    """
    velocity = torch.zeros_like(z)
    for t, now, after in reversed(_transitions(process, steps)):
        keep, pull, weight = _in_velocity(process, now, after)
        target = z

        def before(velocity: torch.Tensor) -> torch.Tensor:
            return (target + pull * now[1] * velocity) / keep  # noqa: B023

        def again(z: torch.Tensor) -> torch.Tensor:
            nonlocal velocity
            velocity = (weight * z - denoise(z, t)) / now[1]  # noqa: B023
            return before(velocity)

        z = fixed_point(again, before(velocity))  # the first guess has the velocity of the step that was undone last
    return z


@torch.no_grad()
def generate(denoise: Denoise, z: torch.Tensor, process: Process, steps: int) -> torch.Tensor:
    """DDIM from noise z (B, C, D, H, W), at times evenly spaced in log(alpha / sigma) where the process has them.

    Evenly spaced timesteps would make the last steps so long that the equation of `invert` hardly contracts.
    """
    for t, now, after in _transitions(process, steps):
        z = toward(z, denoise(z, t), now, after)
    return z


def fixed_point(step: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    """Solves z = step(z) for z (B, ...), by Anderson acceleration, each case by itself.

    Source: Walker and Ni 2011 (https://doi.org/10.1137/10078356X), algorithm AA in its unconstrained form. Where people
    differ much along a few axes, plain iteration diverges along these at few steps.
    """
    moves, changes, last = [], [], None
    for _ in range(MOST_ITERATIONS):
        residual = step(z) - z
        if residual.square().mean().sqrt() < TOLERANCE:
            return z + residual
        if last is not None:
            moves, changes = [*moves, z - last[0]][-DEPTH:], [*changes, residual - last[1]][-DEPTH:]
        last = z, residual
        z = z + residual
        if moves:
            basis = torch.stack(changes, -1).flatten(1, -2)  # (B, F, depth)
            shares = _least_squares(basis, residual.flatten(1)[..., None])
            both = torch.stack(moves, -1).flatten(1, -2) + basis
            z = z - (both @ shares)[..., 0].view_as(z)
    return z


def _least_squares(basis: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(B, depth, 1) by which bases (B, F, depth) come nearest to (B, F, 1); columns may be nearly parallel."""
    basis, wanted = basis.double(), wanted.double()
    gram = basis.mT @ basis
    ridge = 1e-12 * gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] + torch.finfo(gram.dtype).tiny
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge * eye, basis.mT @ wanted).float()


def _transitions(process: Process, steps: int) -> list[tuple[float, Point, Point]]:
    return list(transitions(process, process.multistep_times(steps)))


def _in_velocity(process: Process, now: Point, after: Point) -> tuple[float, float, float]:
    """`sampler.toward` as keep z - pull sigma v, with the velocity v = (weight z - z_hat) / sigma of `Process`.

    On a diffusion that is a rotation by the angle between both points, whose iterations contract best.
    """
    kept = after[1] / now[1]
    pull = after[0] - kept * now[0]
    weight = 1.0 if process.is_flow else now[0]
    return kept + pull * weight, pull, weight
