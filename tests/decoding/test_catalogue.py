"""Rules by name: which fit a head, and what is said when one does not."""

from __future__ import annotations

import pytest

from speech_mtp.decoding import catalogue
from speech_mtp.decoding.chain import Chain
from speech_mtp.decoding.vanilla import Vanilla
from tests.text_tiny import tiny_head, tiny_text_lm


def test_rules_are_listed_and_nothing_else_of_the_folder() -> None:
    names = catalogue.names()
    assert {"vanilla", "chain", "leap"} <= set(names)
    assert not {"laws", "engine", "sampling", "acceptance", "base", "text"} & set(names)


def test_a_head_and_its_rules() -> None:
    lm = tiny_text_lm()
    medusa, leap = tiny_head(lm), tiny_head(lm, name="leap")
    assert "chain" in catalogue.fitting(medusa)
    assert "vanilla" not in catalogue.fitting(medusa)
    assert "chain" not in catalogue.fitting(leap)
    assert "vanilla" in catalogue.fitting(None)
    assert (catalogue.default(None), catalogue.default(leap)) == ("vanilla", "leap")
    assert catalogue.default(medusa) == "cascade"
    for head in (None, medusa, leap):
        assert all(catalogue.build(name, head) for name in catalogue.fitting(head))


def test_settings_come_with_the_name() -> None:
    medusa = tiny_head(tiny_text_lm())
    rule = catalogue.build({"name": "chain", "depth": 1}, medusa)
    assert isinstance(rule, Chain)
    assert rule.depth == 1
    assert isinstance(catalogue.build("speech_mtp.decoding.vanilla:Vanilla"), Vanilla)
    assert catalogue.label({"name": "chain", "depth": 1}) == "chain(depth=1)"
    assert catalogue.label("chain") == "chain"


def test_what_does_not_fit_is_told_in_a_sentence() -> None:
    lm = tiny_text_lm()
    medusa, leap = tiny_head(lm), tiny_head(lm, name="leap")
    with pytest.raises(ValueError, match="no decoding rule 'chian'; did you mean 'chain'"):
        catalogue.build("chian", medusa)
    with pytest.raises(ValueError, match="drafts with a head, and there is none"):
        catalogue.build("chain")
    with pytest.raises(ValueError, match="vanilla does not draft with Medusa"):
        catalogue.build("vanilla", medusa)
    with pytest.raises(ValueError, match=r"chain does not draft with Leap .* rules that do: leap"):
        catalogue.build("chain", leap)
    with pytest.raises(ValueError, match="no setting 'dept'; did you mean 'depth'"):
        catalogue.build({"name": "chain", "dept": 1}, medusa)
