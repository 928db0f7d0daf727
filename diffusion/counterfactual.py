"""What a scan would look like with another label: encoded, inverted to noise under its own, generated under that.

    python -m diffusion.counterfactual --vae runs/demo/vae/checkpoints/best.pt \\
        --checkpoint runs/demo/diffusion/checkpoints/best.pt --csv data/demo/test.csv --to TLE-L --limit 40 \\
        --out runs/demo/counterfactuals/TLE-L

Nothing is drawn at random. Writes, for each scan, <subject>_scan.nii.gz (as the network sees it), _reconstruction (by
the VAE alone), _counterfactual, _difference (counterfactual minus reconstruction) and a picture; manifest.csv, which is
a table of the counterfactuals as any script reads it, with the label asked for as diagnosis and the scan's own beside
it; and measures.json, printed as a table: composition, reversibility, effectiveness and minimality
(`diffusion.intervention.measures`). A scan that has the label asked for stays as it is, and says how exact that is. The
same command continues a stopped one. Under torchrun the scans are shared among the processes.
"""

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from cohort.atlas import LICENCE_NOTE, REGIONS, atlas
from cohort.ledger import refuse_overlap
from cohort.scans import head_mask
from cohort.stacks import Volumes, load_scans
from cohort.tables import DIAGNOSES, SIDES, read_table, write_csv
from cohort.volumes import write_nifti
from diffusion.checkpoint import LoadedDiffusion, Weights, load_diffusion, refuse_other_vae
from diffusion.config import SIDE_CODES
from diffusion.covariates import SEX_CODES, standardise
from diffusion.intervention import measures
from diffusion.intervention.figures import ROWS, picture
from diffusion.intervention.inversion import generate, invert
from diffusion.sampler import Denoise, guided
from runtime import distributed
from runtime.checkpoints import git_commit
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.device import Device, pick_device
from runtime.errors import InputError, differences
from runtime.files import ROOT, locked, read_json, write_json
from VAE.checkpoint import LoadedVAE, load_vae
from VAE.latents import stem

LARGEST_ROUND_TRIP = 1e-3
"""Root mean square, of latents whose positions vary by about 1; a usual one is 1e-5."""
Label = Literal["HC", "TLE", "TLE-L", "TLE-R"]
"""A class, and where it is known the side."""


@dataclass(frozen=True)
class CounterfactualConfig(ScriptConfig):
    """Which scans, under which label, with what, and where to."""

    vae: Path
    """The VAE checkpoint that the diffusion model's latents came from."""
    checkpoint: Path
    """A diffusion checkpoint."""
    to: Label
    """The label asked for. TLE without a side is for checkpoints that were trained without sides."""
    csv: Path = ROOT / "data_csvs/test.csv"
    """Table of scans, with their own labels; patients' sides where --to names one."""
    own: tuple[Label, ...] = ()
    """Only scans whose own label is one of these, --own HC for example; by default all."""
    limit: int | None = None
    """At most so many scans of each own label, from the top of the table; by default all."""
    out: Path = ROOT / "runs/counterfactuals"
    """Folder of one label asked for."""
    steps: int = 10
    """Steps of DDIM, there and back. With very few the inversion may not converge, which is said; more than 10 change
    little."""
    guidance: float = 1.0
    """Classifier-free guidance, there and back; above 1 the label changes more than it does in the cohort."""
    regions: tuple[str, ...] = REGIONS
    """Regions of the atlas in which the label may change something, for the measure of minimality."""
    weights: Weights = "ema"
    """ema: weights averaged over training. raw: those of its last step."""
    allow_leak: bool = False
    """Also take scans of subjects that a checkpoint was trained on; measures.json then says so."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    cache_dir: Path | None = None
    """Folder of decoded scans; by default data/cache in the repository."""


class Models(NamedTuple):
    """Both checkpoints on their device."""

    vae: LoadedVAE
    diffusion: LoadedDiffusion
    device: Device

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Volumes (B, 1, D, H, W) to the network's latents, the posteriors' means."""
        return self.diffusion.space.enter(self.vae.model.encode(x)[0])

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """The inverse of `encode`, but for the VAE's error."""
        latent = self.device.tensor(self.diffusion.space.leave(z))
        return self.vae.model.decode(latent, self.vae.grid.shape)


