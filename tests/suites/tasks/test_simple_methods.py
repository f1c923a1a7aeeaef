"""What the report says of a trained network beside its field's simple methods, on the real cohorts."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.beside import AHEAD, control_in_words, divided
from reports.beside_table import beside_sentences
from reports.standing import each
from suites import api
from tests.suites.cohorts.test_downloads import real


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["perturbation", "spatial", "spatial_osmfish", "multiomics"])
def test_every_simple_method_that_the_network_is_not_ahead_of_is_named(suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the suite's own seeds: the verdict names it with the paired difference, and the table has the others."""
    monkeypatch.setenv("INFL_BENCH_DATA", str(real()))
    table = api.run(suite, out=tmp_path, workers=1, report=False, defenses=["centralized"], attacks=[])
    assert table.loc[table["status"] == "failed", "reason"].tolist() == []
    heads, _ = divided(table)
    assert set(heads["n"]) == {3}
    said = beside_sentences(table)
    print(suite, *said, sep="\n")
    for row in each(heads):
        named = [line for line in said if line.startswith(f"Not shown to do better than {control_in_words(str(row.control))},")]
        assert len(named) == int(row.standing != AHEAD), (row.control, row.gain)
        if named:
            assert f"{row.gain:+.3f} [" in named[0]  # the paired difference itself
