"""``infl-bench check`` and the flags measure a claim's noise by what bounds a message, and say so where they cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from baselines.compression import Compression
from baselines.dp_fedavg import DPFedAvg
from baselines.dp_sgd import DPSGD
from baselines.secure_aggregation import SecureAggregation
from baselines.skellam import Skellam
from suites.checks_defense import _noised
from suites.checks_flags import flag_messages
from suites.checks_stage import Stage
from suites.contracts import Defense, Params
from suites.stack import Stack


class Hundredth(DPFedAvg):
    def encode(self, update: Params, rng: torch.Generator) -> Params:
        noisy = super().encode(update, rng)
        quiet = DPFedAvg(noise_multiplier=0, clip=self.norm).encode(update, rng)
        return {name: clean + (noisy[name] - clean) / 100 for name, clean in quiet.items()}


class Third(Skellam):
    def encode(self, update: Params, rng: torch.Generator) -> Params:
        own, self.noise_multiplier = self.noise_multiplier, (self.noise_multiplier or 0.0) / 3
        try:
            return super().encode(update, rng)
        finally:
            self.noise_multiplier = own


def judged(*layers: Defense) -> tuple[str, str, set[str]]:
    stage = Stage(Stack(layers), rounds=1)
    claim = stage.stack.claim(stage.federation, stage.shape)
    assert claim is not None
    found = _noised(stage, stage.trained, claim)
    flags = flag_messages(stage.evidence, stage.stack, stage.task, stage.trained.module, stage.pool.x, stage.pool.y, claim)
    return found.verdict, found.detail, {flag.metric for flag in flags}


SITES: Mapping[str, Callable[[], tuple[Defense, ...]]] = {
    "each message": lambda: (DPFedAvg(epsilon=20),),
    "of another bound": lambda: (DPFedAvg(epsilon=20, clip=0.03),),
    "shared": lambda: (DPFedAvg(epsilon=20, shared=True, colluders=0), SecureAggregation()),
    "skellam": lambda: (Skellam(epsilon=20, colluders=0, dropouts=0),),
    "records": lambda: (DPSGD(epsilon=8),),
}


@pytest.mark.parametrize("name", SITES)
def test_the_claimed_noise_of_a_message_is_measured(name: str) -> None:
    outcome, detail, flags = judged(*SITES[name]())
    assert outcome == "pass", detail
    held = float(detail.split()[2])
    assert 0.95 < held < 1.5, detail  # Skellam and shared noise are sized for sites that may be missing
    assert not flags


@pytest.mark.parametrize("make", [lambda: (Hundredth(epsilon=20),), lambda: (Third(epsilon=20),)])
def test_a_part_of_the_claimed_noise_of_a_message_fails(make: Callable[[], tuple[Defense, ...]]) -> None:
    outcome, detail, flags = judged(*make())
    assert outcome == "fail", detail
    assert flags == {"flag:clean_under_claim"}


def test_what_cannot_be_measured_is_said_not_to_be() -> None:
    outcome, detail, flags = judged(DPFedAvg(epsilon=20), Compression())
    assert outcome == "warn"
    assert "not measured" in detail
    assert not flags
