"""A receipt sees one coordinate that goes out without its noise, and lets chance and coarse numbers pass."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines.dp_fedavg import DPFedAvg
from baselines.dp_sgd import DPSGD
from suites.contracts import Params
from suites.randomness import stream
from suites.receipt_faults import of_coordinates
from suites.witness import Site, Witness
from tests.suites.test_receipt import FEDERATION, of


def _bare(clean: Params, noisy: Params, share: float) -> Params:
    """The first coordinate of the largest tensor with this share of its noise."""
    name = max(clean, key=lambda one: clean[one].numel())
    tensor = noisy[name].clone()
    first = clean[name].reshape(-1)[0]
    tensor.view(-1)[0] = first + share * (tensor.view(-1)[0] - first)
    return {**noisy, name: tensor}


class OneCoordinate(DPSGD):
    share = 0.0

    def noise(self, clipped_sum: Params, rng: torch.Generator) -> Params:
        return _bare(clipped_sum, super().noise(clipped_sum, rng), self.share)


class Faint(OneCoordinate):
    share = 0.02


class OneOfAMessage(DPFedAvg):
    def encode(self, update: Params, rng: torch.Generator) -> Params:
        clean = DPFedAvg(noise_multiplier=0, clip=self.norm).encode(update, rng)
        return _bare(clean, super().encode(update, rng), 0.0)


@pytest.mark.parametrize("kind", [OneCoordinate, Faint])
def test_one_coordinate_without_noise_is_refused(kind: type[DPSGD]) -> None:
    found = of(kind(epsilon=8))
    assert any("coordinate 0 of 'embedding.weight' at site 0 never had more than" in reason for reason in found.reasons), found.reasons


def test_one_coordinate_of_a_message_without_noise_is_refused() -> None:
    found = of(OneOfAMessage(epsilon=20), federation=replace(FEDERATION, rounds=6))
    assert any("coordinate 0 of 'embedding.weight'" in reason for reason in found.reasons), found.reasons


def _site(draws: int, size: int, seed: int, *, step: float = 0.0, before: float = 0.0) -> Site:
    """Noise alone, on whole steps of a grid where there is one, added to numbers of this size in single precision."""
    site = Site(1, {}, torch.ones(1), torch.zeros(1))
    rng = stream("coordinates", seed)
    for _ in range(draws):
        clean = torch.full((size,), before)
        noise = torch.randn(size, generator=rng)
        noise = (noise / step).round() * step if step else noise
        Witness._noised(site, {"w": clean}, {"w": clean + noise})
        site.sizes.append(1)
    return site


@pytest.mark.parametrize(("step", "before"), [(0.0, 0.0), (1 / 256, 0.0), (0.0, 1000.0)])
@pytest.mark.parametrize("draws", [1, 2, 3, 5, 12])
def test_chance_and_coarse_numbers_refuse_nobody(draws: int, step: float, before: float) -> None:
    sites = [_site(draws, 200_000, seed, step=step, before=before) for seed in range(3)]
    assert list(of_coordinates(sites)) == []
    assert all(len(at) <= 200_000 * (2 * FAINT_SHARE) ** draws + 10 for site in sites for at, _ in site.faint.values())


FAINT_SHARE = math.erf(0.1 / math.sqrt(2))


def test_faint_coordinates_are_followed_exactly() -> None:
    drawn = np.stack([torch.randn(50_000, generator=stream("coordinates", "all", i)).numpy() for i in range(3)])
    site = Site(1, {}, torch.ones(1), torch.zeros(1))
    for row in drawn:
        Witness._noised(site, {"w": torch.zeros(50_000)}, {"w": torch.from_numpy(row)})
    most = (np.abs(drawn) / np.sqrt(np.square(drawn).mean(1, keepdims=True))).max(0)
    at, kept = site.faint["w"]
    assert at.tolist() == np.flatnonzero(most < 0.1).tolist()
    assert kept.numpy() == pytest.approx(most[most < 0.1], rel=1e-5)
