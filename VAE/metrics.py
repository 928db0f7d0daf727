"""How close reconstructions are to their volumes (PSNR, SSIM, NMSE), which regions they lose, and what each latent
channel carries.

Regions are those of an atlas in template space. A scan is in the same space only up to its registration and individual
anatomy, so a region's error includes what lies next to it in this person; small and thin structures' most.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cohort.atlas import LICENCE_NOTE, Atlas
from cohort.pictures import gallery, new_figure, save
from cohort.scans import head_mask

SSIM_KERNEL = 7
"""Voxels along each axis of SSIM's uniform window."""
DEAD_NOISE_SHARE = 0.95
"""A channel with more posterior noise than this is dead: it carries less than 0.5 ln(1 + 1/19) = 0.026 nats a position.
The KL is no such test: a narrow channel that is the same everywhere has a large one, and tells the decoder nothing."""
MIN_VOXELS = 10
"""Regions with fewer voxels on the grid are left out: so few lie all at a border, and say more about registration. At
4 mm the amygdalae (19 voxels) stay."""
NOTE = (
    "Labels are of the template; scans agree with it up to registration and individual anatomy, so a region's error "
    "includes some of its neighbours. mae: mean absolute error of intensities in [0, 1]; bias: mean of reconstruction "
    "minus scan; nmse: squared error over squared signal."
)


