"""``infl-bench``: the only part that talks. Exit codes: 0 all well, 1 some cell failed or a condition held, 2 the request was wrong.

Nothing heavy is imported before it is needed: ``--help`` and ``list`` start without torch, pandas or numpy.
"""

from __future__ import annotations

import shlex
import sys
import time
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suites.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from suites.api import Request
    from suites.rehearsal import Rehearsed

app = typer.Typer(
    name="infl-bench",
    help="How much privacy a federated-learning defense really gives on omics data, and what it costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
KINDS = ("suites", "tasks", "data", "defenses", "attacks")
Out = Annotated[Path | None, typer.Option(help="Folder for store, tables and report [infl-bench-out/SUITE].")]


def main() -> None:
    """Run the command line; what a user got wrong is one sentence, never a traceback."""
    try:
        for entry in entry_points(group="infl_bench.commands"):  # such a module imports typer alone until its command runs
            if entry.name not in {group.name for group in app.registered_groups}:
                app.add_typer(entry.load(), name=entry.name)
        code = app(standalone_mode=False)
    except RequestError as error:
        _complain(str(error))
        code = 2
    except KeyboardInterrupt:
        _complain("stopped; run the same command again to go on where it stopped")
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    except Exception as error:
        if not hasattr(error, "format_message"):  # anything but a misuse of an option, which typer explains
            raise
        _complain(_misuse(error))
        code = 2
    raise SystemExit(code if isinstance(code, int) else 0)


@app.command()
def run(
    suite: Annotated[str, typer.Argument(help="A suite of the catalogue, or a YAML file.")],
    out: Out = None,
    task: Annotated[str | None, typer.Option(help="Task in place of the suite's.")] = None,
    data: Annotated[str | None, typer.Option(help="Cohort by name, or an .h5ad file.")] = None,
    label: Annotated[str | None, typer.Option(help="obs column to predict.")] = None,
    site: Annotated[str | None, typer.Option(help="obs column that says which site holds a record.")] = None,
    person: Annotated[str | None, typer.Option(help="obs column of the person behind a record.")] = None,
    transform: Annotated[str | None, typer.Option(help="Of the values: auto (counts are normalised), log1p or none.")] = None,
    missing: Annotated[str | None, typer.Option(help="Of NaN: error, impute (auxiliary mean) or impute_by_site.")] = None,
    drop: Annotated[str | None, typer.Option(help="What may be left out, by comma: unlabelled, rare, empty.")] = None,
    data_only_embedded: Annotated[
        bool, typer.Option("--data-only-embedded", help="Download nothing: generated cohorts stand in, and the report names them.")
    ] = False,
    defense: Annotated[str | None, typer.Option(help="Defenses, by comma; + stacks: infl:published+secure_aggregation.")] = None,
    attack: Annotated[str | None, typer.Option(help="Attacks, by comma; a file as mine.py:Mine.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Independent repeats.")] = None,
    references: Annotated[int | None, typer.Option(help="Reference federations a defense and seed.")] = None,
    budget: Annotated[float | None, typer.Option(help="The attacks' effort: 1, 10, 100 times their own.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes at a time [one a core].")] = None,
    executor: Annotated[str, typer.Option(help="Where cells run; only local so far.")] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which cells would run, and how long.")] = False,
    fail_if: Annotated[str | None, typer.Option(help="Exit with 1 if this holds, e.g. 'leakage.low > 0.2'.")] = None,
) -> int:
    """Run a suite, or what is missing of it, and draw its report."""
    from suites import api, condition

    _one_of(executor, ("local",), "executor")
    if device is not None:
        _one_of(device, ("auto", "cpu", "cuda"), "device")
    api.check_workers(workers)
    bound = condition.parse(fail_if) if fail_if else None
    asked = api.request(
        suite,
        out=out,
        task=task,
        data=data,
        label=label,
        site=site,
        person=person,
        transform=transform,
        missing=missing,
        drop=_listed(drop),
        data_only_embedded=data_only_embedded,
        defenses=_listed(defense),
        attacks=_listed(attack),
        seeds=seeds,
        references=references,
        budget=budget,
        device=device,
        command=shlex.join(["infl-bench", *sys.argv[1:]]) if "run" in sys.argv[1:2] else "",
    )
    if dry_run:
        rehearsed = import_module("suites.rehearsal").rehearse(asked.plan)
        for unread in rehearsed.unread:
            _complain(unread)
        _foretell(asked, workers, rehearsed)
        return 0
    started = time.monotonic()
    table = _with_progress(asked, workers)
    failed = table[table["status"] == "failed"]
    _tell_end(asked, table, failed, time.monotonic() - started)
    kept = condition.holds(bound, table) if bound else []
    for line in kept:
        _complain(f"--fail-if: {line}")
    return 1 if len(failed) or kept else 0


@app.command(name="list")
def list_(what: Annotated[str | None, typer.Argument(help="suites, tasks, data, defenses or attacks; all if left out.")] = None) -> None:
    """What is there: suites, tasks, data, defenses, attacks. Read from source; no plug-in is imported."""
    from suites import catalog_view, registry

    registry.refuse_intruders()
    for kind in KINDS if what is None else (_one_of(what, KINDS, "list"),):
        catalog_view.show(kind)


@app.command()
def check(
    ref: Annotated[str, typer.Argument(help="An attack or defense: a name, or mine.py:Mine.")],
    patience: Annotated[
        float | None,
        typer.Option(min=0, help="CPU seconds that one attack on a secret at 1, 10 or 100 times its budget may take [60]."),
    ] = None,
) -> int:
    """Hold a plug-in to the contract's tests, and run the controls on it."""
    from suites import catalog_view, registry

    registry.refuse_intruders()
    return catalog_view.check(ref, patience)


data_app = typer.Typer(help="Cohorts: show a card, fetch a pinned download.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command(name="show")
def data_show(name: Annotated[str, typer.Argument(help="A cohort, such as pbmc68k; `infl-bench list data` has them all.")]) -> None:
    """The card of a cohort: origin, licence, columns, cautions."""
    from suites.cohorts.registry import card

    print(card(name).text())


@data_app.command(name="fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A cohort, such as cptac; `infl-bench list data` has them all.")],
    mirror: Annotated[Path | None, typer.Option(help="Folder that already holds the files [$INFL_BENCH_DATA].")] = None,
) -> None:
    """Download a pinned cohort, check its digest, and parse it; what is damaged is made again."""
    from suites.cohorts.registry import card

    if not card(name).download:
        print(f"{name} needs no download: it is installed with the package or generated")
        return
    from suites.cohorts.fetch import fetch
    from suites.cohorts.named import parsed

    for file, path in fetch(name, mirror, print).items():
        print(f"{file}: {path}")
    print(f"parsed: {parsed(name, mirror, print)}")