def main(config: CounterfactualConfig) -> None:
    """Checks everything, makes what is missing, measures all."""
    frame, models = read_table(config.csv), load_models(config)
    check_request(config, frame, models)
    ledger = {*models.vae.ledger, *models.diffusion.ledger}
    what = f"{config.csv} with {config.vae} and {config.checkpoint}"
    leak = refuse_overlap(frame, ledger, what=what, allow_leak=config.allow_leak)
    if not models.diffusion.model.config.sides:  # to this network patients have no side
        frame = frame.assign(diagnosis=frame["diagnosis"].replace(dict.fromkeys(SIDES, "TLE")))
    volumes = Volumes(load_scans(frame, models.vae.grid, cache_dir=config.cache_dir), models.device)
    chosen = choose(volumes.frame, config)
    with ExitStack() as stack:
        if distributed.is_main():
            stack.enter_context(locked(config.out))
            claim(config, models)
        distributed.barrier()
        make(volumes, chosen, models, config)
        distributed.barrier()
        if distributed.dismiss():
            report(volumes, chosen, models, config, leak=leak)


def load_models(config: CounterfactualConfig) -> Models:
    """Both checkpoints on the device, in float32: a step is undone by the very numbers that made it."""
    device = pick_device("float32", config.threads)
    vae, diffusion = load_vae(config.vae), load_diffusion(config.checkpoint, weights=config.weights)
    refuse_other_vae(diffusion, vae)
    device.module(vae.model)
    device.module(diffusion.model)
    return Models(vae, diffusion, device)


def check_request(config: CounterfactualConfig, frame: pd.DataFrame, models: Models) -> None:
    """Refuses what the diffusion model has not learned, and scans that do not say which of its labels is theirs."""
    network, diffusion = models.diffusion.model.config, models.diffusion
    if network.classes <= max(DIAGNOSES.values()):
        raise InputError(f"{config.checkpoint}: trained on {network.classes} class; a counterfactual needs HC and TLE")
    if config.to in SIDES and not network.sides:
        hint = "ask for --to TLE, or train anew on latents that name both sides"
        raise InputError(f"--to {config.to}: {config.checkpoint} was trained without sides; {hint}")
    if config.to == "TLE" and network.sides:
        raise InputError(f"--to TLE: {config.checkpoint} knows sides; ask for --to TLE-L or TLE-R")
    sideless = frame.loc[(frame["label"] == 1) & (frame["side"] == ""), "subject"].tolist()
    if config.to in SIDES and sideless:
        hint = "write TLE-L or TLE-R as diagnosis, or add a column side"
        raise InputError.of(f"{config.csv}: --to {config.to} names a side, these patients have none; {hint}", sideless)
    if config.guidance != 1 and diffusion.label_dropout == 0:
        raise InputError(f"--guidance {config.guidance:g}: trained without label dropout, it has no null class")
    if config.limit is not None and config.limit < 1:
        raise InputError(f"--limit {config.limit}: expected 1 or more")
    if unknown := sorted(set(config.regions) - set(atlas(models.vae.grid).codes)):
        raise InputError(f"--regions: the atlas has no {', '.join(unknown)}")
    if not config.regions:
        raise InputError("--regions: expected one or more")
    diffusion.process.multistep_times(config.steps)


def choose(frame: pd.DataFrame, config: CounterfactualConfig) -> list[int]:
    """The rows of the scans to change."""
    wanted = frame[frame["diagnosis"].isin(config.own)] if config.own else frame
    if wanted.empty:
        raise InputError(f"{config.csv}: no scan is {' or '.join(config.own)}")
    return wanted.groupby("diagnosis", sort=False).head(config.limit or len(wanted)).index.tolist()