def psnr(x_hat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB for volumes in [0, 1] (peak 1), float64 (); infinite for equal volumes."""
    return -10.0 * (x_hat - x).double().square().mean().log10()


def nmse(x_hat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Squared error over squared signal, sum over the voxels given; float64 ()."""
    return (x_hat - x).double().square().sum() / x.double().square().sum()


def ssim_map(x_hat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each voxel whose window lies inside the volume: float64 (D - 6, H - 6, W - 6), data
    range 1, computed where the volumes (D, H, W) are.

    Wang et al. 2004 (https://doi.org/10.1109/TIP.2003.819861), equation 13 with a uniform window, K1 = 0.01, K2 = 0.03.
    Written out here, and compared with MONAI's in a test, because importing MONAI takes longer than validating.
    """
    a, b = x_hat.double(), x.double()
    means = torch.stack([a, b, a * a, b * b, a * b])
    for axis in (1, 2, 3):  # a window's mean is the mean along one axis after the other
        means = means.unfold(axis, SSIM_KERNEL, 1).mean(-1)
    mean_a, mean_b, aa, bb, ab = means
    similarity = (2 * mean_a * mean_b + 0.01**2) * (2 * (ab - mean_a * mean_b) + 0.03**2)
    return similarity / ((mean_a**2 + mean_b**2 + 0.01**2) * (aa - mean_a**2 + bb - mean_b**2 + 0.03**2))


def reconstruction_metrics(x_hat: torch.Tensor, x: torch.Tensor) -> dict[str, float]:
    """PSNR, SSIM and NMSE of volumes (D, H, W) in [0, 1], computed where `x` is: ``..._head`` inside the head of `x`,
    and of the whole volume, where background inflates all three.
    """
    x_hat = x_hat.to(x).clamp(0.0, 1.0)
    head = torch.from_numpy(head_mask(x.cpu().numpy())).to(x.device)
    similarity, edge = ssim_map(x_hat, x), SSIM_KERNEL // 2
    inner = head[edge:-edge, edge:-edge, edge:-edge]
    measures = {
        "psnr_head": psnr(x_hat[head], x[head]), "ssim_head": similarity[inner].mean(),
        "nmse_head": nmse(x_hat[head], x[head]),
        "psnr": psnr(x_hat, x), "ssim": similarity.mean(), "nmse": nmse(x_hat, x),
    }  # fmt: skip
    return dict(zip(measures, torch.stack(list(measures.values())).tolist(), strict=True))


def draw_pairs(path: Path, pairs: list[tuple[np.ndarray, np.ndarray]], title: str) -> None:
    """A picture of scans, their reconstructions and the differences; pairs are (reconstruction, scan)."""
    reconstructions, scans = zip(*pairs, strict=True)
    differences = [x_hat - x for x_hat, x in pairs]
    rows = [("scan", list(scans)), ("reconstruction", list(reconstructions)), ("difference", differences)]
    gallery(path, rows, title=title, error_rows=(2,))


def posterior_sums(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """Of mu, mu^2, exp(logvar) and KL to the standard normal, over scans and positions: (4, C) float64."""
    mu, logvar = (value.detach().cpu().double().transpose(0, 1).flatten(1) for value in (mu, logvar))
    variance = logvar.exp()
    kl = 0.5 * (mu**2 + variance - 1 - logvar)  # Kingma & Welling 2014, appendix B
    return torch.stack([value.sum(1) for value in (mu, mu**2, variance, kl)])


def posterior_report(sums: list[torch.Tensor], positions: int) -> dict[str, Any]:
    """What each latent channel carries, from the `posterior_sums` of scans with so many positions each.

    Returns:
        ``scans``; ``channels``, for each one ``mean`` and ``std`` of mu over scans and positions, ``kl`` in nats per
        position, ``noise_share`` = E[exp(logvar)] / (Var mu + E[exp(logvar)]) and ``dead``; ``kl``, their KL added up;
        and ``dead``, the numbers of dead channels from 0.
    """
    mean, square, noise, kl = sum(sums) / (len(sums) * positions)
    variance = (square - mean**2).clamp(min=0)
    share = noise / (variance + noise)
    names = ("mean", "std", "kl", "noise_share")
    rows = torch.stack([mean, variance.sqrt(), kl, share], dim=1).tolist()
    channels = [{**dict(zip(names, row, strict=True)), "dead": row[3] > DEAD_NOISE_SHARE} for row in rows]
    dead = [number for number, channel in enumerate(channels) if channel["dead"]]
    return {"scans": len(sums), "channels": channels, "kl": float(kl.sum()), "dead": dead}


def region_errors(x_hat: np.ndarray, x: np.ndarray, regions: Atlas) -> pd.DataFrame:
    """Error of a reconstruction of a scan, both (D, H, W), in each region that has MIN_VOXELS on the same grid.

    Columns region, voxels, mae, bias (reconstruction minus scan), nmse (NaN without any signal).
    """
    codes = np.array(list(regions.names))
    labels, size = regions.labels.ravel(), codes.max() + 1
    signal = x.ravel().astype(np.float64)
    error = np.clip(x_hat, 0.0, 1.0).ravel() - signal

    def total(values: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(labels, values, minlength=size)[codes]

    voxels, power = total(), total(signal**2)
    frame = pd.DataFrame({"region": list(regions.names.values()), "voxels": voxels})
    frame["mae"], frame["bias"] = (total(value) / np.maximum(voxels, 1) for value in (np.abs(error), error))
    frame["nmse"] = np.divide(total(error**2), power, out=np.full(len(codes), np.nan), where=power > 0)
    return frame[voxels >= MIN_VOXELS].reset_index(drop=True)


def summarise_regions(errors: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (..._sd) of mae, bias and nmse over subjects, whose scans count as their mean; the
    largest mae first. `errors` are `region_errors` of all scans below each other, with a column subject.
    """
    measures = ["mae", "bias", "nmse"]
    by_subject = errors.groupby(["region", "voxels", "subject"], sort=False)[measures].mean()
    groups = by_subject.groupby(["region", "voxels"], sort=False)
    mean, sd = groups.mean(), groups.std(ddof=0).add_suffix("_sd")
    table = pd.concat([mean, sd, groups.size().rename("subjects")], axis=1).reset_index()
    columns = [column for name in measures for column in (name, f"{name}_sd")]
    table = table[["region", "voxels", *columns, "subjects"]]
    return table.sort_values("mae", ascending=False, kind="stable", ignore_index=True)


def region_report(table: pd.DataFrame, regions: Atlas, count: int = 10) -> dict[str, Any]:
    """What summary.json says: the `count` worst regions of `summarise_regions`, what is left out, and the notes."""
    worst = table.head(count).astype(object)
    counts = np.bincount(regions.labels.ravel(), minlength=max(regions.names) + 1)
    return {
        "worst": worst.where(worst.notna(), None).to_dict("records"),
        "regions": len(table),
        "min_voxels": MIN_VOXELS,
        "left_out": {name: int(counts[code]) for code, name in regions.names.items() if counts[code] < MIN_VOXELS},
        "note": NOTE,
        "licence": LICENCE_NOTE,
    }


def draw_regions(path: Path, table: pd.DataFrame, count: int = 24) -> None:
    """Bars of the `count` worst regions of `summarise_regions`, with one standard deviation over subjects."""
    shown, subjects = table.head(count), int(table["subjects"].max())
    figure = new_figure(figsize=(7.5, 1.4 + 0.24 * len(shown)), layout="constrained")
    axis = figure.subplots()
    axis.barh(range(len(shown)), shown["mae"], xerr=shown["mae_sd"], color="#b2182b", ecolor="#333333")
    axis.set_yticks(range(len(shown)), [f"{row.region} ({row.voxels})" for row in shown.itertuples()], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel("mean absolute error, intensities in [0, 1]; line: one standard deviation", fontsize=9)
    which = f"{len(shown)} worst of {len(table)} regions"
    figure.suptitle(f"Reconstruction error, {which} (voxels), mean of {subjects} subjects", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        "Labels in template space: scans agree up to individual anatomy. Neuromorphometrics labels, CC BY-NC.",
        fontsize=7, color="#555555",
    )  # fmt: skip
    save(figure, path)
