"""Where a small run starts from: the exact denoiser of one Gaussian per class and side, fitted to training latents.

A new DiT predicts nothing, and a few hundred steps are too few to learn even how a brain varies linearly. A Gaussian
knows that in closed form, so the network starts from it and learns what a Gaussian misses.
"""

import math

import torch
from torch import nn

from diffusion.config import NO_SIDE
from diffusion.model.start_means import Means, fit_means
from diffusion.process import Process


class LinearStart(nn.Module):
    """The best prediction from a noised latent, for z ~ N(m_y, U diag(variances) U^T + P R P) in class y.

    U are `rank` principal axes, P = I - U U^T, and R is stationary: diagonal in the frequencies of a cosine transform,
    channel by channel. A white rest, as in probabilistic PCA (Tipping and Bishop 1999,
    https://doi.org/10.1111/1467-9868.00196), would be noise where brains have edges. With z_t = alpha z + sigma eps,
    and s the variance along an axis or of a frequency, the centred z_t - alpha m_y says about the centred z
    E[z] = alpha s / (alpha^2 s + sigma^2) of it and about the noise E[eps] = sigma / (alpha^2 s + sigma^2) of it. The
    target is linear in z and eps, so the same combination of these gains is its best prediction. That is exact for a
    white rest or no axes; else P and R do not quite commute, and gains of P R P are taken to be those of R within P.

    The null class, `classes` itself, has the mean of all latents. With `sides`, a class's latents of a known side have
    a mean of their own, m_L or m_R; the mean of the class, which those of unknown side get, is that of the mixture.
    With `covariates`, so many, the means follow them by least squares (`start_means`). `window` as `ModelConfig`'s.
    """

    fixed = True
    """Once fitted: see `runtime.training.copy_weights`."""

    def __init__(
        self, rank: int, latent_shape: tuple[int, int, int, int], classes: int, process: Process, *,
        sides: bool = False, covariates: int = 0, window: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        size, rows = math.prod(latent_shape), classes + 1 + (NO_SIDE if sides else 0)  # classes, null, L, R
        self.process, self.classes, self.sides, self.window = process, classes, sides, window
        self.register_buffer("axes", torch.zeros(rank, size))
        self.register_buffer("variances", torch.zeros(rank))
        self.register_buffer("spectrum", torch.zeros(latent_shape))
        self.register_buffer("means", torch.zeros(rows, size))
        self.register_buffer("slopes", torch.zeros(covariates, size) if covariates else None)
        self.register_buffer("centres", torch.zeros(rows, covariates) if covariates else None)
        for axis, extent in zip("DHW", latent_shape[1:], strict=True):
            self.register_buffer(f"cosines_{axis}", cosines(extent), persistent=False)

    def rows(self, y: torch.Tensor, side: torch.Tensor | None) -> torch.Tensor:
        """Which of the means belong to classes y (B,) and sides (B,) as `DiT.forward` takes them: (B,)."""
        if side is None or not self.sides:
            return y
        return torch.where(side == NO_SIDE, y, self.classes + 1 + side)

    @torch.no_grad()
    def fit(
        self, z: torch.Tensor, y: torch.Tensor, side: torch.Tensor | None = None, covariates: torch.Tensor | None = None
    ) -> None:
        """Fits to training latents z (N, C, D, H, W) in the network's space, N > rank, classes and sides (N,), int64,
        and standardised covariates (N, K), NaN where unknown.

        With `sides`, the training latents must hold both.
        """
        rank, shape = len(self.axes), tuple(z.shape[1:])
        flat, rows, covariates = z.flatten(1).double(), self.rows(y, side), self._taken(covariates)
        found = fit_means(flat, y, rows, len(self.means), self.classes, covariates, self.window, shape)
        self.means.copy_(found.means)
        if self.slopes is not None:
            self.slopes.copy_(found.slopes)
            self.centres.copy_(found.centres)
        flat = (flat - self._means().of(rows, covariates).double()).float()
        axes, variances = principal_axes(flat, rank)
        self.axes.copy_(axes)
        self.variances.copy_(variances)
        flat -= (flat @ axes.T) @ axes
        parts = flat.view_as(z).split(64)
        self.spectrum.copy_(sum(self.cosine_transform(part).square().sum(0) for part in parts) / len(flat))

    def _taken(self, covariates: torch.Tensor | None) -> torch.Tensor | None:
        return None if self.slopes is None else covariates

    def _means(self) -> Means:
        none = self.means.new_zeros(0, self.means.shape[1])
        return Means(self.means, none if self.slopes is None else self.slopes, self.centres)

    def cosine_transform(self, z: torch.Tensor, *, inverse: bool = False) -> torch.Tensor:
        """Orthonormal cosine transform (DCT-II) of (B, C, D, H, W) along its last three axes, or back."""
        for axis, matrix in enumerate((self.cosines_D, self.cosines_H, self.cosines_W), start=2):
            # One axis after the other: as one contraction, einsum would first multiply the matrices with each other.
            z = torch.tensordot(z, matrix, ([axis], [0 if inverse else 1])).movedim(-1, axis)
        return z

    def forward(
        self, z_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor, side: torch.Tensor | None = None,
        covariates: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Prediction in the shape of z_t (B, C, D, H, W), for times t, classes y and sides, (B,) each, and covariates
        (B, K) as `DiT.forward` takes them.
        """
        with torch.autocast(z_t.device.type, enabled=False):  # bfloat16 would round what is known exactly
            alpha, _ = self.process.coefficients(t)  # (B, 1, 1, 1, 1)
            m = self._means().of(self.rows(y, side), self._taken(covariates)).view_as(z_t)
            centred = z_t - alpha * m
            scores = centred.flatten(1) @ self.axes.T  # (B, rank)
            rest = centred - (scores @ self.axes).view_as(z_t)
            rest = self.cosine_transform(rest) * self.gains(self.spectrum[None], t)
            rest = self.cosine_transform(rest, inverse=True).flatten(1)
            scores = scores * self.gains(self.variances.view(1, -1, 1, 1, 1), t).flatten(1) - rest @ self.axes.T
            prediction = rest + scores @ self.axes
            return prediction.view_as(z_t) + self.process.wanted(m, torch.zeros_like(m), t)

    def gains(self, variances: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What of a centred z_t is predicted along axes of the given variances (1, ...), for times t (B,): (B, ...)."""
        alpha, sigma = self.process.coefficients(t)
        spread = alpha**2 * variances + sigma**2
        return self.process.wanted(alpha * variances / spread, sigma / spread, t)


def principal_axes(centred: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `rank` principal axes (rank, F) of rows (N, F), orthonormal, and the variances along them.

    Only eigenvalues need float64; products, in which nearly all of the time goes, have the type of `centred`.
    """
    N, size = centred.shape
    if size < N:
        values, axes = torch.linalg.eigh((centred.T @ centred).double())  # ascending
        return axes.T.flip(0)[:rank].to(centred), values.flip(0)[:rank] / N
    values, weights = torch.linalg.eigh((centred @ centred.T).double())  # smaller, and of the same values
    axes = weights.T.flip(0)[:rank].to(centred) @ centred
    # Orthogonal already, but for those without variance: rows that sum to zero span fewer than N dimensions.
    return torch.linalg.qr(axes.T)[0].T, values.flip(0)[:rank].clamp(min=0) / N


def cosines(extent: int) -> torch.Tensor:
    """Matrix (extent, extent) of the orthonormal DCT-II: its product with a signal is the signal's transform."""
    k, n = torch.arange(extent, dtype=torch.float64)[:, None], torch.arange(extent, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * n + 1) * k / (2 * extent)) * math.sqrt(2.0 / extent)
    matrix[0] /= math.sqrt(2.0)
    return matrix.float()
