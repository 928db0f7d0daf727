"""Gathers evidence about every attribution method from the networks of planted conditions."""

from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from classifier.checkpoint import LoadedClassifier, load_classifier
from classifier.dataset import Volumes
from classifier.measures.resampling import bootstrap_weights, cell
from classifier.saliency import attribution
from classifier.validation import counterfactuals, faithfulness
from classifier.validation import evidence as measure
from classifier.validation.checks import Evidence
from classifier.validation.config import ValidationConfig
from classifier.validation.evidence import Maps, Truth
from classifier.validation.planted import Condition, levels, mark_of, region_share
from cohort.atlas import Atlas, atlas
from cohort.grids import parse_grid
from cohort.ledger import refuse_overlap
from cohort.scans import head_mask
from cohort.stacks import load_scans
from cohort.tables import read_table
from runtime import seeding
from runtime.device import Device
from runtime.errors import InputError
from runtime.files import atomic_write


@dataclass(frozen=True)
class Network:
    """One condition's network with the test subjects that it is explained on."""

    condition: Condition
    loaded: LoadedClassifier
    volumes: Volumes
    """Patients first, then controls."""
    sides: list[str]
    """L or R of each patient."""
    context: attribution.Context


@dataclass(frozen=True)
class Study:
    """What all networks share."""

    config: ValidationConfig
    device: Device
    conditions: list[Condition]
    regions: Atlas
    subjects: tuple[list[str], list[str]]
    """Names of the patients and of the controls: the same people in every condition."""
    learned: frozenset[str]
    """Conditions whose networks tell patients from controls, by the interval of their AUC."""

    def rng(self, purpose: str) -> np.random.Generator:
        return seeding.rng(self.config.seed, f"validate saliency:{purpose}")

    def weights(self, patients: int, purpose: str = "patients") -> np.ndarray:
        """Bootstrap weights (resamples, patients), rows sum to 1."""
        setting = np.ones(patients), np.arange(patients), self.config.effort.resamples, self.rng(purpose)
        return bootstrap_weights(*setting) / patients


def open_study(config: ValidationConfig, device: Device, conditions: list[Condition], learned: frozenset[str]) -> Study:
    """Chooses the test subjects: patients of both sides in turn, and controls, from the top of the table."""
    frame = read_table(config.out / "tables" / conditions[0].data / "test.csv")
    patients = frame[frame["label"] == 1]
    in_turn = np.lexsort((patients["side"], patients.groupby("side").cumcount()))[: config.effort.patients]
    controls = frame.loc[frame["label"] == 0, "subject"].head(config.effort.controls)
    subjects = (patients["subject"].iloc[in_turn].tolist(), controls.tolist())
    return Study(config, device, conditions, atlas(parse_grid(config.grid)), subjects, learned)


def open_network(study: Study, condition: Condition, *, controls: bool) -> Network:
    """A finished network and its volumes."""
    config = study.config
    loaded = load_classifier(config.out / "networks" / condition.name / "checkpoints" / "best.pt")
    frame = read_table(config.out / "tables" / condition.data / "test.csv").set_index("subject", drop=False)
    names = study.subjects[0] + (study.subjects[1] if controls else [])
    frame = frame.loc[names].reset_index(drop=True)
    refuse_overlap(frame, loaded.ledger, what=f"the network of {condition.name}")
    volumes = Volumes(load_scans(frame, parse_grid(config.grid), cache_dir=config.out / "cache"), study.device)
    study.device.module(loaded.model)
    numbers = {"ig_steps": config.effort.ig_steps, "noise_samples": config.effort.noise_samples, "seed": config.seed}
    context = attribution.context_for(loaded, study.regions, study.device, **numbers)
    return Network(condition, loaded, volumes, frame["side"].tolist()[: len(study.subjects[0])], context)


def truth_for(study: Study, network: Network) -> Truth:
    """The patients' own changed regions, through the simulator's map of each, and null places."""
    shares = [region_share(study.config.out, network.condition, name) for name in study.subjects[0]]
    head = head_mask(network.loaded.mean_hc.numpy())
    spacing, nulls = parse_grid(study.config.grid).spacing_mm, study.config.effort.nulls
    return measure.truth_of(shares, network.sides, head, spacing, nulls, study.rng("places"))


def maps_of(study: Study, network: Network, method: str) -> Maps:
    """Maps of all of a network's volumes; those on disk, of the same checkpoint and settings, are read."""
    path = study.config.out / "maps" / network.condition.name / f"{method}.npz"
    names, patients = network.volumes.frame["subject"].tolist(), len(network.sides)
    if method == counterfactuals.NAME:
        maps = counterfactuals.read_maps(study.config.counterfactuals, names, parse_grid(study.config.grid))
        return Maps(maps[:patients], network.sides, maps[patients:])
    recipe = repr((network.loaded.hash, names, attribution.settings_of(method, network.context)))
    maps = None
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            maps = file["maps"] if str(file["recipe"]) == recipe else None
    if maps is None:
        maps = _explain(network.loaded.model, network, method, len(names))
        with atomic_write(path) as temporary:
            np.savez(temporary, maps=maps, recipe=np.array(recipe))
    return Maps(maps[:patients], network.sides, maps[patients:])


def _explain(model: torch.nn.Module, network: Network, method: str, count: int) -> np.ndarray:
    """Maps of a network's first volumes."""
    context, parts = network.context, torch.arange(count).split(network.context.batch)
    maps = (attribution.attribute(model, network.volumes.batch(part), method, context, part.tolist()) for part in parts)
    return np.concatenate(list(maps))


