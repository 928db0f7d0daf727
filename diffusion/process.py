"""What noise does to a latent, and what a network may predict of it: diffusion in discrete time, and rectified flow.

z_t = alpha_t z + sigma_t eps. Diffusion keeps the variance, alpha^2 + sigma^2 = 1, over timesteps 0 ... T - 1; a flow
goes straight, alpha = 1 - s and sigma = s, over continuous times s in (0, 1], which the network takes as t = s T. All
methods are pure.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F

from diffusion.config import ProcessConfig
from runtime.errors import InputError

LEAST_ALPHA = 0.005
"""Where sampling starts: the linear schedule ends above it. The cosine schedule goes on to 5e-5, where there is no more
signal to find, but a noise prediction's error would reach the clean latent divided by alpha."""


@dataclass(frozen=True)
class Process(ABC):
    """A path from latents to noise and the prediction target: noise eps, x0 (the clean latent) or velocity."""

    target: str
    timesteps: int
    """T: timesteps of a diffusion, name of time 1 of a flow."""
    is_flow: ClassVar[bool]

    @abstractmethod
    def coefficients(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha_t and sigma_t for times (B,) on the network's scale, float32, shaped (B, 1, 1, 1, 1)."""

    @abstractmethod
    def at(self, t: float) -> tuple[float, float]:
        """alpha_t and sigma_t of one time on the network's scale, as float64 numbers."""

    @abstractmethod
    def velocity_weights(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(p, q) of the velocity p eps - q z at times (B,), in a shape that broadcasts over latents.

        They satisfy p alpha + q sigma = 1, so that the clean latent is p z_t - sigma v.
        """

    @abstractmethod
    def draw_times(self, count: int, generator: torch.Generator, device: torch.device | str) -> torch.Tensor:
        """Training times (count,) on the network's scale, from a generator on the same device."""

    @abstractmethod
    def spread_times(self, places: torch.Tensor) -> torch.Tensor:
        """Times at places (B,) in [0, 1) of the whole range, for losses that are compared with each other."""

    @abstractmethod
    def times(self, steps: int) -> list[float]:
        """Sampling times on the network's scale, noisiest first, without the clean state that follows.

        InputError for no steps, and for more than a diffusion has times.
        """

    def multistep_times(self, steps: int) -> list[float]:
        """`times` for a sampler that extrapolates over the steps before."""
        return self.times(steps)

    def noised(self, z: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """z_t (B, C, D, H, W) from clean latents, standard normal noise and times (B,)."""
        alpha, sigma = self.coefficients(t)
        return alpha * z + sigma * eps

    def wanted(self, z: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the network should predict; linear in (z, eps)."""
        if self.target in ("noise", "x0"):
            return eps if self.target == "noise" else z
        p, q = self.velocity_weights(t)
        return p * eps - q * z

    def clean(self, prediction: torch.Tensor, z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The clean latent that a prediction implies."""
        if self.target == "x0":
            return prediction
        alpha, sigma = self.coefficients(t)
        if self.target == "noise":
            return (z_t - sigma * prediction) / alpha
        return self.velocity_weights(t)[0] * z_t - sigma * prediction

    def loss(self, prediction: torch.Tensor, z: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Mean squared error of each case (B,), in the target's units."""
        return F.mse_loss(prediction, self.wanted(z, eps, t), reduction="none").flatten(1).mean(1)


@dataclass(frozen=True)
class Diffusion(Process):
    """Variance-preserving diffusion; t is int64 in 0 ... T - 1.

    Sources: Ho et al. 2020 (DDPM, https://arxiv.org/abs/2006.11239), equation 4; Salimans and Ho 2022
    (https://arxiv.org/abs/2202.00512), appendix D, for the velocity alpha eps - sigma z; Hang et al. 2023
    (https://arxiv.org/abs/2303.09556), section 3.4, for the weights.
    """

    is_flow: ClassVar[bool] = False
    alphas_bar: torch.Tensor
    """alpha_t^2: the share of the signal's variance left at each timestep, float64 (T,)."""
    min_snr: float = 0.0
    """Cap on the signal-to-noise ratio in the loss weights; 0 weighs all timesteps equally."""
    _tables: dict[torch.device, torch.Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    """alpha and sigma (2, T) by device, copied there once."""

    def coefficients(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if t.device not in self._tables:  # rounded once from float64
            exact = torch.stack([self.alphas_bar.sqrt(), (1.0 - self.alphas_bar).sqrt()])
            self._tables[t.device] = exact.float().to(t.device)
        alpha, sigma = self._tables[t.device][:, t].view(2, -1, 1, 1, 1, 1)
        return alpha, sigma

    def at(self, t: float) -> tuple[float, float]:
        alpha_bar = float(self.alphas_bar[int(t)])
        return math.sqrt(alpha_bar), math.sqrt(1.0 - alpha_bar)

    def velocity_weights(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.coefficients(t)

    def draw_times(self, count: int, generator: torch.Generator, device: torch.device | str) -> torch.Tensor:
        return torch.randint(self.timesteps, (count,), generator=generator, device=device)

    def spread_times(self, places: torch.Tensor) -> torch.Tensor:
        # A place just below 1 may round to T.
        return (places * self.timesteps).long().clamp(max=self.timesteps - 1)

    def times(self, steps: int) -> list[float]:
        """Timesteps evenly spaced from the last down to 0; from `LEAST_ALPHA` down where the target is noise."""
        self._check(steps)
        last = self._last(steps) if self.target == "noise" else self.timesteps - 1
        if steps == 1:
            return [last]
        return [round(last * (steps - 1 - k) / (steps - 1)) for k in range(steps)]

    def multistep_times(self, steps: int) -> list[float]:
        """Timesteps evenly spaced in log(alpha / sigma), from `LEAST_ALPHA` down to 0.

        Even timesteps make the last steps the longest in this measure, in which a multistep sampler extrapolates: with
        25 of them DPM-Solver++(2M) makes a Gaussian up to 25 percent too wide, with these 1 percent.
        """
        self._check(steps)
        last, half_log_snr = self._last(steps), 0.5 * torch.logit(self.alphas_bar)
        grid = torch.linspace(float(half_log_snr[last]), float(half_log_snr[0]), steps, dtype=torch.float64)
        nearest = (half_log_snr[: last + 1] - grid[:, None]).abs().argmin(1).tolist()
        times = [last]
        for k, t in enumerate(nearest[1:], start=1):
            # Where the grid is finer than the timesteps, each is used once and enough are left for the rest.
            times.append(min(max(t, steps - 1 - k), times[-1] - 1))
        return times

    def _check(self, steps: int) -> None:
        if not 1 <= steps <= self.timesteps:
            raise InputError(f"--steps {steps}: the schedule has {self.timesteps}")

    def _last(self, steps: int) -> int:
        """The noisiest timestep above `LEAST_ALPHA`, or of all where `steps` would not fit below it."""
        last = int((self.alphas_bar >= LEAST_ALPHA**2).sum()) - 1
        return last if steps <= last + 1 else self.timesteps - 1

    def loss(self, prediction: torch.Tensor, z: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Mean squared error of each case (B,), times the min-SNR weight where a cap is set.

        The weights make any target's loss the same: min(snr, cap) times the error of the clean latent.
        """
        error = super().loss(prediction, z, eps, t)
        if self.min_snr == 0.0:
            return error
        alpha, sigma = (value.view(-1) for value in self.coefficients(t))
        snr = (alpha / sigma).square()
        scale = {"noise": snr, "x0": torch.ones_like(snr), "velocity": snr + 1.0}[self.target]
        return error * snr.clamp(max=self.min_snr) / scale


@dataclass(frozen=True)
class Flow(Process):
    """Rectified flow; t is float in (0, T], and its velocity is eps - z. Target noise is singular at t = T.

    Sources: Liu et al. 2022 (https://arxiv.org/abs/2209.03003), equation 1; Esser et al. 2024
    (https://arxiv.org/abs/2403.03206), equations 19 (logit-normal times) and 23 (shift).
    """

    is_flow: ClassVar[bool] = True
    time_mean: float = 0.0
    time_std: float = 1.0
    """Mean and standard deviation of the logit of training times; deviation 0 draws times evenly."""
    shift: float = 1.0
    """As `shifted` has it."""

    def coefficients(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sigma = (t.float() / self.timesteps).view(-1, 1, 1, 1, 1)
        return 1.0 - sigma, sigma

    def at(self, t: float) -> tuple[float, float]:
        return 1.0 - t / self.timesteps, t / self.timesteps

    def velocity_weights(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ones: the velocity is the derivative of z_t along the straight path."""
        ones = torch.ones((), device=t.device)
        return ones, ones

    def draw_times(self, count: int, generator: torch.Generator, device: torch.device | str) -> torch.Tensor:
        """Logit-normal times, or even ones, then the shift."""
        if self.time_std == 0.0:
            share = 1.0 - torch.rand(count, generator=generator, device=device)  # (0, 1]
        else:
            normal = torch.randn(count, generator=generator, device=device)
            share = torch.sigmoid(self.time_mean + self.time_std * normal)
        return shifted(share, self.shift) * self.timesteps

    def spread_times(self, places: torch.Tensor) -> torch.Tensor:
        """place T, without the shift; place 0 is moved to the smallest time float32 tells from it."""
        return places.clamp(min=torch.finfo(torch.float32).eps) * self.timesteps

    def times(self, steps: int) -> list[float]:
        """Evenly spaced from T down to T / steps, then shifted."""
        if steps < 1:
            raise InputError(f"--steps {steps}: expected 1 or more")
        return [shifted(1.0 - k / steps, self.shift) * self.timesteps for k in range(steps)]


def shifted(share: torch.Tensor | float, shift: float) -> torch.Tensor | float:
    """Flow times in [0, 1] moved towards noise (shift above 1) with both ends fixed; Esser et al. 2024, equation 23."""
    return shift * share / (1.0 + (shift - 1.0) * share)


def betas(schedule: str, timesteps: int) -> torch.Tensor:
    """Variances added at each timestep of a diffusion, float64 (timesteps,).

    linear: they rise linearly (DDPM, section 4). scaled_linear: their square roots do (Rombach et al. 2022,
    https://arxiv.org/abs/2112.10752, released configurations). cosine: alpha^2 falls as a squared cosine (Nichol and
    Dhariwal 2021, https://arxiv.org/abs/2102.09672, equation 17).
    """
    if schedule == "linear":
        return torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(math.sqrt(0.0015), math.sqrt(0.0195), timesteps, dtype=torch.float64).square()
    share = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    alphas_bar = torch.cos((share + 0.008) / 1.008 * math.pi / 2).square()
    return (1.0 - alphas_bar[1:] / alphas_bar[:-1]).clamp(max=0.999)


def build_process(config: ProcessConfig) -> Process:
    """The process of a configuration; refuses numbers out of range and settings that do not go together."""
    if problems := _problems(config):
        raise InputError.of("noising process refused", problems)
    if config.schedule == "flow":
        return Flow(config.target, config.timesteps, config.time_mean, config.time_std, config.shift)
    alphas_bar = torch.cumprod(1.0 - betas(config.schedule, config.timesteps), dim=0)
    return Diffusion(config.target, config.timesteps, alphas_bar, config.min_snr)


def _problems(config: ProcessConfig) -> list[str]:
    """Settings with impossible values, or that the schedule does not have, one line each."""
    at_least = {"timesteps": 1, "min_snr": 0.0, "time_mean": -math.inf, "time_std": 0.0, "shift": 1e-6}
    problems = [
        f"{name} {getattr(config, name)}, expected a finite number, at least {least}"
        for name, least in at_least.items()
        if not (math.isfinite(getattr(config, name)) and getattr(config, name) >= least)
    ]
    usual, schedule = ProcessConfig(), f"with schedule {config.schedule}"
    if config.schedule == "flow":
        foreign = {"min_snr": "a flow is weighted by time_mean and time_std"}
        if config.target == "noise":
            problems.append(f"target noise {schedule}: at time 1 it says nothing of the latent; use velocity or x0")
    else:
        foreign = dict.fromkeys(("time_mean", "time_std", "shift"), "only a flow has it")
    return problems + [
        f"{name} {getattr(config, name)} {schedule}: {reason}"
        for name, reason in foreign.items()
        if getattr(config, name) != getattr(usual, name)
    ]
