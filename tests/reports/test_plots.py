"""Pictures show what the table says, and their labels stay clear of each other."""

from __future__ import annotations

import math
import re
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from tables_fixture import DEFENSES, MAJORITY, curves, record, results

from reports import gallery
from reports.drawing import as_bytes
from reports.plots import style
from reports.plots.cost import cost
from reports.plots.heatmap import heatmap, scale
from reports.plots.key_curve import key_curve, position
from reports.plots.placing import Label, place, spread
from reports.plots.plane import LEFT, RIGHT, allowed, front, plane
from reports.plots.reconstruction import TOP, reconstructions
from reports.plots.roc import area, roc
from reports.standing import cells, openings, standing, standings, worst_profiles


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return results()


@pytest.fixture(scope="module")
def lines() -> pd.DataFrame:
    return curves()


def texts(figure: Any) -> list[str]:
    """Everything written in a figure."""
    found = [text for axes in figure.axes for text in axes.texts] + list(figure.texts)
    return [text.get_text() for text in found if text.get_text()]


def overlapping(figure: Any) -> list[tuple[str, str]]:
    """Pairs of defense labels whose boxes cover each other."""
    renderer = figure.canvas.get_renderer()
    held = [t for axes in figure.axes for t in axes.texts if t.get_zorder() == 6]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in held]
    return [(a, b) for (a, x), (b, y) in combinations(boxes, 2) if x.overlaps(y)]


@pytest.mark.parametrize(
    ("goal", "view"), [("membership", "server"), ("membership", "outsider"), ("reconstruction", "server"), ("key", "server")]
)
def test_plane_labels_every_measured_defense_and_none_overlap(table: pd.DataFrame, goal: str, view: str) -> None:
    figure = plane(table, goal, view, "without")
    stand = standing(table, goal, view, "without")
    written = " ".join(texts(figure)).replace("\n", " ")
    for row in stand.itertuples(index=False):
        from reports import words

        assert words.defense(row.defense) in written  # beside its mark, or among those not drawn
    assert overlapping(figure) == []


def test_plane_labels_keep_apart_when_all_marks_crowd(table: pd.DataFrame) -> None:
    """Ten defenses within a hand's breadth."""
    crowd = table[table["goal"].isin(["membership", "utility"])].copy()
    near = crowd["metric"].isin(["leakage"]) & (crowd["role"] == "score")
    crowd.loc[near, ["value", "low", "high"]] = crowd.loc[near, ["value", "low", "high"]] * 0.02 + 0.4
    same = (crowd["metric"] == "accuracy") & (crowd["role"] == "utility")
    crowd.loc[same, ["value", "low", "high"]] = crowd.loc[same, ["value", "low", "high"]] * 0.02 + 0.7
    figure = plane(crowd, "membership", "server", "without")
    assert len([t for t in figure.axes[0].texts if t.get_zorder() == 6]) == len(DEFENSES)
    assert overlapping(figure) == []


def test_plane_clips_pictures_only_and_points_at_what_it_clips(table: pd.DataFrame) -> None:
    far = table.copy()
    hit = (
        (far["defense"] == "dp_sgd:epsilon=8") & (far["metric"] == "leakage") & (far["goal"] == "reconstruction") & (far["role"] == "score")
    )
    far.loc[hit, ["value", "low", "high"]] = (3.0, 2.8, 3.2)
    assert standing(far, "reconstruction", "server", "without").set_index("defense").at["dp_sgd:epsilon=8", "leakage"] > 2.5
    axes = plane(far, "reconstruction", "server", "without").axes[0]
    marks = [line for line in axes.lines if line.get_marker() not in {"None", None, ""}]
    measured = [line for line in marks if line.get_markeredgecolor() != style.MUTED]
    assert len(measured) == 6
    assert all(LEFT <= x <= RIGHT for line in measured for x in line.get_xdata())
    assert any(text.arrow_patch is not None for text in axes.texts if not text.get_text())


def test_plane_tells_claim_and_measurement_apart(table: pd.DataFrame) -> None:
    """Three claims give three hollow marks; reconstructions have none, since ε does not bound them."""

    def hollow(figure: Any) -> int:
        marks = [line for line in figure.axes[0].lines if line.get_marker() not in {"None", ""}]
        return sum(line.get_markerfacecolor() == style.PAPER and line.get_markeredgecolor() != style.MUTED for line in marks)

    assert hollow(plane(table, "membership", "server", "without")) == 3
    assert hollow(plane(table, "reconstruction", "server", "without")) == 0
    assert "claims ε ≤ 8" in " ".join(texts(plane(table, "reconstruction", "server", "without")))


