"""Generates synthetic volumes: two checkpoints in, one volume pickle per seed out.

    python -m diffusion.save_synth --vae runs/demo/vae/checkpoints/best.pt \\
        --diffusion runs/demo/diffusion/checkpoints/best.pt --label TLE --count 100 \\
        --out runs/demo/synthetic_data_pkls_TLE

--side L, R or mixed says of which side the epilepsy is, where the diffusion model knows sides. Volume k comes from
seed k alone. On a CPU it has the same bytes whatever the batch size, the number of processes or what was made before,
with as many threads and the same --tile; on a GPU it has them for equal batch sizes. Existing volumes are kept, so the
same command continues a stopped one. Each class has its folder (`diffusion.synthetic_folder`): <LABEL>_<seed>.pkl,
manifest.csv, settings.json, ledger.json, contact_sheet.png, with --nifti .nii.gz files that overlay the template in
any viewer. --bids DIR writes a BIDS derivative dataset besides. --refuse-near DIR draws again where a sample comes
nearer to a training subject than new people do (`diffusion.generation.refusal`).
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cohort.labelling.reading import open_reader
from cohort.pictures import gallery
from cohort.tables import CLASS_NAMES, LABELS
from cohort.volumes import read_volume, volume_name
from diffusion.checkpoint import LoadedDiffusion, Weights, load_diffusion, refuse_other_space, refuse_other_vae
from diffusion.export import bids_derivative, nifti
from diffusion.export.labelled import label_volumes, read_rows
from diffusion.generation.refusal import calibrate
from diffusion.generation.volumes import Models, generate
from diffusion.sampler import check_sampler
from diffusion.synthetic_folder import Settings, SyntheticFolder, Wanted, read_wanted
from runtime import distributed
from runtime.cli import describe, run_script
from runtime.config import DeviceConfig
from runtime.device import pick_device
from runtime.errors import InputError
from runtime.files import ROOT, locked
from VAE.checkpoint import load_vae


@dataclass(frozen=True)
class SaveSynthConfig(DeviceConfig):
    """What to generate, with what, and where to."""

    vae: Path
    """The VAE checkpoint that the diffusion model's latents came from."""
    diffusion: Path
    """A diffusion checkpoint."""
    label: Literal["HC", "TLE"] | None = None
    """Class of all volumes; or give --table."""
    side: Literal["L", "R", "mixed", "unknown"] | None = None
    """Side of the TLE: mixed is L for even and R for odd seeds; unknown leaves it to the model. By default mixed where
    the checkpoint knows sides; others are asked for none."""
    count: int | None = None
    """Number of volumes of --label, 100 by default: seeds first_seed ... first_seed + count - 1."""
    table: Path | None = None
    """Instead of --label: a CSV of wanted volumes with the column label and, optionally, side (L or R, of a TLE), seed,
    age (years), sex (F or M) and count; empty side, age and sex are unknown to the model."""
    out: Path | None = None
    """Folder of one class, where {label} stands for its name; by default synthetic_data_pkls_{label} in the
    repository."""
    sampler: Literal["dpmpp", "ddpm", "ddim", "euler", "heun"] = "dpmpp"
    """ddpm: ancestral, noise at every step. ddim, dpmpp: deterministic; dpmpp needs fewest steps. euler, heun: for
    flows."""
    steps: int = 25
    """Sampling steps."""
    guidance: float = 1.0
    """Classifier-free guidance; 1 is the plain conditional model, larger is more typical of the class, less diverse."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels in which guidance acts, low and high, as shares of the process's time."""
    guide_by: Path | None = None
    """Autoguidance: checkpoint of a smaller or less trained model on the same latents, whose prediction stands for the
    unconditional one in --guidance: samples move away from what it does worse, and not towards their class."""
    refuse_near: Path | None = None
    """Folder of the latents that the diffusion model was trained on: samples nearer to one of them than held-out people
    are get drawn again, from the same seed's next numbers. The manifest counts them."""
    refuse_level: float = 0.05
    """Share of held-out people who would be refused as too near; more refuses more."""
    weights: Weights = "ema"
    """ema: weights averaged over training. raw: those of its last step."""
    first_seed: int = 0
    """Seed of the first volume; with a table, of the first row without a seed."""
    batch_size: int | None = None
    """Volumes generated at once on a GPU, 16 by default: volume k has the same bytes in runs with the same batch size.
    A CPU has its own: same bytes whatever is given."""
    tile: int = 0
    """Decode in slabs of so many voxels, an even multiple of the VAE's reduction: less memory, the same to rounding."""
    nifti: bool = False
    """Also write each volume as .nii.gz with its true affine."""
    bids: Path | None = None
    """Also write the volumes into this BIDS derivative dataset; both classes may share one."""
    labels: Path | None = None
    """Checkpoint of cohort.labelling.train: also write the labels and the volumes of the atlas' regions beside each
    volume, and into --bids."""
    verify: bool = False
    """First read every volume that the folder has and compare its SHA-256 with the manifest's."""


