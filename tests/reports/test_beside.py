"""A network that does no better than its untrained start, or worse than a simple method, is told; one that does better is not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from reports import schema
from reports.beside import beside, gains
from reports.beside_table import beside_table
from reports.flags import flag_results
from reports.verdict import verdict


def table(defense: str, control: str, gains: list[float], metric: str = "ari", task: str = "t") -> pd.DataFrame:
    base = {"suite": "s", "task": task, "data": "d", "attack": "", "goal": "utility", "view": "", "key": "", "n": 9, "status": "ok"}
    end = {"low": np.nan, "high": np.nan, "direction": "higher", "reason": "", "seconds": 0.0, "schema_version": 1, "defense": defense}
    rows = []
    for seed, gain in enumerate(gains):
        rows.append({**base, **end, "seed": seed, "metric": "ari", "value": 0.4, "role": "utility"})
        rows.append({**base, **end, "seed": seed, "metric": f"{metric}:above_{control}", "value": gain, "role": "control"})
    return pd.DataFrame(rows)[list(schema.RESULTS)]


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([-0.03, -0.031, -0.029], ["centralized is behind beside pca, paired over seeds: -0.030 [-0.032, -0.028]"]),
        ([-0.05, 0.02, -0.01], ["is behind on average beside pca"]),
        ([0.05, -0.02, 0.01], ["is not shown to be ahead of pca, paired over seeds: +0.013"]),
        ([0.001, 0.051, -0.049], ["is not shown to be ahead of pca, paired over seeds: +0.001"]),
        ([0.0, 0.0, 0.0], ["is not shown to be ahead of pca"]),
        ([0.03, 0.031, 0.029], []),
        ([-0.01], ["paired over seeds: -0.010 (one seed)"]),
        ([0.01], []),
    ],
)
def test_a_simple_method_that_is_not_shown_to_be_behind_is_told(gains: list[float], said: list[str]) -> None:
    found = list(beside(table("centralized", "pca", gains)))
    assert [flag for _, flag, _ in found] == ["simple_is_as_good:ari:pca"] * len(said)
    for (_, _, sentence), words in zip(found, said):
        assert words in sentence


def with_floor(defense: str, values: list[float], floors: list[float], direction: str = "higher") -> pd.DataFrame:
    """Utility, and as its control what guessing without features gives."""
    made = table(defense, "floor", values)
    utility = made["role"] == "utility"
    made["direction"] = direction
    made.loc[utility, "value"] = values
    made.loc[~utility, "metric"] = "ari:floor"
    made.loc[~utility, "value"] = floors
    return made


def test_a_defense_at_the_majority_share_is_told() -> None:
    at = with_floor("dp_sgd:epsilon=8", [0.36, 0.33, 0.35], [0.34, 0.34, 0.35])
    ((row, flag, sentence),) = beside(at)
    assert (row["defense"], flag) == ("dp_sgd:epsilon=8", "floor_is_as_good:ari")
    assert "is not shown to be ahead of the best guess without features, paired over seeds: +0.003" in sentence
    assert list(beside(with_floor("fedavg", [0.66, 0.63, 0.65], [0.34, 0.34, 0.35]))) == []
    ((_, _, sentence),) = beside(with_floor("fedavg", [0.66, 0.63, 0.65], [0.34, 0.34, 0.35], "lower"))  # there less is better
    assert "is behind beside the best guess" in sentence


def test_differences_are_paired_by_seed_and_not_by_means() -> None:
    """Seeds differ by far more than network and floor do; a gain of a hundredth on each is told from nothing all the same."""
    base = [0.2, 0.5, 0.8]
    values = [v + gain for v, gain in zip(base, [0.010, 0.011, 0.009])]
    (found,) = gains(with_floor("fedavg", values, base)).to_dict("records")
    low, high = scipy.stats.t.interval(0.95, 2, 0.010, 0.001 / np.sqrt(3))
    assert (found["gain"], found["low"], found["high"]) == pytest.approx((0.010, low, high), abs=1e-6)
    assert found["standing"] == "ahead"


def test_the_verdict_and_a_table_say_who_is_ahead_of_what() -> None:
    nmi = table("centralized", "pca", [-0.3, -0.3, -0.31], metric="nmi")
    both = pd.concat([table("centralized", "pca", [0.05, -0.02, 0.01]), table("local_only", "untrained_network", [0.1, 0.11, 0.09]), nmi])
    said = dict(verdict(both))["Utility"]
    assert "Ahead of every control beside it, by a difference paired over seeds whose interval lies above 0: Local only." in said
    assert "Not shown to do better than pca, seed by seed: Centralized +0.013 [-0.074, +0.101] (not shown to be ahead)." in said
    assert "In the other metrics 1 of 1 differences from a control are not shown to be above 0: the table has each." in said
    made = beside_table(both, "t")
    assert made is not None
    assert made.shown["so it is"].tolist() == ["not shown to be ahead", "ahead", "behind"]
    assert made.shown["control"].tolist() == ["pca", "its untrained start", "pca"]
    assert beside_table(both[both["role"] == "utility"], "t") is None


@pytest.mark.parametrize(("found_gains", "flags"), [([0.01, -0.02, 0.02], 1), ([0.1, 0.11, 0.09], 0), ([-0.2, -0.21, -0.2], 1)])
def test_a_defense_that_gains_nothing_over_its_start_is_told(found_gains: list[float], flags: int) -> None:
    found = list(beside(table("dp_sgd:epsilon=8", "untrained_network", found_gains)))
    assert [flag for _, flag, _ in found] == ["untrained_is_as_good:ari"] * flags
    assert all(row["defense"] == "dp_sgd:epsilon=8" for row, _, _ in found)
    assert list(beside(table("fedavg", "untrained_network", found_gains))) == []  # there it is the metric that is judged


def test_every_defense_is_set_beside_a_simple_method_that_ran_in_anothers_cells() -> None:
    """PCA at .50, .52 and .54: the centralised network at .40 is behind, FedAvg between and behind, local training above, seed by seed."""
    base = [0.50, 0.52, 0.54]
    told = table("centralized", "pca", [0.40 - value for value in base])
    run = told[told["role"] == "control"].assign(metric="ari:pca", value=base)
    other = pd.concat([with_floor("fedavg", [0.49, 0.50, 0.53], [0.1] * 3), with_floor("local_only", [0.60, 0.62, 0.64], [0.1] * 3)])
    both = pd.concat([told, run, other])
    found = gains(both).set_index(["defense", "control"])
    assert found.loc[("fedavg", "pca"), "gain"] == pytest.approx(-0.04 / 3)
    assert found.loc[("local_only", "pca"), ["gain", "standing", "elsewhere"]].tolist() == [pytest.approx(0.1), "ahead", True]
    assert found.loc[("centralized", "pca"), "elsewhere"] == False  # noqa: E712 - a numpy bool
    assert [name for _, name in found.index].count("pca") == 3  # once a defense
    said = " ".join(dict(verdict(both))["Utility"])
    assert "whose interval lies above 0: Local only." in said
    assert "Not shown to do better than pca, seed by seed: " in said
    assert "FedAvg -0.013 [-0.028, +0.001] (behind on average)" in said
    lower = both.assign(direction=both["direction"].where(both["role"] != "utility", "lower"))
    assert gains(lower).set_index(["defense", "control"]).loc[("local_only", "pca"), "gain"] == pytest.approx(-0.1)
    assert [flag for _, flag, _ in beside(both)] == ["simple_is_as_good:ari:pca"]  # of its own cell; the verdict says the rest
    fewer = pd.concat([told[told["seed"] > 0], run[run["seed"] > 0], other])
    assert gains(fewer).set_index(["defense", "control"]).loc[("fedavg", "pca"), "n"] == 2  # paired: no seed that the method did not run


def test_of_two_runs_of_a_simple_method_the_centralised_ones_is_borrowed() -> None:
    """Where each site fills its own gaps the two differ; whose is borrowed must not hang on the order of rows."""
    runs = []
    for defense, value in (("fedavg", 0.7), ("centralized", 0.5)):
        told = table(defense, "pca", [0.4 - value] * 3)
        runs += [told, told[told["role"] == "control"].assign(metric="ari:pca", value=value)]
    both = pd.concat([*runs, with_floor("local_only", [0.6] * 3, [0.1] * 3)])
    for rows in (both, both[::-1]):
        assert gains(rows).set_index(["defense", "control"]).loc[("local_only", "pca"), "gain"] == pytest.approx(0.1)


def test_other_metrics_than_the_headline_are_left_to_the_table() -> None:
    assert list(beside(table("centralized", "pca", [-0.3, -0.3, -0.31], metric="nmi"))) == []


def test_the_parts_of_a_suite_are_told_apart_and_the_flags_are_rows() -> None:
    both = pd.concat([table("centralized", "pca", [-0.3, -0.3, -0.31]), table("centralized", "pca", [0.3, 0.3, 0.31], task="u")])
    found = flag_results(both)
    assert found["metric"].tolist() == ["flag:simple_is_as_good:ari:pca"]
    assert found["task"].tolist() == ["t"]
