"""Tables of an evaluation's result, as the report shows them; every number is read from the JSON."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from classifier.measures.resampling import cell_text
from evaluation.cards import RUNGS, fine_detail

LABELLED_GOALS = {"simulated scans": "0.9", "real heads": "0.7"}
"""Correlation of hippocampal volumes that our network was to reach."""


def figure(summary: dict[str, float], digits: str = ".3g") -> str:
    """Mean and 95 % range."""
    return f"{summary['mean']:{digits}} [{summary['low']:{digits}}, {summary['high']:{digits}}]"


def ladder(result: dict) -> pd.DataFrame:
    """What the generator has to beat and what it cannot, and what sees no anatomy: distances to held-out scans."""
    samples, rows = result["results"]["overall"]["held_out"], {}
    for name, meaning in RUNGS.items():
        if name in samples:
            found = result["surroundings"].get(name, {})
            rows[meaning] = {metric.upper(): figure(samples[name][metric]) for metric in ("fid", "kid")}
            rows[meaning]["fine detail"] = fine_detail(result, name)
            rows[meaning] |= {f"AUC of {key}": f"{found[key]['auc']:.2f}" for key in ("zeros", "dark") if found}
    return pd.DataFrame(rows).T.fillna("")


def feature_spaces(result: dict) -> pd.DataFrame:
    """KID to held-out scans in each feature space, beside floor and blur; the reason where one was skipped."""
    rows = {}
    for name, view in {result["network"]["name"]: result, **result["views"]}.items():
        if "skipped" in view:
            rows[name] = {"synthetic": view["skipped"]}
            continue
        samples = view["results"]["overall"]["held_out"]
        rows[name] = {sample: figure(samples[sample]["kid"]) for sample in ("synthetic", "floor", "blurred")}
        rows[name]["p"] = f"{view['all_volumes']['overall']['kid_p_value']:.3g}"
    return pd.DataFrame(rows).T.fillna("")


def variety(result: dict) -> pd.DataFrame:
    """Precision, recall, density and coverage of each sample against held-out scans, both classes together."""
    support = result.get("diversity", {}).get("support", {}).get("support", {}).get("overall", {})
    metrics = ("precision", "recall", "density", "coverage")
    rows = {
        sample: {metric: figure(found[metric], ".2f") for metric in metrics}
        for sample, found in support.get("held_out", {}).items()
        if metrics[0] in found
    }
    return pd.DataFrame(rows).T


def likeness(result: dict) -> pd.DataFrame:
    """MS-SSIM of pairs of synthetic volumes and of pairs of scans, by group."""
    rows = {
        group: {side: figure(found[side]) for side in ("synthetic", "real", "difference")}
        for group, found in result.get("diversity", {}).get("ms_ssim", {}).get("results", {}).items()
        if "skipped" not in found
    }
    return pd.DataFrame(rows).T


def regions_that_differ(result: dict) -> pd.DataFrame:
    """How many regional measures differ from held-out scans, of synthetic volumes and of training scans."""
    distributions = result["anatomy"]["distributions"]
    rows = {
        label: {
            "regional measures": len(found["measures"]),
            "differ": found["significant"],
            "differ among training scans": distributions["train"][label]["significant"],
        }
        for label, found in distributions["synthetic"].items()
    }
    return pd.DataFrame(rows).T


def agreements(result: dict) -> pd.DataFrame:
    """Effects of the diagnosis over regions, one set against another."""
    anatomy = result["anatomy"]
    given = {f"{name} with known volumes": found for name, found in anatomy.get("agreement_with_known", {}).items()}
    table = pd.DataFrame({**given, **anatomy["agreement"]}).T
    columns = ["correlation", "correlation_low", "correlation_high", "slope", "same_sign", "p"]
    return table.filter(columns).astype(float).round(3)


def label_alone(result: dict) -> pd.DataFrame:
    """What the label changes when the noise stays: ml by region, TLE minus HC."""
    table = pd.DataFrame(result["anatomy"]["label_swap"].get("measures", {})).T
    return table.filter(["difference", "difference_low", "difference_high", "d", "same_sign"]).astype(float).round(3)


def effects_by_side(result: dict) -> pd.DataFrame:
    """Cohen's d of regions on the side of the epilepsy and on the other, by set, and what the label alone changes (ml).

    Empty where no side is known.
    """
    found = result["anatomy"].get("laterality", {})
    swap, rows = found.get("label_swap", {}).get("HC to TLE", {}).get("measures", {}), {}
    for structure in ("Hippocampus", "Amygdala", "Inf Lat Vent", "Thalamus"):
        for name in (f"ipsilateral {structure}", f"contralateral {structure}"):
            effects = {key: own["measures"].get(name) for key, own in found.get("effects", {}).items()}
            row = {
                key: "{d:+.2f} [{d_low:+.2f}, {d_high:+.2f}]".format(**effect)
                for key, effect in effects.items()
                if effect and effect["d"] is not None
            }
            if name in swap:
                change = "{difference:+.3f} [{difference_low:+.3f}, {difference_high:+.3f}]".format(**swap[name])
                row["label alone, ml"] = change
            rows |= {name: row} if row else {}
    return pd.DataFrame(rows).T.fillna("")


def attacks(result: dict) -> pd.DataFrame:
    """Membership attacks: AUC with interval, and the share of training subjects found at 1 % false alarms."""
    rows = {}
    for name, found in result.get("privacy", {}).get("attacks", {}).items():
        rows[name] = {"AUC": found}
        if not isinstance(found, str):
            area = figure({**found, "mean": found["auc"]}, ".2f")
            rows[name] = {"AUC": area, "found at 1 % false alarms": f"{found['tpr']['value']:.0%}"}
    return pd.DataFrame(rows).T.fillna("")


def differences_of_arms(path: Path) -> pd.DataFrame:
    """Paired tests that classifier.compare has written."""
    return tests_of_arms(pd.read_csv(path))


def tests_of_arms(tests: pd.DataFrame) -> pd.DataFrame:
    """Paired tests of classifier.compare: difference of areas with interval, corrected p-values, verdict."""
    tests = tests.set_index("b").rename_axis(None)
    areas = "{auc_difference:+.3f} [{auc_difference_low:+.3f}, {auc_difference_high:+.3f}]"
    tests["AUC minus the reference's"] = [areas.format(**test) for test in tests.to_dict("records")]
    kinds = {"bootstrap_p_holm": "p (Holm)", "delong_p_holm": "DeLong p (Holm)", "mcnemar_p_holm": "McNemar p (Holm)"}
    return tests.rename(columns=kinds)[["AUC minus the reference's", *kinds.values(), "verdict"]].round(3)


def arms_study(study: dict) -> pd.DataFrame:
    """The main measures of every arm of classifier.run_arms, mean over seeds and folds with interval."""
    metrics, rows = ("auc", "balanced_accuracy", "sensitivity", "specificity", "brier"), {}
    for row in study["runs"]:
        shown = {name: cell_text(row["metrics"][name]) for name in metrics}
        rows[row["run"]] = shown | {"auc by seed": ", ".join(f"{value:.2f}" for value in row["auc_by_seed"].values())}
    return pd.DataFrame(rows).T


def planted_networks(validation: dict) -> pd.DataFrame:
    """Test AUC of the networks of classifier.validate_saliency, and which of them the methods are judged on."""
    rows = {
        name: {
            "AUC on held-out subjects": cell_text(auc, ".2f"),
            "methods are judged on it": "yes" if validation["judged"] and name == validation["judged_on"] else "",
        }
        for name, auc in validation["auc"].items()
    }
    return pd.DataFrame(rows).T


def controls(found: dict) -> pd.DataFrame:
    """Every figure of benchmarks.controls beside what it has to be."""
    rows = [{**row, "measured": cell_text(row["measured"], ".2f")} for row in found["figures"]]
    return pd.DataFrame(rows).set_index(["control", "figure"])


def counterfactuals(found: Mapping[str, dict]) -> pd.DataFrame:
    """What was asked for and what came of it, by label, of `measures.json`, with the goals."""
    rows = {}
    for to, measures in found.items():
        errors, outside = measures["errors"], measures["minimality"]["regions"]["each_scan"]["outside_over_inside"]
        latent, volume = (errors.get(f"reversibility{way}", {}).get("over_vae") for way in ("", "_volume"))
        rows[to] = {
            "scans": sum(measures["scans"].values()), "guidance": measures["guidance"],
            "round trip of the latent": f"{errors['round_trip']['mean']:.1g}",
            "reversibility, latent (goal 1.1)": known(latent, ".3f"),
            "reversibility, volume (goal 1.1)": known(volume, ".3f"),
            "change outside over inside (goal 0.2)": known(outside, ".2f"),
        } | {
            f"{move['from']}: {move['region']}, d (cohort)":
            "{} ({})".format(*(known(move[name], "+.2f") for name in ("moved_d", "cohort_d")))
            for move in measures["effectiveness"]
        }  # fmt: skip
    return pd.DataFrame(rows).fillna("")


def known(value: float | None, form: str) -> str:
    """The value in this form; says so where it could not be measured."""
    return "unknown" if value is None else format(value, form)


def opinions(result: dict) -> pd.DataFrame:
    """What the classifier says of scans, reconstructions and counterfactuals: mean logit, and share called TLE."""
    rows = [row for request in result["requests"].values() for row in request["classifier"]]
    cells = pd.DataFrame(rows)
    cells["said"] = [f"{logit:+.2f}, {share:.0%}" for logit, share in zip(cells["logit"], cells["tle"], strict=True)]
    return cells.pivot_table(index=["own", "to"], columns="of", values="said", aggfunc="first", sort=False)


def wanted(result: dict) -> pd.DataFrame:
    """Volumes that were asked for against those measured in what was generated, beside real scans' true ones."""
    table = pd.DataFrame(result["rows"]).set_index(["measure", "scans", "region"])
    return table.reindex(columns=["count", "r", "slope", "bias_ml", "mean_error_ml"]).round(2).astype(object).fillna("")


def labelled(result: dict) -> pd.DataFrame:
    """Volumes by the network of `cohort.labelling` against true ones, beside other measures and the goals."""
    shown = ["network, r", "network, slope", "network, bias, %", "fixed regions, r", "registration, r"]
    parts = {}
    for scans, goal in LABELLED_GOALS.items():
        if rows := result.get(scans):
            part = pd.DataFrame(rows).set_index("structure")[shown]
            part.insert(1, "goal of r", pd.Series({"Hippocampus": goal}))
            parts[f"{rows[0]['network, N']} {scans}"] = part
    return pd.concat(parts).fillna("")


def planted_faults(result: dict) -> pd.DataFrame:
    """How many scans of each kind the network of `cohort.labelling` calls failed, as they are and with faults."""
    rows = {scans: result.get(f"{scans}, planted faults", []) for scans in LABELLED_GOALS}
    failed = {scans: {row["fault"]: f"{row['failed']} of {row['N']}" for row in each} for scans, each in rows.items()}
    return pd.DataFrame({scans: each for scans, each in failed.items() if each})