def main(config: SaveSynthConfig) -> None:
    """Checks everything, then makes what is missing of each class."""
    wanted = list_wanted(config)
    models = load_models(config, wanted)
    if models.diffusion.model.config.sides and config.label == "TLE":
        same = {"L": "L", "R": "R", "unknown": ""}  # else by the seed alone, so that volume k stays volume k
        wanted = [replace(item, side=same.get(config.side, "LR"[item.seed % 2])) for item in wanted]
    folders = open_folders(config, wanted, models)
    for folder, part in folders:
        folder.refuse_others()
        if models.reader is not None:
            read_rows(folder.path, models.reader.hash)  # refuses those of others before anything is made
        if config.bids is not None:
            bids_derivative.refuse_others(config.bids, part, folder.settings, models.vae.grid)
    with ExitStack() as stack:
        if distributed.is_main():
            for folder, _ in folders:
                stack.enter_context(locked(folder.path))
                ledger = {*models.vae.ledger, *models.diffusion.ledger, *(models.guide.ledger if models.guide else ())}
                folder.settle(ledger, adopt=not models.diffusion.covariates)
        distributed.barrier()
        for folder, part in folders:
            if config.verify:
                folder.verify()
            make(folder, part, models, config)
        if config.bids is not None and distributed.is_main():
            bids_derivative.describe(config.bids)


