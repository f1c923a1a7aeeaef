"""The report's folder: whole or not at all, the same each time, self-contained, and standing on whatever table it is given."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tables_fixture import curves, record, results

from reports import compare, drawing, gallery, page, render, schema, setting, words
from reports.schema import SchemaError
from reports.setting import reproduction
from reports.standing import standings

VOID = {"meta", "link", "br", "img", "hr", "input", "path", "use", "stop", "circle", "rect"}


class Reader(HTMLParser):
    """Collects ids, addresses and unclosed elements of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if held.get("id"):
            self.ids.append(str(held["id"]))
        self.addresses += [str(held[name]) for name in ("src", "href", "xlink:href", "data", "action") if held.get(name)]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    return reader


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render.render(results(), curves(), record(), tmp_path_factory.mktemp("run")).parent


def small() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two defenses, no partial keys: what needs many renderings stays quick."""
    kept = ["fedavg", "infl:published"]
    table, lines = results(), curves()
    table = table[table["defense"].isin(kept) & ~table["key"].str.startswith("partial") & (table["view"] != "outsider")]
    return table, lines[lines["defense"].isin(kept) & (lines["view"] == "server")]


def test_the_page_is_whole_and_asks_nothing_of_a_network(folder: Path) -> None:
    seen = read(folder / "index.html")
    assert seen.wrong == []
    assert seen.open == []
    assert len(seen.ids) == len(set(seen.ids))
    local = [a for a in seen.addresses if not a.startswith(("#", "data:"))]
    assert all((folder / a).is_file() for a in local)
    assert all(a[1:] in seen.ids for a in seen.addresses if a.startswith("#"))
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"'(]?\s*(https?:)?//", text)
    assert "@import" not in text
    assert "@font-face" not in text


def test_every_figure_and_every_table_comes_in_three_forms(folder: Path) -> None:
    figures = {p.stem for p in (folder / "figures").iterdir()}
    assert {f"{name}.{kind}" for name in figures for kind in ("svg", "pdf", "png")} == {p.name for p in (folder / "figures").iterdir()}
    names = {p.stem for p in (folder / "tables").iterdir()}
    assert {f"{name}.{kind}" for name in names for kind in ("csv", "tex", "md")} == {p.name for p in (folder / "tables").iterdir()}
    assert {"heatmap", "key-curve", "cost", "reconstructions", "roc-server-none", "plane-membership-server-without"} <= figures
    assert {"utility", "leakage", "claims", "cost", "missing", "scores"} <= names


def test_every_section_is_there(folder: Path) -> None:
    text = " ".join(read(folder / "index.html").text)
    for title in (
        "Verdict",
        "How to read this report",
        "Claims and measurements",
        "Threat model and limits",
        "What was not measured",
        "Do it again",
    ):
        assert title in text
    assert "70, 70, 70, 70, 70" in text  # n at each site
    assert "77aa0c51" in text  # digest
    assert "FloatingPointError: loss is not finite" in text
    assert "not resolvable: n0 x FPR = 1.4 < 3" in text
    assert text.count("How to read it") == len({p.stem for p in (folder / "figures").iterdir()})


def test_the_numbers_of_a_key_stand_under_the_name_of_their_defense_and_a_defense_without_one_has_none() -> None:
    table = results()
    plain = table[(table["defense"] == "infl:published") & (table["metric"] == "cosine")].assign(defense="fedavg")
    asked = plain.assign(goal="key", metric="", role="score", status="skipped", attack="key_vector", reason="has no key")
    report = page.sections(pd.concat([table, plain, asked], ignore_index=True), curves(), record())
    keys = next(section for section in report if section.name == "keys")
    headings = [block.value for block in keys.blocks if block.kind == "heading" and "numbers" in str(block.value)]
    assert headings == ["INFL published, in numbers", "INFL published + Secure aggregation, in numbers"]
    lists = [block.value for block in keys.blocks if block.kind == "list"]
    assert len(lists) == len(headings)
    assert sum("first layer with no key" in line for lines in lists for line in lines) == 1


CARD = {"server": "SRV sees", "site": "SITE sees", "outsider": "OUT sees", "does_not_protect": "OPEN remains"}


def test_the_card_of_every_defense_is_in_the_page(folder: Path) -> None:
    """From the record; defenses that share a card are named together, a layer of a stack has its own, and a missing card is said."""
    names = list(results()["defense"].unique())
    cards = {name: [{"layer": layer, **CARD} for layer in name.split("+")] for name in names if not name.startswith("centralized")}
    said = dict(
        setting.card_terms(
            results(), {"cards": {**cards, "fedavg": [], "dp_sgd:epsilon=32": [{**cards["dp_sgd:epsilon=32"][0], "site": "other"}]}}
        )
    )
    assert said["Centralized"] == [("Card", "The record of this run holds no card of it.")]
    assert said["FedAvg"] == [("Card", "The defense says nothing of itself.")]
    assert ("Another site sees", "other") in said["DP-SGD ε 32"]
    (shared,) = [title for title in said if title.startswith("Local only")]
    assert said[shared][0] == ("The server sees", "SRV sees")
    assert said[shared][3] == ("It does not protect", "OPEN remains")
    titles = [title for title, _ in said["INFL published + Secure aggregation"]]
    assert titles[0] == "INFL published: the server sees"
    assert titles[-1] == "Secure aggregation: it does not protect"
    assert {words.defense(name) for name in names} == {part for title in said for part in title.split(", ")}
    assert "What each defense lets whom see" in " ".join(read(folder / "index.html").text)


def test_the_data_section_says_what_the_record_knows_and_old_records_are_read() -> None:
    cohort = {**record()["cohort"], "persons": 12, "digest": "ab" * 32, "parts": {"train": 350, "test": 140}}
    said = dict(setting.data_terms(results(), {**record(), "cohort": cohort}))
    assert said["Size"] == "700 records, 765 features, 10 classes, 12 persons"
    assert said["Licence"] == "CC BY 4.0"
    assert said["Training records at each site"] == "70, 70, 70, 70, 70"
    assert said["Digest of the content (SHA-256)"] == "ab" * 32
    assert "50% train (350)" in said["Parts, disjoint"]
    ragged = dict(setting.data_terms(results(), {"cohort": {"site_sizes": [1, 2], "site_sizes_by_seed": [[1, 2], [2, 1]]}}))
    assert ragged["Training records at each site"] == "seed 0: 1, 2; seed 1: 2, 1"
    assert setting.data_terms(results(), {}) == [("Cohort", "pbmc68k")]
    assert ("code", "infl-bench run x --seeds 2") in setting.reproduction({"command": "infl-bench run x --seeds 2"})


def test_a_plane_that_repeats_another_is_a_sentence() -> None:
    table, _ = small()
    wrong = table[(table["defense"] == "infl:published") & (table["goal"] == "reconstruction") & (table["key"] == "none")]
    same = pd.concat(
        [table[~((table["goal"] == "reconstruction") & (table["key"] == "wrong"))], wrong.assign(key="leaked")], ignore_index=True
    )
    other = same.assign(value=same["value"].where((same["key"] != "leaked") | (same["metric"] != "leakage"), same["value"] - 0.2))
    name = "plane-reconstruction-server-leaked"
    assert name not in {p.name for p in gallery.planes(same, standings(same))}
    assert any("with the leaked key are the same" in line for line in gallery.repeated(standings(same)))
    assert name in {p.name for p in gallery.planes(other, standings(other))}


def test_each_picture_says_in_one_sentence_how_to_read_it() -> None:
    for section in page.sections(*small(), record()):
        for block in section.blocks:
            if block.kind == "picture":
                assert block.value.reading.endswith(".")
                assert ". " not in block.value.reading
                assert len(block.value.alt) > 20


def test_the_same_tables_give_the_same_bytes(tmp_path: Path) -> None:
    """In two processes with different hash seeds."""
    table, lines = small()
    table.to_parquet(tmp_path / "results.parquet")
    lines.to_parquet(tmp_path / "curves.parquet")
    (tmp_path / "record.json").write_text(json.dumps(record()))
    made = []
    for seed in ("1", "2"):
        code = "import sys; from reports.render import report; report(sys.argv[1])"
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        )
        made.append(digests(tmp_path / "report"))
    assert made[0] == made[1]
    assert len(made[0]) > 20


def test_a_report_that_breaks_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, lines = small()
    render.render(table, lines, record(), tmp_path)
    before = digests(tmp_path / "report")
    real = drawing.save

    def full(picture: Any, where: Path) -> str:
        if picture.name == "cost":
            raise OSError(28, "No space left on device")
        return real(picture, where)

    monkeypatch.setattr(drawing, "save", full)
    with pytest.raises(OSError, match="No space"):
        render.render(table, lines, record(), tmp_path)
    assert digests(tmp_path / "report") == before
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_what_the_tables_say_is_text_not_markup(tmp_path: Path) -> None:
    """A reason, a name or a title from elsewhere cannot enter the page as HTML."""
    table, lines = small()
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    table = table.assign(reason=table["reason"].where(table["status"] == "ok", evil), data=table["data"] + evil)
    text = render.render(
        table, lines.assign(data=lines["data"] + evil), {**record(), "title": evil, "suite_text": evil}, tmp_path
    ).read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text


def test_a_table_that_is_none_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="lacks the column"):
        render.render(results().drop(columns="role"), curves(), {}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def failed(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[table["goal"].isin(schema.GOALS)].drop_duplicates(["defense", "attack", "view", "key", "seed"])
    return rows.assign(metric="", value=np.nan, low=np.nan, high=np.nan, status="failed", role="score", reason="ValueError: boom")


ODD = {
    "nothing": lambda t: schema.empty(),
    "all failed": failed,
    "utility only": lambda t: t[t["goal"] == "utility"],
    "attacks only": lambda t: t[t["goal"].isin(schema.GOALS)],
    "one defense": lambda t: t[t["defense"] == "fedavg"],
    "one seed": lambda t: t[t["seed"] == 0],
    "controls only": lambda t: t[t["role"] == "control"],
    "costs only": lambda t: t[t["goal"] == "cost"],
    "values missing": lambda t: t.assign(value=np.nan, low=np.nan, high=np.nan, reason="not a number"),
    "strangers": lambda t: t.assign(defense=t["defense"] + ":ρ=½", attack=t["attack"].where(t["attack"] == "", "x_" + t["attack"])),
    "property": lambda t: t.assign(goal=t["goal"].replace("membership", "property")),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_tables_still_give_a_whole_page(name: str, tmp_path: Path) -> None:
    table, lines = small()
    seen = read(render.render(ODD[name](table), lines if name != "nothing" else schema.empty_curves(), {}, tmp_path))
    assert seen.wrong == []
    assert seen.open == []
    assert "nan" not in " ".join(seen.text).split()


def test_two_cohorts_have_pictures_of_their_own(tmp_path: Path) -> None:
    table, lines = small()
    table = table[table["goal"] != "reconstruction"]
    both = pd.concat([table, table.assign(data="other")], ignore_index=True)
    made = render.render(both, pd.concat([lines, lines.assign(data="other")]), record(), tmp_path).parent
    names = {p.stem for p in (made / "figures").iterdir()}
    assert {"quickstart-classification-pbmc68k-heatmap", "quickstart-classification-other-heatmap"} <= names


def test_report_sets_two_runs_side_by_side(tmp_path: Path) -> None:
    table, lines = small()
    there = table.copy()
    rows = (there["metric"] == "accuracy") & (there["role"] == "utility") & (there["defense"] == "infl:published")
    there.loc[rows, ["value", "low", "high"]] -= 0.1
    other = {**record(), "versions": {**record()["versions"], "torch": "2.6.0"}}
    for name, held, about in (("here", table, record()), ("there", there, other)):
        (tmp_path / name).mkdir()
        held.to_parquet(tmp_path / name / "results.parquet")
        lines.to_parquet(tmp_path / name / "curves.parquet")
        (tmp_path / name / "record.json").write_text(json.dumps(about))
    text = " ".join(read(render.report(tmp_path / "here", tmp_path / "there")).text)
    assert "Side by side" in text
    assert '"2.13.0" here, "2.6.0" there' in text
    gap = compare.beside(table, there).set_index(["defense", "measure"])
    assert gap.at[("infl:published", "accuracy"), "difference"] == pytest.approx(0.1)
    assert gap.at[("fedavg", "accuracy"), "difference"] == pytest.approx(0.0)
    assert not (tmp_path / "there" / "report").exists()


def test_two_runs_are_compared_in_words() -> None:
    table, _ = small()
    there = table[table["defense"] != "fedavg"].copy()
    rows = (there["metric"] == "accuracy") & (there["role"] == "utility")
    there.loc[rows, ["value", "low", "high"]] -= 0.1
    leaks = (there["metric"] == "leakage") & (there["goal"] == "reconstruction") & (there["role"] == "score")
    there.loc[leaks, ["value", "low", "high"]] += 1e-6  # moved, but not beyond its interval
    first, *rest = compare.changes(compare.beside(table, there))
    assert first.startswith("2 of ")
    assert first.endswith("1 of them beyond the intervals.")
    assert [line[: line.index(",")] for line in rest] == ["INFL published: accuracy is higher here"]
    assert compare.unshared(table, there) == ["Only in this run, defense: FedAvg."]
    assert compare.changes(compare.beside(table, table)) == ["All numbers that both runs have are the same."]
    assert compare.unshared(table, table) == []
    differ = dict(compare.differences(record(), {**record(), "cohort": {**record()["cohort"], "records": 701}}))
    assert differ == {"cohort.records": "700 here, 701 there"}


def test_report_draws_again_what_render_drew(tmp_path: Path) -> None:
    table, lines = small()
    render.render(table, lines, record(), tmp_path)
    before = digests(tmp_path / "report")
    table.to_parquet(tmp_path / "results.parquet")
    lines.to_parquet(tmp_path / "curves.parquet")
    (tmp_path / "record.json").write_text(json.dumps(record()))
    render.report(tmp_path)
    assert digests(tmp_path / "report") == before


def test_a_folder_without_results_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no results\.parquet, so there is nothing to report"):
        render.report(tmp_path)


def test_intervals_are_set_back_and_other_brackets_are_not() -> None:
    assert str(render.ranged("0.8 [0.7, 0.9] x")) == '0.8 <span class="range">[0.7, 0.9]</span> x'
    assert str(render.ranged("[INST] <b>")) == "[INST] &lt;b&gt;"


def test_reports_import_nothing_of_the_other_packages() -> None:
    """They know a table with named columns only."""
    others = ("torch", "suites", "attacks", "baselines", "infl", "matplotlib.pyplot")
    code = f"import sys, reports.render; print([m for m in {others} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_digest_under_reproduction_is_the_contents_own() -> None:
    def shown(record: dict[str, object]) -> dict[str, str]:
        return dict(next(found for kind, found in reproduction(record) if kind == "terms"))

    assert shown({"cohort": {"digest": "a6cc08"}, "data_digest": "named pbmc68k"})["Data (SHA-256 of the content)"] == "a6cc08"
    assert shown({"data_digest": "77aa0c51"})["Data (SHA-256 of the content)"] == "77aa0c51"


def test_the_convention_of_the_rocs_is_told_as_the_rows_name_it(tmp_path: Path) -> None:
    """Older tables have no such column and load as ever; a run compared with one is still paired by seed."""
    table, lines = small()
    spoken = table.assign(protocol=np.where(table["goal"] == "membership", "steps, ties together", ""))

    def told(held: pd.DataFrame) -> list[str]:
        membership = next(part for part in page.sections(held, lines, record()) if part.name == "membership")
        return [block.value for block in membership.blocks if block.kind == "text"]

    assert [text for text in told(spoken) if "Convention of every rate and area: steps, ties together. Intervals hold both levels" in text]
    assert told(schema.validate(table)) == []
    assert told(table.assign(protocol="")) == []
    beside = compare.beside(spoken, table)
    utility = beside[beside["measure"] == "accuracy"]
    assert len(utility) == 2
    assert (utility["difference"] == 0).all()