@dataclass
class Findings:
    """What has been found out so far."""

    truth: Truth
    """Of the network that methods are judged on."""
    anatomy: np.ndarray
    """float32 (D, H, W), its mean control."""
    evidence: dict[str, Evidence] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    """Methods that the network does not allow, with the reason."""
    differences: dict[str, np.ndarray] = field(default_factory=dict)
    """By method, the mean map of patients minus that of controls (D, H, W), in the frame of the changed side."""
    enrichment: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """By method and condition, enrichment (P,) of each patient's map."""


def gather(study: Study) -> Findings:
    """All evidence about all methods: one network closely, the others for comparison with it."""
    found = from_strongest(study)
    for condition in study.conditions[1:]:
        network = open_network(study, condition, controls=False)
        truth = None if condition.mark else truth_for(study, network)
        for method in tqdm(found.enrichment, desc=f"maps of {condition.name}", unit="method"):
            compare(study, network, method, truth, found)
    for method, values in found.enrichment.items():
        found.evidence[method]["response"] = responses(study, values)
    return found


def from_strongest(study: Study) -> Findings:
    """Where maps of the network that learned most lie, on which side, whether they forget and are faithful."""
    network = open_network(study, study.conditions[0], controls=True)
    found = Findings(truth_for(study, network), network.loaded.mean_hc.numpy())
    # A coarse atlas: each region that is replaced is large enough to move the logit.
    regions = faithfulness.fading(measure.merged(study.regions).labels)
    orders, others = {}, () if study.config.counterfactuals is None else (counterfactuals.NAME,)
    for method in tqdm([*attribution.METHODS, *others], desc=f"maps of {network.condition.name}", unit="method"):
        try:
            maps = maps_of(study, network, method)
        except InputError as reason:
            found.skipped[method] = str(reason)
            continue
        values = measure.localisation(maps, found.truth)
        of_network = method in attribution.METHODS  # others say the same of every network
        if of_network:
            found.enrichment[method] = {network.condition.name: values["enrichment"][:, 0]}
        found.differences[method], group = measure.group_difference(maps, found.truth)
        sides = {"raw": maps.patients, "difference": maps.patients - maps.controls.mean(axis=0)}
        found.evidence[method] = {
            "raw": measure.summaries(values, study.weights(len(maps.patients))),
            "group": group,
            "side": {kind: measure.side_accuracy(part, maps.sides, study.regions) for kind, part in sides.items()},
            **({"cascade_end": forgetting(study, network, method, maps, found.truth.brain)} if of_network else {}),
        }
        chosen = maps.patients[: study.config.effort.faithful_patients]
        orders[method] = [faithfulness.relevance_order(map_, regions) for map_ in chosen]
    for method, gains in faithful(study, network, regions, orders).items():
        found.evidence[method] |= gains
    return found


def compare(study: Study, network: Network, method: str, truth: Truth | None, found: Findings) -> None:
    """Adds what the network of another condition says about a method."""
    maps, condition, evidence = maps_of(study, network, method), network.condition, found.evidence[method]
    if condition.mark:
        mark, weights = mark_of(parse_grid(study.config.grid)), study.weights(len(maps.patients))
        exposure = measure.mark_exposure(maps.patients, mark, study.regions, weights)
        evidence["shortcut"] = {**exposure, "learned": condition.name in study.learned}
        return
    values = measure.localisation(maps, truth)
    if not condition.shuffle:
        found.enrichment[method][condition.name] = values["enrichment"][:, 0]
    if condition.shuffle or condition.dose == condition.signal == 0:
        kind = "permuted" if condition.shuffle else "nothing"
        evidence[kind] = measure.summaries(values, study.weights(len(maps.patients)))


def responses(study: Study, values: dict[str, np.ndarray]) -> Evidence:
    """How enrichment (P,), by condition, follows the strength of what was planted, for each kind of change."""
    found = {}
    for kind, strengths in levels(study.conditions).items():
        stack = np.stack([values[name] for name in strengths])
        trend = measure.trend(list(strengths.values()), stack, study.rng("response"), study.config.effort.resamples)
        found[kind] = {**trend, **{f"at_{strengths[name]:g}": float(values[name].mean()) for name in strengths}}
    return found


def forgetting(study: Study, network: Network, method: str, maps: Maps, brain: np.ndarray) -> float:
    """Rank correlation of maps with those of the network with random weights; mean over patients."""
    kept = maps.patients[: study.config.effort.cascade_patients]
    changed = _explain(faithfulness.forgotten(network.loaded.model, study.config.seed), network, method, len(kept))
    return float(np.mean([faithfulness.rank_correlation(a, b, brain) for a, b in zip(kept, changed, strict=True)]))


def faithful(
    study: Study, network: Network, regions: faithfulness.Regions, orders: dict[str, list[np.ndarray]]
) -> dict[str, Evidence]:
    """Deletion and insertion by each method's orders, as gain in logits over random orders, mean of patients."""
    model, context, patients = network.loaded.model, network.context, len(next(iter(orders.values())))
    gains = {method: [] for method in orders}
    for row in tqdm(range(patients), desc="deletion and insertion", unit="patient"):
        setting = (network.volumes.batch(torch.tensor([row])), context.mean_hc, regions)
        draws = (study.config.effort.faithful_draws, study.config.seed)
        random = faithfulness.random_areas(model, *setting, context.batch, *draws).mean(axis=0)
        for method, order in orders.items():
            # a good order deletes early and inserts early
            gains[method].append((random - faithfulness.areas(model, *setting, order[row], context.batch)) * (1, -1))
    weights = study.weights(patients, "faithful")
    names = ("deletion_gain", "insertion_gain")
    return {
        method: {name: cell(gain.mean(), weights @ gain) for name, gain in zip(names, np.array(found).T, strict=True)}
        for method, found in gains.items()
    }