def claim(config: CounterfactualConfig, models: Models) -> None:
    """Marks the folder with what its files depend on; refuses one with files of other checkpoints or settings."""
    mine = {name: getattr(config, name) for name in ("to", "steps", "guidance", "weights")}
    mine |= {"vae": models.vae.hash, "diffusion": models.diffusion.hash}
    path = config.out / "settings.json"
    begun = path.exists() and any(config.out.glob("*_counterfactual.nii.gz"))
    if begun and (problems := differences("folder", read_json(path), mine)):
        raise InputError.of(f"{config.out}: counterfactuals of another request; choose another --out", problems)
    write_json(path, mine)


def make(volumes: Volumes, chosen: list[int], models: Models, config: CounterfactualConfig) -> None:
    """Writes the files of this process's share of the scans; <subject>.json, their row of the manifest, is the last."""
    grid, to = models.vae.grid, config.to
    origin = {row: {"own": volumes.frame["diagnosis"][row], "sha256": volumes.scans.hashes[row]} for row in chosen}
    missing = [row for row in chosen if not made(config.out / f"{stem(volumes.frame.iloc[row])}.json", origin[row])]
    bar = tqdm(distributed.shard(missing), desc=f"to {to}", unit="scan", disable=not distributed.is_main())
    for row in bar:
        entry, began = volumes.frame.iloc[row], time.perf_counter()
        images, errors = counterfactual(volumes.batch(torch.tensor([row])), entry, models, config)
        name = stem(entry)
        files = {kind: f"{name}_{kind}.nii.gz" for kind in images}
        for kind, image in images.items():
            write_nifti(config.out / files[kind], image, grid.affine)
        title, side = f"{name}: {entry.diagnosis}, generated as {to}", SIDES.get(to, entry.side)
        picture(config.out / f"{name}.png", images, grid, title=title, side=side)
        who = {column: entry[column] for column in ("subject", "session", "sex", "site", "group")}
        who["age"] = None if np.isnan(entry.age) else float(entry.age)
        asked, took = {"diagnosis": to, "file": files["counterfactual"]}, round(time.perf_counter() - began, 2)
        record = {**who, **asked, **origin[row], **files, "errors": errors, "seconds": took}
        write_json(config.out / f"{name}.json", record)


def made(path: Path, origin: dict[str, str]) -> bool:
    """Whether a scan's row is there and of the same file and label of its own."""
    return path.exists() and origin.items() <= read_json(path).items()