@data_app.command(name="convert")
def data_convert(
    kind: Annotated[
        str,
        typer.Argument(help="procan (a CSV), gears (perturb_processed.h5ad), huvec (folders SCR, Sh-B, Sh-E, Sh-H), multiome (10x's .h5)."),
    ],
    path: Annotated[Path, typer.Argument(help="The file or folder as it was given out.")],
    out: Annotated[Path, typer.Option(help="The .h5ad to write.")],
    metadata: Annotated[Path | None, typer.Option(help="A second table of the same samples (procan, multiome).")] = None,
) -> None:
    """Files of the published evaluation's own cohorts, and of 10x's Multiome, in their published layouts to an .h5ad for --data."""
    from suites.cohorts.published_files import GEARS, convert
    from suites.cohorts.written import image, put, refuse_target
    from suites.store import writing

    refuse_target(out, path, path / GEARS, metadata)
    made = convert(kind, path, metadata, _complain)
    with writing(out.parent):
        put(image(made), out)
    print(f"{out}: {made.n_obs} records x {made.n_vars} features, obs columns {', '.join(made.obs.columns)}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The --out folder of a finished run.")],
    other: Annotated[Path | None, typer.Argument(help="A second run to set beside it.")] = None,
) -> None:
    """Draw the report of a finished run again, or of two runs side by side."""
    from suites.redraw import redraw

    print(f"report: {redraw(folder, other)}")


@app.command()
def profile(
    suite: Annotated[str, typer.Argument(help="Whose defenses and widths to profile.")] = "quickstart",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    features: Annotated[int, typer.Option(help="Width of the input.", min=2)] = 765,
    batch: Annotated[int, typer.Option(help="Records in a batch.", min=2)] = 100,
    steps: Annotated[int, typer.Option(help="Steps timed.", min=1)] = 20,
) -> None:
    """Samples a second, step latency, peak memory, FLOP and share of the device's measured peak, for each defense."""
    from suites.profile import profile_suite, show

    _one_of(device, ("auto", "cpu", "cuda"), "device")
    show(profile_suite(suite, device=device, features=features, batch=batch, steps=steps))


