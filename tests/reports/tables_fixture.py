# ruff: noqa: E501
"""A realistic results table, curves table and record, made up by rule: what a run on pbmc68k might write.

Numbers are drawn round plausible centres with a fixed generator, so the tables are the same each time. Nothing here comes from a run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from reports import schema

SUITE = {"suite": "quickstart", "task": "classification", "data": "pbmc68k"}
MAJORITY = 0.343
# name -> accuracy, membership AUC (LiRA), closed-form R², epsilon
DEFENSES: dict[str, tuple[float, float, float, float]] = {
    "centralized": (0.812, 0.70, float("nan"), float("nan")),
    "local_only": (0.66, 0.79, float("nan"), float("nan")),
    "fedavg": (0.796, 0.72, 1.0, float("nan")),
    "dp_sgd:epsilon=8": (0.36, 0.503, -0.08, 8.0),
    "dp_sgd:epsilon=32": (0.51, 0.52, 0.03, 32.0),
    "dp_sgd:epsilon=100": (0.66, 0.55, 0.12, 100.0),
    "dp_sgd:noise_multiplier=0": (0.74, 0.64, 0.99, float("nan")),
    "secure_aggregation": (0.795, 0.72, float("nan"), float("nan")),
    "infl:published": (0.758, 0.715, 0.999, float("nan")),
    "infl:published+secure_aggregation": (0.757, 0.71, float("nan"), float("nan")),
}
NO_UPDATES = "needs updates, but secure aggregation shows the server only their sum"
NO_FEDERATION = "no update crosses a wire here"
SITES = (70, 70, 70, 70, 70)


def results(seeds: int = 3) -> pd.DataFrame:
    """Every kind of row: utility with its floor, three goals, controls, claims, costs, flags, skipped and failed cells."""
    rng = np.random.default_rng(20260301)
    rows: list[dict[str, Any]] = []

    def add(defense: str, seed: int, metric: str, value: float, **more: Any) -> None:
        rows.append(
            {
                **SUITE, "defense": defense, "attack": "", "goal": "utility", "view": "", "key": "", "seed": seed, "metric": metric, "value": value,
                "low": value, "high": value, "n": 140, "direction": "higher", "role": "utility", "status": "ok", "reason": "", "seconds": 0.0,
                "schema_version": schema.SCHEMA_VERSION, "unit": "record", **more,
            }
        )  # fmt: skip

    for name, (accuracy, auc, r2, epsilon) in DEFENSES.items():
        for seed in range(seeds):
            _utility(add, rng, name, seed, accuracy)
            _costs(add, rng, name, seed)
            if np.isfinite(epsilon):
                _claim(add, name, seed, epsilon)
            _membership(add, rng, name, seed, auc)
            _reconstruction(add, rng, name, seed, r2)
            if name.startswith("infl"):
                _keys(add, rng, name, seed, accuracy)
    return schema.validate(pd.DataFrame(rows))


def _interval(value: float, half: float) -> dict[str, float]:
    return {"low": value - half, "high": value + half}


def _utility(add: Any, rng: Any, name: str, seed: int, accuracy: float) -> None:
    for metric, shift, floor in (
        ("accuracy", 0.0, MAJORITY), ("balanced_accuracy", -0.09, 0.1), ("f1_macro", -0.1, 0.05), ("f1_weighted", -0.01, 0.175), ("auc_weighted", 0.12, 0.5),
    ):  # fmt: skip
        value = min(accuracy + shift + rng.normal(0, 0.012), 0.999)
        add(name, seed, metric, value, **_interval(value, 0.06))
        add(name, seed, f"{metric}:floor", floor, role="control", **_none())


def _costs(add: Any, rng: Any, name: str, seed: int) -> None:
    slow = 1 + 0.7 * name.startswith("dp_sgd") + 0.3 * ("infl" in name) + 0.2 * ("secure" in name)
    wire = 0 if name in {"centralized", "local_only"} else 1
    for metric, value in (
        ("training_seconds", 0.62 * slow * rng.uniform(0.95, 1.05)), ("peak_memory_bytes", 4.1e8 * (1 + 0.1 * slow)), ("flop_per_round", 3.2e10 * (1.02 if "infl" in name else 1)),
        ("bytes_up_per_round", wire * 5 * 2.7e5 * 4 * (1.04 if "infl" in name else 1)),
        ("bytes_down_per_round", wire * 5 * 2.7e5 * 4 * (1.04 if "infl" in name else 1)), ("parameters", 2.7e5),
    ):  # fmt: skip
        add(name, seed, metric, value, goal="cost", role="cost", direction="lower", n=1, **_interval(value, 0.0))


def _claim(add: Any, name: str, seed: int, epsilon: float) -> None:
    for site in range(len(SITES)):
        add(name, seed, f"epsilon:site {site}", epsilon - 0.011 * site - 0.004, role="claim", direction="lower", n=SITES[site])
    add(
        name,
        seed,
        "epsilon",
        epsilon - 0.004,
        role="claim",
        direction="lower",
        n=1,
        reason=f"each record is ({epsilon:g}, 0.001)-DP under adding or removing it, Poisson sampling, 50 steps",
    )
    add(name, seed, "delta", 1e-3, role="claim", direction="lower", n=1)
    add(name, seed, "noise_multiplier", 40.0 / epsilon, role="claim", direction="higher", n=1)


def _skip(add: Any, name: str, seed: int, attack: str, goal: str, view: str, key: str, reason: str, status: str = "skipped") -> None:
    nan = float("nan")
    add(
        name,
        seed,
        "",
        nan,
        attack=attack,
        goal=goal,
        view=view,
        key=key,
        role="score",
        status=status,
        reason=reason,
        low=nan,
        high=nan,
        n=0,
    )


def _membership(add: Any, rng: Any, name: str, seed: int, auc: float) -> None:
    alone = name in {"centralized", "local_only"}
    for view in ("server", "outsider"):
        for attack, lift in (
            ("lira", 0.0),
            ("loss_threshold", -0.05),
            ("round_cosine", 0.12),
            ("random_membership", None),
            ("oracle_membership", None),
        ):
            cell = {"attack": attack, "goal": "membership", "view": view, "key": "none"}
            if attack == "round_cosine" and (alone or view == "outsider" or "secure" in name):
                _skip(
                    add,
                    name,
                    seed,
                    attack,
                    "membership",
                    view,
                    "none",
                    NO_UPDATES if "secure" in name and view == "server" else NO_FEDERATION,
                )
                continue
            if attack == "loss_threshold" and name == "dp_sgd:epsilon=32" and seed == 1 and view == "server":
                _skip(add, name, seed, attack, "membership", view, "none", "FloatingPointError: loss is not finite", "failed")
                continue
            role, reason = "score", ""
            if attack == "random_membership":
                value, role = 0.5 + rng.normal(0, 0.01), "control"
            elif attack == "oracle_membership":
                value, role, reason = 1.0, "control", "upper bound: read the truth"
            else:
                value = float(np.clip(0.5 + (auc - 0.5) + (lift or 0) * (auc > 0.53) + rng.normal(0, 0.012), 0.4, 1))
            add(name, seed, "auc", value, role=role, reason=reason, n=280, **_interval(value, 0.03), **cell)
            add(name, seed, "leakage", 2 * value - 1, role=role, reason=reason, n=280, **_interval(2 * value - 1, 0.06), **cell)
            add(
                name,
                seed,
                "tpr@1%",
                float("nan"),
                role=role,
                n=140,
                reason="not resolvable: n0 x FPR = 1.4 < 3 (needs 300 non-members)",
                **_none(),
                **cell,
            )


def _none() -> dict[str, float]:
    return {"low": float("nan"), "high": float("nan")}


def _reconstruction(add: Any, rng: Any, name: str, seed: int, r2: float) -> None:
    keyed = name.startswith("infl")
    for key in ("none", "wrong") if keyed else ("none",):
        for attack in ("closed_form", "cosine_inversion", "cosine_inversion_of_sum", "class_mean", "nearest_auxiliary", "random_guess"):
            if np.isnan(r2) and attack in {"closed_form", "cosine_inversion"}:
                reason = NO_FEDERATION if name in {"centralized", "local_only"} else NO_UPDATES
                _skip(add, name, seed, attack, "reconstruction", "server", key, reason)
                continue
            if attack == "cosine_inversion_of_sum" and "secure" not in name:
                _skip(add, name, seed, attack, "reconstruction", "server", key, "the single updates are in sight; the sum adds nothing")
                continue
            cell = {"attack": attack, "goal": "reconstruction", "view": "server", "key": key, "n": 20}
            control = attack in {"class_mean", "nearest_auxiliary", "random_guess"}
            score = {
                "closed_form": r2,
                "cosine_inversion": 0.9 * r2,
                "cosine_inversion_of_sum": 0.06,
                "class_mean": 0.05,
                "nearest_auxiliary": 0.02,
            }.get(attack, -1)
            score = min(score + rng.normal(0, 0.01), 1.0)
            role = "control" if control else "score"
            leakage = (score - 0.05) / 0.95
            add(name, seed, "r2", score, role=role, **{**cell, **_interval(score, 0.02)})
            add(name, seed, "leakage", leakage, role=role, **{**cell, **_interval(leakage, 0.025)})
            add(
                name,
                seed,
                "cosine",
                0.99998 if score > 0.98 else max(score, 0.0),
                role=role,
                **{**cell, **_interval(0.99998 if score > 0.98 else max(score, 0.0), 1e-5)},
            )
            add(name, seed, "reidentified", float(score > 0.5), role=role, **cell)
            add(name, seed, "exact", float(score > 0.98), role=role, **cell)
            add(name, seed, "r2:class_mean", 0.05, role="control", **{**cell, **_none()})


def _keys(add: Any, rng: Any, name: str, seed: int, accuracy: float) -> None:
    for key, attack, opened in (
        ("none", "open_without_key", 0.125), ("wrong", "open_with_wrong_keys", accuracy - 0.001), ("partial:0.25", "open_with_held_key", accuracy),
        ("partial:0.5", "open_with_held_key", accuracy), ("right", "open_with_held_key", accuracy), ("leaked", "open_with_held_key", accuracy),
    ):  # fmt: skip
        value = opened + rng.normal(0, 0.004)
        cell = {"attack": attack, "goal": "key", "view": "server", "key": key, "n": 20}
        add(name, seed, "opened", value, role="score", **{**cell, **_interval(value, 0.01)})
        add(name, seed, "opened:right_key", accuracy, role="control", **{**cell, **_none(), "n": 1})
        add(name, seed, "opened:majority", MAJORITY, role="control", **{**cell, **_none(), "n": 1})
        leakage = (value - MAJORITY) / (accuracy - MAJORITY)
        add(name, seed, "leakage", leakage, role="score", **{**cell, **_interval(leakage, 0.03)})
    if "secure" in name:
        _skip(add, name, seed, "key_vector", "key", "server", "none", NO_UPDATES)
        return
    cell = {"attack": "key_vector", "goal": "key", "view": "server", "key": "none", "n": 1, "direction": "lower"}
    for attack, error in (("key_vector", 3e-8), ("key_vector_of_step", 6e-5)):
        value = error * float(rng.uniform(0.7, 1.3))
        add(name, seed, "relative_error", value, role="score", **{**cell, **_none(), "attack": attack})
        add(name, seed, "leakage", 1 - value**2, role="score", **{**cell, **_none(), "attack": attack, "direction": "higher"})


def curves(seeds: int = 3) -> pd.DataFrame:
    """ROC points of the membership attacks, key curves, and reconstructions of one record a defense."""
    rng = np.random.default_rng(20260302)
    parts: list[pd.DataFrame] = []

    def add(defense: str, attack: str, goal: str, view: str, key: str, seed: int, curve: str, x: Any, y: Any) -> None:
        columns = {**SUITE, "defense": defense, "attack": attack, "goal": goal, "view": view, "key": key, "seed": seed, "curve": curve}
        parts.append(
            pd.DataFrame(
                {**{name: [value] * len(x) for name, value in columns.items()}, "x": np.asarray(x, float), "y": np.asarray(y, float)}
            )
        )

    truth = rng.normal(0, 1, (seeds, 765))
    for name, (accuracy, auc, r2, _) in DEFENSES.items():
        for seed in range(seeds):
            for view in ("server", "outsider"):
                for attack, lift in (("lira", 0.0), ("loss_threshold", -0.05), ("round_cosine", 0.12)):
                    if attack == "round_cosine" and (name in {"centralized", "local_only"} or view == "outsider" or "secure" in name):
                        continue
                    gap = 2.0 * ((auc - 0.5) + lift * (auc > 0.53)) * 1.8
                    x, y = _roc(rng.normal(gap, 1.2, 140), rng.normal(0, 1, 140))
                    add(name, attack, "membership", view, "none", seed, "roc", x, y)
            if np.isfinite(r2):
                noise = np.sqrt(max(1 - r2, 0.0))
                guess = max(r2, 0.0) * truth[seed] + rng.normal(0, 1, 765) * (noise * 0.5)
                for key in ("none", "wrong") if name.startswith("infl") else ("none",):
                    for what, profile in (("truth", truth[seed]), ("guess", guess)):
                        add(name, "closed_form", "reconstruction", "server", key, seed, f"reconstruction:0:{what}", np.arange(765), profile)
            if name.startswith("infl"):
                for key, attack, opened in (("wrong", "open_with_wrong_keys", accuracy), ("none", "open_without_key", 0.125)):
                    y = opened + rng.normal(0, 0.006, 20 if key == "wrong" else 1)
                    add(name, attack, "key", "server", key, seed, "key_curve", np.zeros(len(y)), y)
    return schema.validate_curves(pd.concat(parts, ignore_index=True))


def _roc(member: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cuts = np.sort(np.concatenate([member, other]))[::-1]
    x = np.concatenate([[0.0], [(other >= cut).mean() for cut in cuts]])
    y = np.concatenate([[0.0], [(member >= cut).mean() for cut in cuts]])
    return x, y


def record() -> dict[str, Any]:
    """What a run says about itself (``suites.gather.record``)."""
    return {
        "schema_version": schema.SCHEMA_VERSION,
        "infl_bench": "0.1.0",
        "suite": "quickstart",
        "title": "INFL, FedAvg, DP-SGD and secure aggregation on pbmc68k",
        "seeds": [0, 1, 2],
        "data_digest": "77aa0c51",
        "code_hash": "5d1c8f0e",
        "versions": {"infl-bench": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "python": "3.11.7"},
        "machine": {"system": "Linux", "processor": "x86_64", "cores": 2, "device": "cpu"},
        "cohort": {
            "records": 700, "features": 765, "classes": 10, "citation": "Zheng et al., Nature Communications 8 (2017) 14049", "licence": "CC BY 4.0",
            "site_sizes": list(SITES),
        },
        "request": {
            "suite": "quickstart", "task": "classification", "data": {"name": "pbmc68k", "path": None},
            "split": {"unit": "record", "train": 0.5, "validation": 0.1, "test": 0.2, "auxiliary": 0.2},
            "partition": {"kind": "iid", "sites": 5, "alpha": 0.5},
            "federation": {
                "rounds": 10, "participation": 1.0, "selection": "last", "flaws": [],
                "local": {"epochs": 5, "batch": 100, "optimiser": "adam", "lr": 1e-3, "weight_decay": 1e-4, "momentum": 0.0},
            },
            "seeds": 3, "references": 8, "budget": 1.0, "probes": [{"gradients": 4, "batch": 1, "round": 0, "optimiser": "gradient", "steps": 1, "lr": 0.0}],
            "threats": [
                {"view": "server", "key": "none", "unit": "record"}, {"view": "server", "key": "wrong", "unit": "record"},
                {"view": "outsider", "key": "none", "unit": "record"},
            ],
        },
        "suite_text": "suite: quickstart\n",
    }  # fmt: skip
