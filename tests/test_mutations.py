"""The mutations are broken by hand and seldom; that they still fit the sources is looked at each time."""

from __future__ import annotations

from tests.mutations import EXPLAINED, REMEDIES, ROOT, all_mutants


def test_each_mutation_fits_the_sources() -> None:
    mutants = all_mutants()  # SystemExit names a remedy whose text is not there, or there twice
    assert len(mutants) > len(REMEDIES)
    for mutant in mutants:
        source = (ROOT / mutant.file).read_text(encoding="utf-8")
        assert mutant.apply(source) != source, mutant.name


def test_each_explanation_is_of_a_mutation() -> None:
    names = [mutant.name for mutant in all_mutants()]
    for what in EXPLAINED:
        assert any(what in name for name in names), what
