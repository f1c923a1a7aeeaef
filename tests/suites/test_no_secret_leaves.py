"""No artefact of a keyed run holds the key: store, transcripts, checkpoints, tables, logs and report; and a planted key is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from suites.api import Request, carry_out, request
from suites.bench import Bench
from suites.contracts import Secret
from suites.referee import train_cell
from tests.secret_scan import find_secret

SUITE = """suite: leaks
title: A small keyed suite
task: classification
data: {{name: synthetic}}
split: {{unit: record, train: 0.5, validation: 0.1, test: 0.2, auxiliary: 0.2}}
partition: {{kind: iid, sites: 3}}
federation: {{rounds: 2, flaws: [{flaws}], local: {{epochs: 1, batch: 50}}}}
seeds: 1
references: 2
probes: [{{gradients: 1, batch: 1, round: 0}}]
defenses: [{defenses}]
attacks: [{attacks}]
threats: [{{view: server, key: none}}, {{view: server, key: leaked}}]
engine: {{chunk: 4, keep_every: 1}}
"""


KEYED = ("infl:published", "infl:hardened:minimum=1")


def planned(folder: Path, *, flaws: str, defenses: str, attacks: str) -> Request:
    suite = folder / "leaks.yaml"
    suite.write_text(SUITE.format(flaws=flaws, defenses=defenses, attacks=attacks))
    return request(suite, out=folder / "out")


def secrets_of(asked: Request) -> list[Secret]:
    """Each target federation's key, derived again."""
    found = [Bench(cell.spec, None).secret() for cell in asked.plan.cells if cell.stage == "train"]
    assert None not in found
    return [secret for secret in found if secret is not None]


@pytest.mark.parametrize(
    "defenses",
    [
        (KEYED[0], f"{KEYED[1]}+secure_aggregation"),
        pytest.param((f"{KEYED[0]}+secure_aggregation", KEYED[1]), marks=pytest.mark.slow),
    ],
)
def test_no_file_of_a_keyed_run_holds_the_key(defenses: tuple[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = planned(
        tmp_path,
        flaws="",
        defenses=", ".join(f'"{ref}"' for ref in defenses),
        attacks="closed_form, key_vector, open_with_held_key, lira",
    )
    table = carry_out(asked, workers=1)
    assert not (table["status"] == "failed").any(), table.loc[table["status"] == "failed", "reason"].unique()
    files = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert {".parquet", ".safetensors", ".json", ".html", ".svg", ".pdf", ".csv"} <= files
    printed = "".join(capfd.readouterr())
    for secret in secrets_of(asked):
        assert find_secret(tmp_path, secret) == []
        assert find_secret([printed, table], secret) == []


def test_a_key_in_the_state_dict_is_found_in_the_store(tmp_path: Path) -> None:
    asked = planned(tmp_path, flaws="key_in_state", defenses='"infl:published"', attacks="closed_form")
    for cell in asked.plan.cells:
        if cell.stage == "train":
            (folder := tmp_path / "store" / "train" / cell.id).mkdir(parents=True)
            train_cell(cell.spec, folder)
    found = [line for secret in secrets_of(asked) for line in find_secret(tmp_path, secret)]
    assert any("wire.safetensors" in line for line in found)