def test_plane_names_those_it_cannot_draw_with_the_reason(table: pd.DataFrame) -> None:
    written = " ".join(texts(plane(table, "reconstruction", "server", "without")))
    assert "Not drawn, since no update crosses a wire here: Centralized, Local only." in written


def test_a_reason_is_given_once_with_all_its_defenses(table: pd.DataFrame) -> None:
    """A cell may give several reasons, and several cells the same one; of several, the first is told."""
    rows = (table["status"] == "skipped") & (table["goal"] == "reconstruction") & (table["attack"] == "cosine_inversion")
    both = table.copy()
    both.loc[rows & (both["defense"] == "local_only"), "reason"] = "no model is released; no update crosses a wire here"
    notes = [t.get_text() for t in plane(both, "reconstruction", "server", "without").texts if t.get_text().startswith("Not drawn")]
    assert notes == ["Not drawn, since no update crosses a wire here: Centralized, Local only."]


def test_planes_share_their_utility_axis(table: pd.DataFrame) -> None:
    assert plane(table, "membership", "server", "without").axes[0].get_ylim() == plane(table, "key", "server", "without").axes[0].get_ylim()


def test_front_is_what_nobody_beats() -> None:
    rng = np.random.default_rng(3)
    leakage, utility = rng.random(40), rng.random(40)
    kept = set(front(leakage, utility))
    for i in range(40):
        beaten = any((leakage[j] <= leakage[i]) and (utility[j] >= utility[i]) and j != i for j in range(40))
        assert (i in kept) == (not beaten)


def test_allowed_leakage_follows_the_trade_off_function() -> None:
    """Against numerical integration of max(0, 1 − δ − e^ε α, e^−ε (1 − δ − α)), and the ends."""
    for epsilon, delta in ((0.1, 0.0), (1.0, 1e-5), (3.0, 0.01), (8.0, 1e-3)):
        fpr = np.linspace(0, 1, 2_000_001)
        missed = np.maximum(0, np.maximum(1 - delta - np.exp(epsilon) * fpr, np.exp(-epsilon) * (1 - delta - fpr)))
        assert allowed(epsilon, delta) == pytest.approx(1 - 2 * np.trapezoid(missed, fpr), abs=1e-5)
    assert allowed(0.0, 0.0) == 0.0
    assert allowed(1e6, 0.0) == pytest.approx(1.0)


def test_heatmap_has_a_field_for_every_cell_with_its_reason(table: pd.DataFrame) -> None:
    asked = cells(table)
    figure = heatmap(table)
    axes = figure.axes[0]
    assert len(axes.patches) == len(asked)
    assert sum(patch.get_hatch() is not None for patch in axes.patches) == sum(cell.status == "skipped" for cell in asked)
    written = texts(figure)
    for reason in {cell.reason for cell in asked if cell.reason}:
        assert any(reason in text for text in written)


def test_heatmap_prints_the_mean_over_seeds(table: pd.DataFrame) -> None:
    rows = table[
        (table["defense"] == "fedavg") & (table["attack"] == "lira") & (table["view"] == "server") & (table["metric"] == "leakage")
    ]
    assert f"{rows['value'].mean():.2f}" in texts(heatmap(table))
    held = next(c for c in cells(table) if (c.defense, c.attack, c.view) == ("fedavg", "lira", "server"))
    assert held.mean == pytest.approx(rows["value"].mean())


def test_heatmap_marks_a_cell_that_failed_on_every_seed(table: pd.DataFrame) -> None:
    broken = table[(table["attack"] != "lira") | (table["defense"] != "fedavg")]
    rows = table[(table["attack"] == "lira") & (table["defense"] == "fedavg") & (table["metric"] == "leakage")]
    rows = rows.assign(status="failed", metric="", value=np.nan, low=np.nan, high=np.nan, reason="ValueError: boom")
    held = [c for c in cells(pd.concat([broken, rows])) if c.attack == "lira" and c.defense == "fedavg"]
    assert {c.status for c in held} == {"failed"}
    assert all("boom" in c.reason and "3 of 3" in c.reason for c in held)


