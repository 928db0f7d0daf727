"""The ledger: an artefact's subjects cannot come back as its judges unnoticed."""

import pandas as pd
import pytest

from cohort.ledger import ledger_of, refuse_overlap
from runtime.errors import InputError


def people(*pairs):
    return pd.DataFrame(pairs, columns=["subject", "group"])


def test_ledger_is_sorted_distinct_and_holds_no_names():
    ledger = ledger_of(people(("anna", "anna"), ("anna", "anna"), ("bert", "fam")))
    assert ledger == sorted(set(ledger))
    assert len(ledger) == 4
    assert all(len(entry) == 16 and set(entry) <= set("0123456789abcdef") for entry in ledger)
    assert ledger == ledger_of(people(("bert", "fam"), ("anna", "anna")))


def test_a_subject_is_not_a_group_of_the_same_name():
    assert not refuse_overlap(people(("x", "g")), ledger_of(people(("g", "x"))), what="it")


def test_overlap_by_subject_and_by_group_is_refused_by_name():
    ledger = ledger_of(people(("anna", "anna"), ("bert", "fam")))
    judged = people(("anna", "new"), ("cleo", "fam"), ("dora", "dora"))
    with pytest.raises(InputError) as refusal:
        refuse_overlap(judged, ledger, what="the VAE checkpoint v.pt")
    message = str(refusal.value)
    assert "the VAE checkpoint v.pt" in message
    assert "subject anna" in message
    assert "subject cleo (by its group fam)" in message
    assert "dora" not in message
    assert refuse_overlap(judged, ledger, what="it", allow_leak=True) is True


def test_no_overlap():
    assert refuse_overlap(people(("x", "x")), ledger_of(people(("y", "y"))), what="it") is False
