"""Who the simulated subjects are: groups, ages, sites, and the volume that each region of each subject is to have.

The model of volumes (sources beside each constant):

- In healthy controls (HC) a region's volume is log-normal about its atlas volume, with a coefficient of variation (CV)
  and a left-right correlation per structure; age, head size and a subject part make up that variation.
- Temporal lobe epilepsy with hippocampal sclerosis (HS), left or right: Cohen's d of each region against HC follows
  Whelan et al. 2018, per side of the disease. That is the group for which d is defined, as in the source.
- MRI-negative epilepsy, in the mixed cohort a third of the cases: d between 0 and -0.3, as in the source's epilepsies
  without sclerosis.

Those are the published effects (`sclerosis`, `mixed`). For judging methods one effect can be planted instead, a Cohen's
d (0 to LARGEST_PLANTED_D): every patient has sclerosis, half left and half right, and nothing but the hippocampus of
that side is smaller, by the same share in all (`acquisition.darkened` makes it darker). One person (seed and index) has
the same age, head and healthy volumes at every d, and at d = 0 patients are controls.

d is the difference of group means over the pooled standard deviation (weights as in the block), of volumes in the space
of the scan, that is after affine registration to the template; of log-volumes for the ventricles.

Sampling error of d at 400 subjects would be about 0.15 with independent draws. Instead each group's subjects are
consecutive points of a scrambled Sobol sequence (Owen 1998, "Scrambling Sobol' and Niederreiter-Xing points"), mapped
to the model's marginals: each subject alone has the model's distribution, while group means and standard deviations
vary less from seed to seed than with independent draws. Site and sex are balanced within groups in the same way. So a
test that takes the subjects as independent is conservative here about differences of volume between the groups.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from scipy import optimize, special
from scipy.stats import qmc

from cohort.atlas import REGIONS, SIDES, STRUCTURES
from runtime.seeding import rng

EFFECTS: dict[str, tuple[tuple[float, float], ...]] = {
    "Hippocampus": ((-1.728, -0.204), (-0.169, -1.906), (-0.30, -0.10)),
    "Thalamus": ((-0.843, -0.462), (-0.472, -0.727), (-0.25, -0.20)),
    "Pallidum": ((-0.269, -0.452), (-0.298, -0.451), (-0.15, -0.15)),
    "Putamen": ((-0.385, -0.285), (-0.302, -0.470), (-0.15, -0.10)),
    "Caudate": ((-0.182, -0.063), (-0.196, -0.191), (-0.05, -0.05)),
    "Amygdala": ((-0.219, 0.266), (0.228, 0.027), (0.0, 0.0)),
    "Accumbens": ((-0.102, -0.123), (0.055, -0.026), (0.0, 0.0)),
    "Lateral Ventricle": ((0.465, 0.363), (0.390, 0.444), (0.20, 0.20)),
}
"""Cohen's d against controls of three groups: sclerosis on the left and on the right, each (left, right), by Whelan et
al. 2018, Brain 141:391, in the tables of the ENIGMA toolbox (case-controls, subcortical volumes, adjusted for head
size); and epilepsy without a visible lesion, (ipsilateral, contralateral), chosen within 0 to 0.3."""


class Norm(NamedTuple):
    """Variation of a structure in healthy adults. `spread`: standard deviation of the natural log of the volume;
    `symmetry`: correlation of left and right log-volumes; `per_year`: log change per year of age; `head_size`: exponent
    by which the volume, relative to the head, still follows the head's size (below 0: less than in proportion)."""

    spread: float
    symmetry: float
    per_year: float
    head_size: float


