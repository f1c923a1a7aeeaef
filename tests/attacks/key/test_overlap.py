"""Where batches share records, row spaces meet in single mixed records: exact, signed, and named without key or plaintext."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize
from visible import hits, look

from attacks.gradient_inversion.message import known_count
from attacks.key.overlap import Overlap, isolated
from infl.hardened import Hardened
from suites.contracts import Records, Threat
from suites.observation import Seen
from suites.randomness import stream
from suites.tasks.classification import Classification

WIDTH, CLASSES, SITE = 200, 4, 40


def records() -> Records:
    """Factors shared by all, and much that is a record's own."""
    generator = stream("overlap", "records")
    loadings = torch.randn(6, WIDTH, generator=generator)
    x = torch.randn(160, 6, generator=generator) @ loadings + 1.5 * torch.randn(160, WIDTH, generator=generator)
    return Records(x, torch.randint(0, CLASSES, (160,), generator=generator))


def sight(batch: int, messages: int, *, hidden: int = 32, distinct: bool = False):  # type: ignore[no-untyped-def]
    drawn = [torch.randperm(SITE, generator=stream("overlap", "batch", k))[:batch].tolist() for k in range(messages)]
    if distinct:
        drawn = [list(range(k * batch, (k + 1) * batch)) for k in range(messages)]
    task = Classification(dropout=0.0, hidden=hidden, network="mlp")
    return look([Hardened(minimum=1)], records(), drawn, torch.arange(100), torch.arange(100, 160), classes=CLASSES, task=task)


def test_lines_are_the_mixed_records_with_sign_and_length() -> None:
    view = sight(12, 16)
    seen = Seen(view.scene, view.evidence, Threat())
    lines, within = isolated(seen.targets, known_count(seen.known, "features"), 400, stream("overlap", "chains"))
    mixed = view.scene.stack.prepare(records().x[:SITE], view.scene.secret).double()
    near = torch.cdist(lines, mixed).min(1)
    assert len(torch.unique(near.indices)) == len(lines) >= 24
    assert float((near.values / mixed.norm(dim=1)[near.indices]).max()) < 0.02
    truth = [torch.cdist(one, records().x[:SITE]).argmin(1).tolist() for one in view.truth]
    for own, real in zip(within, truth):
        assert {int(near.indices[line]) for line in own} <= set(real)
    assert float((normalize(lines, dim=1) * normalize(mixed[near.indices], dim=1)).sum(1).min()) > 0.999


def test_batches_as_large_as_the_layer_are_named_and_larger_ones_are_not() -> None:
    guess = (view := sight(32, 20)).guess(Overlap(500), 32)
    found, count = hits(guess.value, view.truth)
    assert found >= 0.55 * count  # chance is 32 of 100
    assert guess.certified.double().mean() > 0.5
    guess = (view := sight(36, 20)).guess(Overlap(200), 36)  # more records than hidden units
    found, count = hits(guess.value, view.truth)
    assert found < 0.5 * count  # chance is 36 of 100
    assert not guess.certified.any()


def test_batches_that_share_nothing_give_nothing() -> None:
    guess = (view := sight(6, 6, distinct=True)).guess(Overlap(200), 0)
    assert guess.notes["isolated"] == 0.0
    assert hits(guess.value, view.truth)[0] <= 8  # 6 of 100 by chance
