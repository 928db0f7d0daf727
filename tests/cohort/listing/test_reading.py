"""What values mean, as a user types it: pairs of words, or joined by an equals sign."""

import json

import pytest

from cohort.listing.reading import EXCLUDE, LABEL_MEANINGS, meanings
from cohort.tables import DIAGNOSES
from tests.support.processes import run_here

MEANT = {"control": "HC", "a=b": "TLE-L", "bilateral": "exclude", "n/a": "exclude"}


@pytest.mark.parametrize(
    "words",
    [
        "control HC a=b TLE-L bilateral exclude n/a exclude",
        "control=HC a=b=TLE-L bilateral=exclude n/a=exclude",
        "control=HC a=b TLE-L bilateral exclude n/a=exclude",
    ],
)
def test_pairs_are_two_words_or_one(words):
    typed = run_here("cohort.split", "--index", "t.csv", "--label-map", *words.split(), "--dry-run")
    assert json.loads(typed.stdout)["label_map"] == MEANT
    assert meanings(words.split()) == MEANT


def test_empty_cells_and_sexes():
    assert meanings(["=exclude", "1=M", "O=n/a"]) == {"": "exclude", "1": "M", "O": "n/a"}
    assert meanings([]) == {}
    assert (*DIAGNOSES, EXCLUDE) == LABEL_MEANINGS


def test_a_value_without_a_meaning_ends_the_command():
    typed = run_here("cohort.split", "--index", "t.csv", "--label-map", "control=HC", "bilateral", ok=False)
    assert typed.returncode == 2
    assert "'bilateral' has no meaning; expected pairs, such" in typed.stderr
