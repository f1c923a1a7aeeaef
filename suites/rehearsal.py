"""What a dry run reads before it foretells: the cohorts and the defenses' settings, so that a wrong request fails as early as it can.

The complaint is the one that the run itself would make. Nothing is written and nothing is downloaded: of a cohort that is not on this
machine only its name is known, and that is said.
"""

from __future__ import annotations

from suites.cohorts.registry import card
from suites.cohorts.spec import DataSpec
from suites.plan import CELL_FUNCTIONS, Plan


def rehearse(plan: Plan) -> list[str]:
    """Read each part's cohort and fit each defense to it, on every seed's split; what could not be looked at, in sentences.

    Raises
    ------
    RequestError
        Whatever the first training of each defense would raise before its first step.
    """
    cells = [cell for cell in plan.cells if cell.stage == "train" and not cell.spec.get("inserts")]
    if any(cell.call != CELL_FUNCTIONS["train"] for cell in cells):
        return []
    unread = [
        f"{part.data.name} is not on this machine, so its columns are not checked: infl-bench data fetch {part.data.name}"
        for part in plan.suite.each
        if not at_hand(part.data)
    ]
    from suites.bench import Bench  # and with it torch
    from suites.prepared import Prepared, prepare

    held: dict[tuple[str, str, int], Prepared] = {}
    for cell in sorted(cells, key=lambda cell: (str(cell.spec["data"]), int(cell.spec["seed"]))):
        data = DataSpec(**cell.spec["data"])
        if not at_hand(data):
            continue
        where = (cell.spec["task"], data.model_dump_json(), cell.spec["seed"])  # a site's size, which a defense may refuse, is its split's
        if where not in held:
            held = {where: prepare(cell.spec, None)}  # one at a time: cohorts are large
        Bench(cell.spec, None, held[where])
    return unread


def at_hand(data: DataSpec) -> bool:
    """Whether the cohort can be read without a download."""
    if data.name is None or not card(data.name).download:
        return True
    from suites.cohorts.named import at_hand as fetched

    return fetched(data.name)