@torch.no_grad()
def counterfactual(
    x: torch.Tensor, entry: Any, models: Models, config: CounterfactualConfig
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Images (D, H, W) by their names in `figures.ROWS` of one scan (1, 1, D, H, W) and its row of the table; and its
    errors, by the columns that `measures.errors` reads.
    """
    process, steps = models.diffusion.process, config.steps
    own = conditioned(models, entry.diagnosis, entry, config)
    z = models.encode(x)
    noise = invert(own, z, process, steps)
    null = generate(own, noise, process, steps)
    latents = {"reconstruction": z, "composition": null, "counterfactual": null}
    if entry.diagnosis != config.to:
        changed = generate(conditioned(models, config.to, entry, config), noise, process, steps)
        # Two ways back: from the latent, and from the volume, which is encoded anew.
        both = torch.cat([changed, models.encode(models.decode(changed))])
        own, other = (conditioned(models, label, entry, config, count=2) for label in (entry.diagnosis, config.to))
        back, through_volume = generate(own, invert(other, both, process, steps), process, steps).split(1)
        twice = models.encode(models.decode(z))
        latents |= {"counterfactual": changed, "reversibility": back, "reversibility_volume": through_volume}
        latents |= {"vae_twice": twice}
    images = {name: models.decode(latent)[0, 0].float().cpu().numpy() for name, latent in latents.items()}
    scan = x[0, 0].float().cpu().numpy()
    head = head_mask(scan)
    errors = {f"{name}_error": measures.distance(image, scan, head) for name, image in images.items()}
    errors |= {"round_trip": float((null - z).square().mean().sqrt()), "noise_std": float(noise.std())}
    if not errors["round_trip"] <= LARGEST_ROUND_TRIP:
        trip = f"to noise and back changes its latent by {errors['round_trip']:.2g}"
        raise InputError(
            f"{stem(entry)}: the inversion did not converge ({trip}); give more --steps or less --guidance"
        )
    images |= {"scan": scan, "difference": images["counterfactual"] - images["reconstruction"]}
    return {name: images[name] for name in ROWS}, errors


def conditioned(models: Models, label: str, entry: Any, config: CounterfactualConfig, count: int = 1) -> Denoise:
    """The network under a label, of `count` latents at once, with the scan's own age and sex where it knows these.

    Other covariates are unknown: a volume that stayed as it is would contradict the label.
    """
    diffusion, kind = models.diffusion, models.device.kind
    y, side = (
        torch.tensor([code] * count, device=kind) for code in (DIAGNOSES[label], SIDE_CODES[SIDES.get(label, "")])
    )
    covariates = None
    if diffusion.covariates:
        known = {"age": float(entry.age), "sex": SEX_CODES[entry.sex]}
        values = torch.tensor([[known.get(name, math.nan) for name in diffusion.covariates]] * count)
        covariates = standardise(values, diffusion.covariates).to(kind)
    return guided(
        diffusion.model, diffusion.process, y, side=side, covariates=covariates, guidance=config.guidance
    )  # fmt: skip


def report(volumes: Volumes, chosen: list[int], models: Models, config: CounterfactualConfig, *, leak: bool) -> None:
    """manifest.csv and measures.json of the scans of this request, and the measures in print."""
    grid, names = models.vae.grid, [stem(volumes.frame.iloc[row]) for row in chosen]
    records = [read_json(config.out / f"{name}.json") for name in names]
    table = pd.DataFrame([record.pop("errors") | record for record in records])
    table = table[[*records[0], *(name for name in table if name not in records[0])]]  # who it is first
    write_csv(config.out / "manifest.csv", table)

    def read(kind: str) -> list[np.ndarray]:
        return [nib.load(config.out / f"{name}_{kind}.nii.gz").get_fdata(dtype=np.float32) for name in names]

    reconstructions, changed = read("reconstruction"), table["own"] != table["diagnosis"]
    found = {"errors": measures.errors(table)}
    if changed.any():
        cohort = (reconstruct(volumes, models), volumes.frame["diagnosis"])
        found["effectiveness"] = measures.effectiveness(table, reconstructions, read("counterfactual"), cohort, grid)
        rows = np.flatnonzero(changed)
        changes, scans = read("difference"), read("scan")
        heads = [head_mask(scans[row]) for row in rows]
        found["minimality"] = measures.minimality([changes[row] for row in rows], heads, config.regions, grid)
    origin = {**read_json(config.out / "settings.json"), "commit": git_commit(), "csv": str(config.csv)}
    counts = table.groupby("own").size().to_dict()
    result = {**origin, "scans": counts, "subjects_seen_in_training": leak, "regions": list(config.regions), **found}
    write_json(config.out / "measures.json", {**result, "licence": LICENCE_NOTE})
    print("\n".join(measures.lines(found)), f"\n{config.out / 'measures.json'}\n{LICENCE_NOTE}")


@torch.no_grad()
def reconstruct(volumes: Volumes, models: Models) -> list[np.ndarray]:
    """All scans of the table (D, H, W) through the VAE: the cohort that counterfactuals are compared with."""
    rows = tqdm(range(len(volumes)), desc="reconstructing the table", unit="scan", delay=2)
    scans = (models.decode(models.encode(volumes.batch(torch.tensor([row])))) for row in rows)
    return [image[0, 0].float().cpu().numpy() for image in scans]


if __name__ == "__main__":
    run_script(main, CounterfactualConfig, description=describe(__doc__))