def test_heat_rises_in_darkness_alone() -> None:
    """So that it reads in grey and for every colour vision."""
    colours = scale()(np.linspace(0, 1, 64))[:, :3]
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) < 1e-9).all()


def test_roc_is_log_log_and_shades_what_cannot_be_resolved(lines: pd.DataFrame) -> None:
    figure = roc(lines, "server", "none")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == len(DEFENSES)
    assert {(axes.get_xscale(), axes.get_yscale()) for axes in shown} == {("log", "log")}
    assert any("140 non-members" in text and "3/140" in text for text in texts(figure))
    edge = max(patch.get_extents().transformed(shown[0].transData.inverted()).x1 for patch in shown[0].patches)
    assert edge == pytest.approx(3 / 140)


def test_areas_in_the_roc_end_at_one(lines: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few seeds near 1 give a t interval beyond it, which no area can be."""
    monkeypatch.setattr("reports.plots.roc.mean_interval", lambda areas: (0.7, 1.2))
    shown = [text.get_text() for axes in roc(lines, "server", "none").axes for text in axes.texts]
    ends = [float(found) for text in shown for found in re.findall(r"\[([\d.]+), ([\d.]+)\]", text) for found in found]
    assert ends
    assert max(ends) <= 1.0


def test_roc_area_is_that_of_the_scores() -> None:
    rng = np.random.default_rng(5)
    member, other = rng.normal(1, 1, 300).round(1), rng.normal(0, 1, 200).round(1)
    cuts = np.unique(np.concatenate([member, other]))[::-1]
    x = np.array([0.0, *((other >= cut).mean() for cut in cuts)])
    y = np.array([0.0, *((member >= cut).mean() for cut in cuts)])
    mann_whitney = np.mean((member[:, None] > other) + 0.5 * (member[:, None] == other))
    assert area(x, y) == pytest.approx(mann_whitney)


def test_key_curve_draws_every_key_and_the_majority_share(table: pd.DataFrame, lines: pd.DataFrame) -> None:
    axes = key_curve(table, lines).axes[0]
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks[0] == "no key"
    assert ticks[1].startswith("0\n")
    assert {"0.25", "0.5"} <= set(ticks)
    assert any(np.allclose(line.get_ydata(), MAJORITY) for line in axes.lines)


def test_an_attack_is_drawn_at_the_key_it_tries_whatever_the_threat_allows(table: pd.DataFrame) -> None:
    """A threat with a leaked key also runs the attack that opens without one."""
    extra = table[(table["attack"] == "open_without_key")].assign(key="leaked")
    both = openings(pd.concat([table, extra], ignore_index=True)).set_index(["defense", "key"])["value"]
    assert both.equals(openings(table).set_index(["defense", "key"])["value"])


def test_key_position() -> None:
    assert position("none") < position("wrong") == 0 < position("partial:0.25") == 0.25 < position("right") == position("leaked") == 1


def test_reconstructions_show_the_same_features_of_original_and_guess(table: pd.DataFrame, lines: pd.DataFrame) -> None:
    profiles = worst_profiles(table, lines)
    drawn = profiles[profiles["defense"] == "fedavg"].sort_values("feature")
    figure = reconstructions(profiles[profiles["defense"] == "fedavg"])
    image = next(axes.images[0] for axes in figure.axes if axes.images).get_array()
    assert image.shape == (2, TOP)
    top = np.sort(np.argsort(-np.abs(drawn["truth"].to_numpy()), kind="stable")[:TOP])
    top = top[np.argsort(drawn["truth"].to_numpy()[top], kind="stable")]
    assert np.allclose(image[0], drawn["truth"].to_numpy()[top])
    assert np.allclose(image[1], drawn["guess"].to_numpy()[top])


def test_the_drawn_record_is_chosen_by_number_not_by_outcome(table: pd.DataFrame, lines: pd.DataFrame) -> None:
    """Doubling the guess of a later seed changes nothing."""
    later = lines.copy()
    later.loc[later["seed"] > 0, "y"] *= 2
    assert worst_profiles(table, lines).equals(worst_profiles(table, later))


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, True),
        ({"data": {"name": "my_patients", "path": None}}, False),
        ({"data": {"name": "pbmc68k", "path": "pbmc68k.h5ad"}}, False),
        ({"data": {}}, False),
    ],
)
def test_records_are_drawn_for_embedded_and_synthetic_cohorts_only(
    table: pd.DataFrame, lines: pd.DataFrame, changes: dict[str, Any], shown: bool
) -> None:
    about = record()
    about["request"] |= changes
    assert bool(gallery.records(table, lines, about)) is shown
    assert gallery.records(table, lines, {}) == []
    assert gallery.records(table, lines, {**about, "draw_records": True})


def test_cost_axes_start_at_nought(table: pd.DataFrame) -> None:
    figure = cost(table)
    assert all(axes.get_xlim()[0] == 0 for axes in figure.axes)
    assert any("5.40 MB" in text for text in texts(figure))


def test_defenses_look_the_same_in_every_table_and_unlike_each_other() -> None:
    marks = style.marks(DEFENSES)
    assert style.marks(reversed(list(DEFENSES))) == marks
    assert len({(m.colour, m.shape) for m in marks.values()}) == len(DEFENSES)
    strange = style.marks([f"defense_{i}" for i in range(7)])
    assert len({(m.colour, m.shape) for m in strange.values()}) == 7


def test_marks_stand_out_on_light_and_dark_paper() -> None:
    for mark in style.marks(DEFENSES).values():
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(mark.colour)]
        luminance = float(np.dot(linear, [0.2126, 0.7152, 0.0722]))
        assert 1.05 / (luminance + 0.05) > 2.0, mark
        assert (luminance + 0.05) / (0.016 + 0.05) > 2.0, mark


def test_defenses_come_in_order_with_the_parameter_rising() -> None:
    assert style.ordered(DEFENSES)[:7] == list(DEFENSES)[:7]


def test_spread_keeps_order_gap_and_limits() -> None:
    placed = spread([0.5, 0.5, 0.51, 0.9, 0.0], 0.1, 0.0, 1.0)
    ordered = sorted(placed)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(ordered))
    assert min(placed) >= -1e-9
    assert max(placed) <= 1 + 1e-9
    assert placed[4] < placed[0] < placed[2] < placed[3]


def test_a_keyless_defense_stands_with_its_own_numbers_under_a_leaked_key(table: pd.DataFrame) -> None:
    leaked = table[(table["goal"] == "membership") & (table["defense"] == "infl:published")].assign(key="leaked")
    both = standings(pd.concat([table, leaked], ignore_index=True))
    plain, held = (both["membership", "server", key].set_index("defense") for key in ("without", "leaked"))
    assert held.at["fedavg", "leakage"] == plain.at["fedavg", "leakage"]
    assert held.at["fedavg", "held"] == "without"
    assert held.at["infl:published", "held"] == "leaked"


@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
def test_a_figure_has_the_same_bytes_each_time(table: pd.DataFrame, kind: str) -> None:
    assert as_bytes(plane(table, "membership", "server", "without"), kind) == as_bytes(
        plane(table, "membership", "server", "without"), kind
    )


def test_the_callers_settings_come_back() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    with style.look():
        assert mpl.rcParams["svg.hashsalt"] == style.SALT
    assert dict(mpl.rcParams) == before


def test_standing_leaves_out_rows_that_read_the_truth(table: pd.DataFrame) -> None:
    row = table[
        (table["defense"] == "dp_sgd:epsilon=8")
        & (table["attack"] == "lira")
        & (table["view"] == "server")
        & (table["metric"] == "leakage")
    ]
    told = row.assign(attack="peeks", value=1.0, low=1.0, high=1.0, reason="upper bound: read the truth")
    stand = standing(pd.concat([table, told]), "membership", "server", "without").set_index("defense")
    assert stand.at["dp_sgd:epsilon=8", "leakage"] < 0.2
    assert math.isfinite(stand.at["dp_sgd:epsilon=8", "leakage"])


@pytest.mark.parametrize("span", [(0.0, 1.05), (0.95, 2.0)])
def test_labels_keep_to_their_span(span: tuple[float, float]) -> None:
    figure, grid = style.panels(1, 1, (5, 3), (0.3, 0.3, 0.3, 0.3), (0, 0))
    axes = grid[0, 0]
    axes.set(xlim=(0, 2), ylim=(0, 1))
    (text,) = place(axes, [Label(1.0, 0.5, "a long name of a defense", style.INK)], span=span)
    box = axes.transData.inverted().transform_bbox(text.get_window_extent(figure.canvas.get_renderer()))
    assert span[0] <= box.x0 < box.x1 <= span[1]
