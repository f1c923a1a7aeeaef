"""The tables of docs/span.md: what one first-layer update tells of who was trained on, against records per hidden unit, on real cohorts.

``python -m tests.attacks.membership.span_tables OUT`` runs docs/span.yaml on every cohort and width below (about half an hour on one core;
what is finished is not run again), writes docs/span.csv and puts its tables into docs/span.md. CPTAC and Kang are read from
``$INFL_BENCH_DATA``. Intervals are Student's t over seeds: five, three where all cells of Kang are used. References (LiRA)
are trained at 64 units on the three cohorts of the bar; elsewhere they would cost twenty times all the rest.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from suites.api import run
from suites.bench import Bench
from tests.infl.hardened_tables import interval

DOCS = Path(__file__).parents[3] / "docs"
COHORTS = ("pbmc68k", "cptac", "kang/4")  # Kang's every fourth cell
WIDTHS = (16, 32, 128, 256)  # beside the suite's 64
SPARSER = ("kang/1",)  # all of its cells, at 64 units
OURS, PLAIN, SPAN = "infl:hardened:minimum=1", "fedavg", "matched_span:rounds=1"
SPANS = (SPAN, "span:rounds=1")
TITLES = {
    SPAN: "matched_span",
    "span:rounds=1": "span",
    "lira": "LiRA",
    "round_cosine": "round_cosine",
    "loss_threshold": "loss",
    "blind": "blind",
}


def real() -> Path | None:
    """The folder of real cohorts, where there is one."""
    folder = Path(os.environ.get("INFL_BENCH_DATA") or Path(__file__).parents[4] / "shared" / "data")
    return folder if (folder / "h5ad" / "kang_control_8donors_muscat.h5ad").is_file() else None


def source(cohort: str, scratch: Path) -> dict[str, Any]:
    """What ``suites.api.run`` is told of a cohort; ``kang/4`` is written to ``scratch`` as every fourth cell."""
    name, _, every = cohort.partition("/")
    if name == "pbmc68k":
        return {}
    folder = real()
    assert folder is not None
    os.environ["INFL_BENCH_DATA"] = str(folder)
    if name == "cptac":
        return {"data": "cptac"}
    import anndata

    path = scratch / f"kang_every_{every}.h5ad"
    if not path.is_file():
        scratch.mkdir(parents=True, exist_ok=True)
        anndata.read_h5ad(folder / "h5ad" / "kang_control_8donors_muscat.h5ad")[:: int(every)].copy().write_h5ad(path)
    return {"data": str(path), "label": "cell_type"}


def measure(cohort: str, out: Path, *, hidden: int = 64, **changes: Any) -> pd.DataFrame:
    """One row a defense and attack: AUC and TPR at 1 % FPR, mean over seeds with their interval, and records per hidden unit."""
    given = {"task": f"classification:dropout=0:hidden={hidden}"} if hidden != 64 else {}
    folder = out / f"{cohort.replace('/', '_')}-{hidden}-{'-'.join(changes.get('defenses', ['all'])).replace(':', '_')}"
    run(DOCS / "span.yaml", out=folder, workers=1, report=False, **source(cohort, out / "data"), **given, **changes)
    return read(folder).assign(cohort=cohort, hidden=hidden)


def read(folder: Path) -> pd.DataFrame:
    """The rows of a finished run."""
    table = pd.read_parquet(folder / "results.parquet")
    table = table[(table["status"] == "ok") & (table["goal"] == "membership")]
    manifest = next(iter(sorted((folder / "store" / "train").glob("*/cell.json"))))
    bench = Bench(json.loads(manifest.read_text())["spec"], folder / "store" / "prepared")
    size = sum(bench.shape.site_sizes) / len(bench.shape.site_sizes)
    width = bench.task.net(bench.shape.features, bench.shape.classes).state_dict()
    units = next(len(tensor) for tensor in width.values() if tensor.ndim == 2)
    rows = []
    for (defense, attack), own in table.groupby(["defense", "attack"]):
        values = {metric: own[own["metric"] == metric]["value"] for metric in ("auc", "tpr@1%")}
        area, rate = ((mean, max(low, 0.0), min(high, 1.0)) for mean, low, high in map(interval, (values["auc"], values["tpr@1%"])))
        rows.append(
            {
                "records_a_site": size,
                "records_per_unit": size / units,
                "defense": defense,
                "attack": attack,
                "seeds": len(values["auc"]),
                **dict(zip(("auc", "low", "high"), area)),
                **dict(zip(("tpr", "tpr_low", "tpr_high"), rate)),
            }
        )
    return pd.DataFrame(rows)


def everything(out: Path) -> pd.DataFrame:
    """All that docs/span.md states, one run after the other."""
    fast = [attack for attack in TITLES if attack != "lira"]
    made = [measure(cohort, out, defenses=[PLAIN]) for cohort in COHORTS]
    made += [measure(cohort, out, defenses=[OURS], attacks=SPANS) for cohort in COHORTS]
    made += [measure(cohort, out, hidden=hidden, defenses=[PLAIN], attacks=fast) for cohort in COHORTS for hidden in WIDTHS]
    made += [measure(cohort, out, defenses=[PLAIN], attacks=fast, seeds=3) for cohort in SPARSER]
    made += [measure(cohort, out, defenses=[OURS], attacks=SPANS, seeds=3) for cohort in SPARSER]
    return pd.concat(made, ignore_index=True)


def tables(table: pd.DataFrame) -> tuple[str, str]:
    """The page's two tables in Markdown: at 64 units beside all other attacks, and the curve over records per hidden unit."""
    wide = table[table["hidden"] == 64]
    head = ["cohort", "records a site", *TITLES.values(), "matched_span, infl:hardened", "span, infl:hardened"]
    lines = [_line(head), _line(["---"] * len(head))]
    for cohort in (*COHORTS, *SPARSER):
        own = wide[wide["cohort"] == cohort]
        if own.empty:
            continue
        cells = [_said(own, PLAIN, attack) for attack in TITLES] + [_said(own, OURS, attack) for attack in SPANS]
        lines.append(_line([_name(cohort), f"{own['records_a_site'].iloc[0]:.0f}", *cells]))
    plain = table[table["defense"] == PLAIN].sort_values("records_per_unit")
    shown = [attack for attack in TITLES if attack != "blind"]
    head = ["cohort", "hidden units", "records per unit", *(TITLES[attack] for attack in shown), "matched_span, TPR at 1 % FPR"]
    curve = [_line(head), _line(["---"] * len(head))]
    for (_, cohort, hidden), own in plain.groupby(["records_per_unit", "cohort", "hidden"]):
        cells = [_said(own, PLAIN, attack) for attack in shown] + [_said(own, PLAIN, SPAN, ("tpr", "tpr_low", "tpr_high"))]
        curve.append(_line([_name(str(cohort)), str(hidden), f"{own['records_per_unit'].iloc[0]:.2f}", *cells]))
    return "\n".join(lines), "\n".join(curve)


