"""The three baselines without protection: identity hooks, and the topology that the engine reads."""

from __future__ import annotations

import pytest
import torch

from baselines.centralized import Centralized
from baselines.fedavg import FedAvg
from baselines.local_only import LocalOnly
from suites.contracts import Defense, Federation, Shape


@pytest.mark.parametrize(("kind", "topology"), [(FedAvg, "federated"), (Centralized, "centralized"), (LocalOnly, "local_only")])
def test_identity_hooks(kind: type[Defense], topology: str) -> None:
    defense = kind()
    update = {"weight": torch.randn(3, 2, generator=torch.Generator().manual_seed(0))}
    rng = torch.Generator()
    before = rng.get_state()
    assert defense.topology == topology
    assert (defense.clip, defense.channel) == (None, None)
    assert defense.encode(update, rng) is update
    assert defense.noise(update, rng) is update
    assert torch.equal(rng.get_state(), before)
    assert defense.claim(Federation(), Shape((10,), 3, 2)) is None
    assert defense.card is not None
    assert all(getattr(defense.card, part) for part in ("server", "site", "outsider", "does_not_protect"))