def list_wanted(config: SaveSynthConfig) -> list[Wanted]:
    """The volumes to make, from --label and --count, still without a side, or from --table."""
    if (config.label is None) == (config.table is None) or (config.table is not None and config.count is not None):
        raise InputError("give either --label, with --count, or --table")
    if config.side is not None and config.label != "TLE":
        raise InputError(f"--side {config.side} goes with --label TLE; a table has a column side")
    for name, least in (("first_seed", 0), ("count", 1), ("batch_size", 1)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: expected {least} or more")
    if config.table is not None:
        return read_wanted(config.table, config.first_seed)
    count = 100 if config.count is None else config.count
    return [Wanted(LABELS[config.label], seed) for seed in range(config.first_seed, config.first_seed + count)]


def load_models(config: SaveSynthConfig, wanted: list[Wanted]) -> Models:
    """All checkpoints on the device; refuses those that do not belong together or cannot make what is asked for."""
    device = pick_device(config.precision, config.threads)
    vae, diffusion = load_vae(config.vae), load_diffusion(config.diffusion, weights=config.weights)
    refuse_other_vae(diffusion, vae)
    guide = load_diffusion(config.guide_by) if config.guide_by else None
    vae.refuse_tile(config.tile)
    check_request(config, wanted, diffusion)
    if guide is not None:
        refuse_other_space(diffusion, guide)
    device.module(vae.model)
    if device.compiles(config.compile):
        vae.model.compile_parts()
    for loaded in (diffusion, *([guide] if guide else [])):
        device.module(loaded.model)
        if device.compiles(config.compile):
            loaded.model.compile_step()
    near, classes = config.refuse_near, diffusion.model.config.classes
    refusal = calibrate(near, diffusion.space, classes, device, config.refuse_level) if near else None
    reader = open_reader(config.labels, vae.grid, device) if config.labels else None
    return Models(vae, diffusion, device, refusal, reader, config.tile, guide)


def check_request(config: SaveSynthConfig, wanted: list[Wanted], diffusion: LoadedDiffusion) -> None:
    """Refuses what the diffusion model cannot do: sampler, steps, guidance, a side or a covariate it does not know."""
    low, high = config.guidance_interval
    if not 0 <= low <= high <= 1:
        raise InputError(f"--guidance-interval {low:g} {high:g}: expected 0 <= low <= high <= 1")
    if config.guide_by and config.guidance == 1:
        raise InputError(f"--guide-by {config.guide_by}: at --guidance 1 nothing is guided; give more, such as 2")
    if config.guidance != 1 and diffusion.label_dropout == 0 and config.guide_by is None:
        raise InputError(f"--guidance {config.guidance:g}: trained without label dropout, it has no null class")
    check_sampler(config.sampler, diffusion.process, config.steps)
    if config.side is not None and not diffusion.model.config.sides:
        hint = "leave --side out, or train anew on latents that name both sides"
        raise InputError(f"--side {config.side}: {config.diffusion} was trained without sides; {hint}")
    known = [*diffusion.covariates, *(["side"] if diffusion.model.config.sides else [])]
    asked = {name for item in wanted for name, text in item.texts().items() if text}
    if unknown := sorted(asked - set(known)):
        said = ", ".join(known) or "none"
        raise InputError(f"{config.table}: asks for {', '.join(unknown)}; {config.diffusion} knows of these: {said}")


def open_folders(
    config: SaveSynthConfig, wanted: list[Wanted], models: Models
) -> list[tuple[SyntheticFolder, list[Wanted]]]:
    """The folder of each class that volumes are wanted of, and these. Nothing is written yet."""
    out = str(config.out or ROOT / "synthetic_data_pkls_{label}")
    labels = sorted({item.label for item in wanted})
    if len(labels) > 1 and "{label}" not in out:
        raise InputError(f"--out {out}: volumes of two classes need two folders; write {{label}} where the class goes")
    level, guide = config.refuse_level if config.refuse_near else 0.0, models.guide.hash if models.guide else ""
    sampling = (config.weights, config.sampler, config.steps, config.guidance, config.guidance_interval, level)
    folders = []
    for label in labels:
        settings = Settings(label, models.vae.hash, models.diffusion.hash, *sampling, guide)
        folder = SyntheticFolder(Path(out.replace("{label}", CLASS_NAMES[label])), settings)
        folders.append((folder, [item for item in wanted if item.label == label]))
    return folders


def make(folder: SyntheticFolder, wanted: list[Wanted], models: Models, config: SaveSynthConfig) -> None:
    """Makes what is missing of one class, this process's share; the main process then closes the books and draws the
    first six volumes, three planes each.
    """
    missing, label = folder.missing(wanted), CLASS_NAMES[folder.settings.label]
    generate(folder, missing, models, config.batch_size)
    distributed.barrier()  # another process made what this one exports
    asked = {"nifti": config.nifti, "bids": config.bids}
    nifti.export(folder, distributed.shard(wanted), models.vae.grid, **asked)
    distributed.barrier()
    if distributed.is_main():
        folder.merge()
        images = [read_volume(folder.path / volume_name(item.label, item.seed)).image for item in wanted[:6]]
        rows = [(f"seed {wanted[k].seed} ...", images[k : k + 3]) for k in range(0, len(images), 3)]
        gallery(folder.path / "contact_sheet.png", rows, title=f"synthetic {label}")
        print(f"{len(missing)} new of {len(wanted)} {label} volumes in {folder.path}")
        if models.reader is not None:
            failed = label_volumes(folder.path, wanted, models.reader, config.bids)
            print(f"labels and volumes.csv beside them; in {len(failed)} nothing could be measured", *failed[:10])
        if models.refusal is not None:
            rows = folder.rows()
            refused = sum(int(rows[volume_name(item.label, item.seed)]["refused"] or 0) for item in wanted)
            print(f"{refused} of {len(wanted) + refused} samples were too near to a training subject, and drawn again")


if __name__ == "__main__":
    run_script(main, SaveSynthConfig, description=describe(__doc__))