def _name(cohort: str) -> str:
    name, _, every = cohort.partition("/")
    return {"": name, "1": f"{name}, all cells", "2": f"{name}, every 2nd cell", "4": f"{name}, every 4th cell"}[every]


def _said(own: pd.DataFrame, defense: str, attack: str, names: tuple[str, str, str] = ("auc", "low", "high")) -> str:
    chosen = own[(own["defense"] == defense) & (own["attack"] == attack)]
    if chosen.empty:
        return "-"
    value, low, high = (float(chosen[name].iloc[0]) for name in names)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]" if math.isfinite(value) else "not resolvable"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def put(page: str, first: str, second: str) -> str:
    """The page with its two tables in the places that its comments mark."""
    for name, table in (("beside", first), ("curve", second)):
        before, _, rest = page.partition(f"<!-- {name} -->\n")
        _, _, after = rest.partition(f"<!-- end of {name} -->")
        page = f"{before}<!-- {name} -->\n{table}\n<!-- end of {name} -->{after}"
    return page


def write(found: pd.DataFrame) -> None:
    """docs/span.csv, and its tables in docs/span.md."""
    found.round(5).to_csv(DOCS / "span.csv", index=False)
    place = DOCS / "span.md"
    place.write_text(put(place.read_text(encoding="utf-8"), *tables(pd.read_csv(DOCS / "span.csv"))), encoding="utf-8")


if __name__ == "__main__":
    write(everything(Path(sys.argv[1])))