NORMS: dict[str, Norm] = {
    "Hippocampus": Norm(0.095, 0.87, -0.0020, -0.25),
    "Amygdala": Norm(0.110, 0.80, -0.0020, -0.25),
    "Thalamus": Norm(0.080, 0.90, -0.0025, -0.20),
    "Caudate": Norm(0.100, 0.90, -0.0020, -0.25),
    "Putamen": Norm(0.095, 0.90, -0.0030, -0.25),
    "Pallidum": Norm(0.095, 0.85, -0.0015, -0.25),
    "Accumbens": Norm(0.130, 0.75, -0.0035, -0.25),
    "Lateral Ventricle": Norm(0.380, 0.90, 0.0110, 0.0),
}
"""Orders of magnitude of normative studies of adults (Potvin 2016, Nobis 2019). Spread and symmetry of the hippocampus
go with an asymmetry whose 90th percentile is near the 8.5 % of the Dallas Heart Study."""

_NORMS = [NORMS[region.partition(" ")[2]] for region in REGIONS]
_SPREADS = np.array([norm.spread for norm in _NORMS])

MEAN_LOG_OFFSET = {"Left Hippocampus": 0.020, "Right Hippocampus": -0.020}
"""Log of the mean volume over the atlas volume, 0 where not listed: the atlas has the right hippocampus 7 % larger than
the left, people have it about 3 % larger."""

LARGEST_DEVIATION = 2.5
"""Healthy log-volumes stay within this many standard deviations of their mean: no smooth map makes much larger
ventricles of the template's."""

BETWEEN_STRUCTURES = 0.3
"""Correlation of log-volumes of different structures of one side; the ventricles take the opposite sign."""

HS_LOSS = ((0.5, 0.6, 0.2), (0.5, 1.4, 0.35))
"""Loss of the sclerotic hippocampus relative to the mean loss, as a mixture of mild and severe cases: (weight, mean,
standard deviation). The mean is near 18 %: mild cases lose about 11 %, severe ones about 26 % and up to 45 %. A wider
spread would lower the separation of patients and controls at the same d, a narrower one would raise it."""
LOSS_CEILING = 2.4

AGE_YEARS = (34.0, 11.0, 18.0, 70.0)
"""Mean, standard deviation, and the limits to which ages are clipped."""
ETIV_CM3 = {"F": (1440.0, 115.0), "M": (1560.0, 115.0)}
"""Estimated total intracranial volume by sex: mean and standard deviation."""
SITE_SHARES = {"site-A": 0.40, "site-B": 0.35, "site-C": 0.25}

SCLEROSIS_BLOCK = [("HC", "")] * 6 + [("HS", "L")] * 3 + [("HS", "R")] * 3
"""Group and side of every twelve consecutive subjects, in an order drawn for each twelve."""
MIXED_BLOCK = [("HC", "")] * 6 + [("HS", "L")] * 2 + [("HS", "R")] * 2 + [("MRI-negative", "L"), ("MRI-negative", "R")]
"""The same where a third of the patients has no visible lesion."""

Effect = Literal["sclerosis", "mixed", "hippocampus"]
"""What the disease does: published changes of 16 volumes in sclerosis, the same with MRI-negative cases, or one planted
change."""

LARGEST_PLANTED_D = 6.0
"""A loss of half of the hippocampus; much more is nothing that a smooth map brings about."""


@dataclass(frozen=True)
class Subject:
    """One simulated person. Arrays follow `cohort.atlas.REGIONS`."""

    index: int
    name: str
    group: str
    """HC, HS or MRI-negative."""
    side: str
    """Side of the disease, L or R; empty for HC."""
    age: float
    sex: str
    site: str
    etiv_cm3: float
    change: np.ndarray
    """Prescribed relative change of each region's volume by the disease: -0.2 is a loss of a fifth."""
    relative_volume: np.ndarray
    """Prescribed volume of each region over its atlas volume, the disease included."""

    @property
    def diagnosis(self) -> str:
        """HC, TLE-L or TLE-R."""
        return f"TLE-{self.side}" if self.side else "HC"