@app.command()
def audit(
    scores: Annotated[Path, typer.Argument(help="A .csv with columns score,member, or an .npz with such arrays; higher for members.")],
    out: Annotated[Path | None, typer.Option(help="Folder for a report [none is drawn].")] = None,
    score: Annotated[str, typer.Option(help="Name of the column of scores.")] = "score",
    member: Annotated[str, typer.Option(help="Name of the column that is 1 for members.")] = "member",
    delta: Annotated[float, typer.Option(help="Of every ε statement.")] = 1e-5,
    confidence: Annotated[float, typer.Option(help="One-sided, of every bound.")] = 0.95,
    independent: Annotated[bool, typer.Option("--independent", help="Each record was made a member by a coin of its own.")] = False,
    claimed: Annotated[float | None, typer.Option(help="An ε that is claimed; exit with 1 if a bound lies above it.")] = None,
) -> int:
    """Membership and ε from the scores of any attack: AUC, TPR at low FPR, and lower bounds on ε, each with what it assumes."""
    from suites.auditing import files
    from suites.auditing.scores import audit_scores

    inside, outside = files.read_scores(scores, score, member)
    found = audit_scores(
        inside, outside, delta=delta, confidence=confidence, independent_inclusion=independent, claimed=claimed, name=scores.stem
    )
    files.show(found)
    if out is not None:
        print(f"report: {found.report(out)}")
    return 1 if (found.table["metric"] == "flag:claim_refuted").any() else 0


def _with_progress(asked: Request, workers: int | None) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    from suites import api
    from suites.runner import Progress

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("starting", total=len(asked.plan.cells), left="")

        def tell(now: Progress) -> None:
            title = now.running[0] if now.running else "gathering"
            failed = f" [red]{now.failed} failed[/red]" if now.failed else ""
            bar.update(line, completed=now.done + now.failed, description=title + failed, left=f"{_duration(now.seconds_left)} left")

        return api.carry_out(asked, workers=workers, tell=tell)


def _tell_end(asked: Request, table: Any, failed: Any, seconds: float) -> None:
    late = int((table["status"] == "skipped").sum()) - len(asked.plan.skipped)
    found = f" ({late} more found nothing that they could read)" if late else ""
    print(f"{len(asked.plan.cells)} cells, {len(failed)} failed, {len(asked.plan.skipped)} skipped{found}, {_duration(seconds)}")
    print(f"table:  {asked.out / 'results.parquet'}\nreport: {asked.out / 'report' / 'index.html'}")
    for _, row in failed.drop_duplicates(["defense", "attack", "reason"]).head(10).iterrows():
        _complain(f"failed: {' / '.join(str(row[name]) for name in ('defense', 'attack', 'view', 'key') if row[name])}: {row['reason']}")


def _foretell(asked: Request, workers: int | None, rehearsed: Rehearsed) -> None:
    from suites.forecast import Forecast
    from suites.runner import default_workers, pending, store_of

    store, forecast = store_of(asked.out), Forecast()
    for spec, values in rehearsed.values:
        forecast.sized(spec, values)
    forecast.recall(store)
    for spec, seconds in rehearsed.trainings:
        forecast.expect(spec, seconds)
    count = workers or default_workers(asked.device)
    missing = pending(asked.plan, store)
    print(f"{asked.plan.suite.suite} on {asked.device}: {len(asked.plan.cells)} cells, {len(missing)} to run, {count} at a time")
    for stage in ("train", "reference", "attack"):
        cells = [cell for cell in missing if cell.stage == stage]
        print(f"  {stage:<9} {len(cells):>5} cells  {_duration(sum(map(forecast.seconds, cells))):>8}")
    print(f"  skipped   {len(asked.plan.skipped):>5} combinations that cannot apply")
    basis = (
        "from cells measured in this folder"
        if forecast.measured
        else "trainings by an epoch of each, attacks a guess from the cohort's size"
    )
    print(f"foretold: {_duration(forecast.total(missing, count))} ({basis})")


def _misuse(error: Any) -> str:
    """A misuse of the command line in one sentence; what is left out is named with what it is."""
    parameter, context = getattr(error, "param", None), getattr(error, "ctx", None)
    words: list[str] = []
    while context is not None and context.parent is not None:
        words.insert(0, context.info_name)
        context = context.parent
    command = " ".join(["infl-bench", *words])
    if type(error).__name__ == "MissingParameter" and parameter is not None:
        what = f", {parameter.help.rstrip('.')[0].lower()}{parameter.help.rstrip('.')[1:]}" if getattr(parameter, "help", None) else ""
        name = parameter.opts[0] if parameter.param_type_name == "option" else str(parameter.name).upper()
        return f"`{command}` needs {name}{what}; see `{command} --help`"
    return f"{error.format_message().rstrip('.')}; see `{command} --help`"


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _one_of(word: str, allowed: tuple[str, ...], what: str) -> str:
    if word not in allowed:
        hint = did_you_mean("cuda" if word == "gpu" else word, allowed)
        raise RequestError(f"{what} '{word}' is not known{hint}")
    return word


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return (
        f"{seconds:.1f} s"
        if seconds < 10
        else f"{whole} s"
        if whole < 120
        else f"{whole // 60} min"
        if whole < 7200
        else f"{whole // 3600} h"
    )


def _complain(sentence: str) -> None:
    print(f"infl-bench: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    main()
