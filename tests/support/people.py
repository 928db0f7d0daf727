"""Tables of people that no scan belongs to."""

import numpy as np
import pandas as pd

from cohort.tables import DIAGNOSES, write_table


def cohort(count=200, seed=0, sessions=1):
    draw = np.random.default_rng(seed)
    diagnosis = draw.choice(["HC", "TLE-L", "TLE-R"], count, p=[0.5, 0.3, 0.2])
    people = pd.DataFrame(
        {
            "subject": [f"s{number:03d}" for number in range(count)],
            "diagnosis": diagnosis,
            "label": [DIAGNOSES[name] for name in diagnosis],
            "side": ["" if name == "HC" else name[-1] for name in diagnosis],
            "age": draw.normal(35, 11, count).clip(10, 80),
            "sex": draw.choice(["F", "M"], count),
            "site": draw.choice(["A", "B", "C"], count, p=[0.6, 0.3, 0.1]),
        }
    )
    frame = pd.concat([people.assign(session=str(number)) for number in range(sessions)], ignore_index=True)
    frame["group"] = frame["subject"]
    frame["file"] = frame["subject"] + "_" + frame["session"] + ".nii"
    return frame


def index_of_empty_scans(folder, count):
    """An index of so many people, whose scans are there and hold nothing; its path."""
    frame = cohort(count)
    (folder / "scans").mkdir()
    frame["file"] = [str(folder / "scans" / name) for name in frame["file"]]
    for file in frame["file"]:
        open(file, "w").close()
    write_table(folder / "index.csv", frame)
    return folder / "index.csv"


def homes(splits, column="subject"):
    return {value: name for name, frame in splits.items() for value in frame[column]}
