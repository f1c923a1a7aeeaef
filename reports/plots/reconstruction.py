"""Reconstructed records beside the originals, where a reader may see them at all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from reports import words
from reports.plots import style

TOP = 40  # features shown


def reconstructions(profiles: pd.DataFrame) -> Figure:
    """Original and reconstructed profile of one record under each defense's worst attack.

    Parameters
    ----------
    profiles : DataFrame
        One row a defense and feature, with columns defense, attack, view, key, feature, truth and guess (see
        ``reports.standing.worst_profiles``); truth and guess are standardised with the public mean and scale, so 0 is the mean profile.

    Returns
    -------
    Figure
        Left: the record's most unusual features as two strips, original above reconstruction, in standard deviations from the public
        mean. Right: every feature, reconstruction against original; a perfect attack lies on the diagonal, a useless one on a flat line.
    """
    names = style.ordered(profiles["defense"])
    reach = _reach(profiles)
    with style.look():
        figure = Figure(figsize=(style.WIDTH, 0.55 + 1.12 * max(len(names), 1)))
        FigureCanvasAgg(figure)
        height = figure.get_figheight()
        image = None
        for index, name in enumerate(names):
            part = profiles[profiles["defense"] == name].sort_values("feature", kind="stable")
            base = height - 0.42 - 1.12 * index
            strips = figure.add_axes((0.115, (base - 0.70) / height, 0.625, 0.50 / height))
            image = _strips(strips, part, reach)
            row = part.iloc[0]
            title = f"{words.defense(name)}"
            detail = f"{words.attack(row['attack'])}; {words.threat(row['view'], row['key'])}"
            strips.set_title(title, fontsize=9, pad=4)
            strips.text(1.0, 1.08, detail, transform=strips.transAxes, ha="right", fontsize=7.5, color=style.MUTED)
            cloud = figure.add_axes((0.80, (base - 0.88) / height, 0.88 / style.WIDTH, 0.88 / height))
            _cloud(cloud, part, reach, last=index == len(names) - 1)
        if image is not None:
            bar = figure.add_axes((0.945, (height - 1.35) / height, 0.012, 0.88 / height))
            figure.colorbar(image, cax=bar, ticks=[-reach, 0, reach])
            bar.set_yticklabels([f"≤ {words.number(-reach, 0)}", "0", f"≥ {reach:.0f}"], fontsize=6.5)
            bar.tick_params(length=2, pad=1)
            bar.set_title("sd", fontsize=7, weight="normal", loc="center", pad=3)
            bar.spines[:].set_visible(False)
    return figure


def _reach(profiles: pd.DataFrame) -> float:
    """Standard deviations at the ends of all scales of one picture: most of what is most unusual in the originals, at least 3."""
    tops = [np.sort(np.abs(part["truth"].to_numpy(float)))[-TOP:] for _, part in profiles.groupby("defense", sort=False)]
    return max(3.0, math.ceil(float(np.quantile(np.concatenate(tops), 0.8)))) if tops else 3.0


def _strips(axes: Any, part: pd.DataFrame, reach: float) -> Any:
    truth, guess = part["truth"].to_numpy(float), part["guess"].to_numpy(float)
    top = np.sort(np.argsort(-np.abs(truth), kind="stable")[:TOP])
    top = top[np.argsort(truth[top], kind="stable")]
    image = axes.imshow(np.stack([truth[top], guess[top]]), aspect="auto", cmap="PuOr_r", vmin=-reach, vmax=reach, interpolation="nearest")
    axes.set_yticks([0, 1], ["original", "guess"], fontsize=7.5)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.axhline(0.5, color=style.PAPER, linewidth=1.5)
    axes.spines[:].set_visible(False)
    return image


def _cloud(axes: Any, part: pd.DataFrame, reach: float, *, last: bool) -> None:
    truth, guess = part["truth"].to_numpy(float), part["guess"].to_numpy(float)
    axes.plot([-reach, reach], [-reach, reach], color=style.MUTED, linewidth=0.7, linestyle=(0, (4, 3)), zorder=1)
    axes.plot(
        np.clip(truth, -reach, reach),
        np.clip(guess, -reach, reach),
        ".",
        color=style.ATTACK_COLOURS[0],
        markersize=2.2,
        alpha=0.45,
        markeredgewidth=0,
        zorder=2,
    )
    axes.set(xlim=(-reach * 1.06, reach * 1.06), ylim=(-reach * 1.06, reach * 1.06), xticks=[-reach, 0, reach], yticks=[-reach, 0, reach])
    axes.tick_params(labelsize=6, length=2, pad=1, labelbottom=last)
    axes.set_ylabel("guess, sd", fontsize=6.5, labelpad=0)
    if last:
        axes.set_xlabel("original, sd", fontsize=6.5, labelpad=1)
    missed, all_of_it = float(((guess - truth) ** 2).sum()), float((truth**2).sum())
    if all_of_it > 0:
        axes.text(
            0.06, 0.97, f"R² {words.number(1 - missed / all_of_it, 2)}", transform=axes.transAxes, fontsize=6.5, va="top"
        ).set_path_effects([withStroke(linewidth=1.8, foreground=style.PAPER)])
