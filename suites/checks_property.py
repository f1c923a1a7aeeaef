"""Scenes with a known answer for property attacks: which site each record of the small federation is at, and what shares it has.

The attribute is on which side of zero the first of the teacher's scores lies: it goes with the label, as tumour and normal go with a
cancer's type, and no model is told. Sites of one population would differ in it by chance alone, so records go to sites by that score.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from suites.checks_stage import CLASSES, FEATURES, MEMBERS, SITES, Stage, Trial
from suites.contracts import Attack, Guess
from suites.randomness import stream
from suites.scoring_measure import Measure
from suites.scoring_property import score_origin, score_shares, shares_of


def skewed(stage: Stage) -> Stage:
    """The stage, not yet trained, with sites that differ in their mix."""
    score = _score(stage)[stage.members]
    noise = torch.randn(len(score), generator=stream("check", "skew")) * score.std()
    stage.sites = tuple(stage.members[(score + noise).argsort()].chunk(SITES))
    return stage


def property_trial(stage: Stage, attack: Attack, trial: Trial, *, null: bool) -> Trial:
    """The scene with the attribute of public records in it, and this attack's truth; under ``null`` that of records nobody trained on."""
    scene = trial.scene
    auxiliary = replace(scene.auxiliary, attribute=_kinds(stage, "attribute")[0][stage.public])
    truth = _truth(stage, attack, scene.candidates.x, null)
    return replace(trial, scene=replace(scene, auxiliary=auxiliary, truth=lambda: truth), truth=truth)


def property_measures(stage: Stage, attack: Attack, guess: Guess, truth: Tensor) -> list[Measure]:
    """The scores of a guess on that scene."""
    asked = str(getattr(attack, "property", ""))
    said = guess.value.detach().cpu()
    if asked == "site_of_origin":
        return score_origin(said.numpy(), truth.numpy())
    kind, count = _kinds(stage, asked)
    if len(said) == 1:
        truth = truth.mean(0, keepdim=True)  # the sites are of one size
    return score_shares(said.numpy(), truth.numpy(), shares_of(kind[stage.public], count).numpy())


def _truth(stage: Stage, attack: Attack, candidates: Tensor, null: bool) -> Tensor:
    asked = str(getattr(attack, "property", ""))
    sites = tuple(stage.outside[:MEMBERS][site::SITES] for site in range(SITES)) if null else stage.sites
    if asked == "site_of_origin":
        home = torch.full((len(candidates),), -1)
        for index, site in enumerate(sites):
            home[(candidates[:, None] == stage.pool.x[site][None]).all(2).any(1)] = index
        return home
    kind, count = _kinds(stage, asked)
    return torch.stack([shares_of(kind[site], count) for site in sites])


def _kinds(stage: Stage, asked: str) -> tuple[Tensor, int]:
    if asked == "class_mix":
        return stage.pool.y, CLASSES
    return (_score(stage) > 0).long(), 2


def _score(stage: Stage) -> Tensor:
    teacher = torch.randn(FEATURES, CLASSES, generator=stream("check", "teacher"))
    return stage.pool.x @ teacher[:, 0]