def subjects(seed: int, count: int, effect: Effect = "sclerosis", planted: float | None = None) -> list[Subject]:
    """The first `count` subjects of the cohort with this seed; subject k does not depend on `count`.

    `planted` is Cohen's d of a planted effect; None for the published ones.
    """
    block = block_of(effect)
    orders = [rng(seed, "cohort.order", number).permutation(len(block)) for number in range(-(-count // len(block)))]
    members = [block[i] for order in orders for i in order][:count]
    kinds = list(dict.fromkeys(block))
    points = {kind: iter(_uniforms(seed, number, members.count(kind))) for number, kind in enumerate(kinds)}
    changes = {kind: _mean_changes(*kind, block, planted) for kind in kinds}
    return [
        _subject(seed, index, kind, next(points[kind]), changes[kind], varies=planted is None)
        for index, kind in enumerate(members)
    ]


def block_of(effect: Effect) -> list[tuple[str, str]]:
    """Group and side of twelve subjects."""
    return MIXED_BLOCK if effect == "mixed" else SCLEROSIS_BLOCK


def sclerotic_region(group: str, side: str) -> str:
    """The hippocampus that is sclerotic in a group; empty if there is none."""
    return f"{'Left' if side == 'L' else 'Right'} Hippocampus" if group == "HS" else ""


def effect_targets(group: str, side: str, planted: float | None = None) -> np.ndarray:
    """Cohen's d against HC that the model aims at, per region of REGIONS; zeros for HC."""
    if group == "HC":
        return np.zeros(len(REGIONS))
    if planted is not None:
        return np.array([-planted if region == sclerotic_region(group, side) else 0.0 for region in REGIONS])
    column = "LR".index(side) if group == "HS" else 2
    order = (1, 0) if (group, side) == ("MRI-negative", "R") else (0, 1)
    return np.array([EFFECTS[structure][column][i] for structure in STRUCTURES for i in order])


def _mean_changes(group: str, side: str, block: list[tuple[str, str]], planted: float | None) -> np.ndarray:
    """Mean relative volume change per region that gives `effect_targets` under the model."""
    patients, controls = block.count((group, side)), block.count(("HC", ""))
    changes = np.zeros(len(REGIONS))
    for i, d in enumerate(effect_targets(group, side, planted)):
        if d == 0 and planted is not None:
            continue  # exactly 0: a root finder's 1e-17 would be another scan
        if REGIONS[i].endswith("Lateral Ventricle"):
            changes[i] = np.expm1(d * _SPREADS[i])
        else:
            varies = planted is None and REGIONS[i] == sclerotic_region(group, side)
            variable = _loss_quantiles()[2] if varies else 0.0
            changes[i] = change_for(d, _SPREADS[i], variable, patients / (patients + controls))
    return changes


def _subject(
    seed: int, index: int, kind: tuple[str, str], uniforms: np.ndarray, mean_change: np.ndarray, *, varies: bool
) -> Subject:
    """One person; where the loss `varies`, the sclerotic hippocampus of each has another share of the mean loss."""
    group, side = kind
    u_age, u_sex, u_site, u_head, u_loss, *u_regions = uniforms
    mean, spread, low, high = AGE_YEARS
    age = round(float(np.clip(mean + spread * special.ndtri(u_age), low, high)), 1)
    sex = "F" if u_sex < 0.5 else "M"
    etiv = round(ETIV_CM3[sex][0] + ETIV_CM3[sex][1] * special.ndtri(u_head), 1)
    change = mean_change.copy()
    if varies and group == "HS":
        cumulative, quantiles, _ = _loss_quantiles()
        change[REGIONS.index(sclerotic_region(group, side))] *= np.interp(u_loss, cumulative, quantiles)
    # Minus half the variance, so that the mean volume of HC is the atlas's but for MEAN_LOG_OFFSET.
    offsets = np.array([MEAN_LOG_OFFSET.get(region, 0.0) for region in REGIONS]) - _SPREADS**2 / 2
    deviation = _covariates(age, etiv) + _residual_root() @ special.ndtri(np.array(u_regions))
    limit = LARGEST_DEVIATION * _SPREADS
    volume = np.exp(offsets + deviation.clip(-limit, limit)) * (1 + change)
    site = list(SITE_SHARES)[int(np.searchsorted(np.cumsum(list(SITE_SHARES.values()))[:-1], u_site, side="right"))]
    return Subject(index, f"sim{seed}-{index:04d}", group, side, age, sex, site, etiv, change, volume)


def _uniforms(seed: int, kind: int, size: int) -> np.ndarray:
    """The first `size` points of a kind's own scrambled Sobol sequence, (size, 5 + regions) inside (0, 1)."""
    dimensions = 5 + len(REGIONS)
    sequence = qmc.Sobol(dimensions, scramble=True, rng=rng(seed, "cohort.subjects", kind))
    points = sequence.random_base2(int(np.ceil(np.log2(max(size, 2)))))[:size]
    return np.clip(points, 1e-3, 1 - 1e-3)  # bounds every normal draw at 3.1 standard deviations


def _covariates(age: float, etiv_cm3: float) -> np.ndarray:
    """Log-volume from age and head size, mean 0 over the population, per region."""
    years, head = age - AGE_YEARS[0], np.log(etiv_cm3 / np.mean([mean for mean, _ in ETIV_CM3.values()]))
    return np.array([norm.per_year * years + norm.head_size * head for norm in _NORMS])


@cache
def _residual_root() -> np.ndarray:
    """Cholesky factor of the covariance of log-volumes left after age and head size, (regions, regions).

    A structure's left and right share a part that makes the correlation of the whole, covariates included, the one in
    NORMS; structures are correlated through both the shared and the one-sided part, so the matrix is a covariance.
    """
    means, deviations = zip(*ETIV_CM3.values(), strict=True)
    head_variance = (np.var(means) + np.mean(np.square(deviations))) / np.square(np.mean(means))
    norms = [NORMS[structure] for structure in STRUCTURES]
    explained = np.array([(n.per_year * AGE_YEARS[1]) ** 2 + n.head_size**2 * head_variance for n in norms])
    left_over = np.array([n.spread**2 for n in norms]) - explained
    shared = np.array([n.symmetry * n.spread**2 for n in norms]) - explained
    own = left_over - shared
    sign = np.array([-1 if structure == "Lateral Ventricle" else 1 for structure in STRUCTURES])
    between = np.where(np.eye(len(norms)) == 1, 1.0, BETWEEN_STRUCTURES * np.outer(sign, sign))
    covariance = np.kron(between * np.sqrt(np.outer(shared, shared)), np.ones((2, 2)))
    covariance += np.kron(between * np.sqrt(np.outer(own, own)), np.eye(len(SIDES)))
    return np.linalg.cholesky(covariance)


@cache
def _loss_quantiles() -> tuple[np.ndarray, np.ndarray, float]:
    """Quantile function of the relative loss (probabilities, values with mean 1) and its standard deviation."""
    x = np.linspace(0, LOSS_CEILING, 2001)
    density = sum(weight / s * np.exp(-0.5 * ((x - mean) / s) ** 2) for weight, mean, s in HS_LOSS)
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    cumulative /= cumulative[-1]
    middle = (np.arange(20000) + 0.5) / 20000
    values = np.interp(middle, cumulative, x)
    return cumulative, x / values.mean(), float(values.std() / values.mean())


@cache
def change_for(d: float, spread: float, variable: float, patient_weight: float) -> float:
    """Mean relative change m with Cohen's d against HC, for log-normal volumes.

    Patients have the controls' volume times 1 + m q, where q has mean 1 and standard deviation `variable`. In units of
    the controls' mean, Var_HC = c2 = exp(spread^2) - 1 and
    Var_patients = (1 + c2) ((1 + m)^2 + (m variable)^2) - (1 + m)^2.
    """
    c2 = np.expm1(spread**2)

    def miss(m: float) -> float:
        patients = (1 + c2) * ((1 + m) ** 2 + (m * variable) ** 2) - (1 + m) ** 2
        return m / np.sqrt((1 - patient_weight) * c2 + patient_weight * patients) - d

    return float(optimize.brentq(miss, -0.6, 0.6))
