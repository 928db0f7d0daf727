"""Single cells of a table: ages and sexes as values, or the reason why they are none."""

import math
import re
from collections.abc import Mapping

MISSING = {"", "n/a", "N/A", "NA", "nan", "NaN"}
SEXES = {"f": "F", "female": "F", "w": "F", "m": "M", "male": "M"}
OLDEST_YEARS = 120.0
_DICOM_AGE = re.compile(r"(\d{3})([YMWD])")
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
"""DICOM PS3.5, value representation AS: 034Y, 408M."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?|[+-]?\.\d+")


def parse_age(text: str) -> float:
    """Years, NaN where the cell says nothing; ValueError with the reason for anything else."""
    if text in MISSING:
        return math.nan
    if "," in text:
        raise ValueError(f"{text!r} has a decimal comma; write {text.replace(',', '.')}")
    if dicom := _DICOM_AGE.fullmatch(text):
        text = repr(int(dicom[1]) * _YEARS[dicom[2]])
    # BIDS asks for ages to be capped at 89; "89+" is how some tables write it, ">89" others.
    plain = text.removesuffix("+").removeprefix(">").strip()
    if not _NUMBER.fullmatch(plain):
        raise ValueError(f"{text!r} is not a number of years; write n/a for unknown")
    if not 0 <= float(plain) <= OLDEST_YEARS:
        raise ValueError(f"{text} years; expected 0 to {OLDEST_YEARS:g}")
    return float(plain)


def parse_sex(text: str, meaning: Mapping[str, str] | None = None) -> str:
    """``F``, ``M``, or empty where the cell says nothing; ValueError with the reason for anything else.

    `meaning` (--sex-map) comes first: values to F, M or n/a.
    """
    text = (meaning or {}).get(text, text)
    if text in MISSING:
        return ""
    if text.lower() not in SEXES:
        raise ValueError(f"{text!r}; expected F, M, female or male, or its meaning: --sex-map {text} F (or M, or n/a)")
    return SEXES[text.lower()]


def optional(text: str) -> str:
    """The text, empty where the cell says nothing."""
    return "" if text in MISSING else text
