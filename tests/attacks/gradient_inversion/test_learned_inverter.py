"""The learned inverter: ahead of the class mean wherever a message says anything, behind it where nothing does, and honest about it."""

from dataclasses import replace

import pytest
import torch
from observations import FakeObservation, mlp, normal, probe, r2
from torch import Tensor

from attacks.controls import ClassMean
from attacks.gradient_inversion.learned_inverter import LearnedInverter, LearnedInverterOfSum
from attacks.gradient_inversion.likeness import Likeness
from attacks.gradient_inversion.tableak import aligned
from attacks.gradient_inversion.wear import Wear
from baselines.compression import Compression
from infl.published import Published
from suites.contracts import Records, RequestError, Skip, Threat
from suites.observation import Seen
from tests.attacks.visible import look

F, K, COUNT = 80, 4, 8
MIXING, MEANS = normal(6, F, seed=1), normal(K, F, seed=2)
MODULE = mlp([F, 32, 16, K])


def cohort(count: int, seed: int) -> Records:
    """Correlated records of a few factors and a class, each feature of variance about one."""
    y = torch.arange(count) % K
    x = 0.6 * MEANS[y] + 0.3 * normal(count, 6, seed=seed) @ MIXING + 0.4 * normal(count, F, seed=seed + 1)
    return Records(x, y)


PUBLIC, VICTIMS = cohort(160, 10), cohort(COUNT * 3, 20)


def lab(batch: int = 1, worn=lambda update: update, other: Records | None = None, **step) -> tuple[FakeObservation, list[Tensor]]:
    cut = [slice(i * batch, (i + 1) * batch) for i in range(COUNT if batch == 1 else 4)]
    shown = VICTIMS if other is None else other
    targets = [probe(MODULE, shown.x[c], shown.y[c], **step) for c in cut]
    for target in targets:
        object.__setattr__(target, "update", worn(target.update))
    return FakeObservation(MODULE, F, K, targets=targets, auxiliary=PUBLIC), [VICTIMS.x[c] for c in cut]


def fits(seen: FakeObservation, truth: list[Tensor], budget: int = 384) -> tuple[float, float, float]:
    """R2 of the class mean and of the inverter, and what the inverter expected of itself."""
    guess = LearnedInverter(budget).run(seen, torch.Generator().manual_seed(5))
    mean = ClassMean().run(seen, torch.Generator())
    said = [r2([aligned(g, t) for g, t in zip(one.value, truth)], truth) for one in (mean, guess)]
    return said[0], said[1], float(guess.confidence.mean())


def test_one_record_of_a_plain_message() -> None:
    mean, ours, expected = fits(*lab(), budget=1024)
    print("class mean", round(mean, 3), "inverter", round(ours, 3), "expected", round(expected, 3))
    assert ours > 0.9 > mean + 0.2


def test_nothing_comes_out_of_an_update_of_other_records() -> None:
    seen, truth = lab(other=cohort(COUNT * 3, 40))
    mean, ours, _ = fits(seen, truth)
    assert ours < mean


def noisy(scale: float):
    generator = torch.Generator().manual_seed(77)
    return lambda update: {name: t + scale * torch.randn(t.shape, generator=generator) for name, t in update.items()}


def compressed(**options):
    layer, generator = Compression(feedback=False, **options), torch.Generator().manual_seed(78)
    return lambda update: layer.encode(update, generator)


def clipped(update):
    size = torch.stack([t.square().sum() for t in update.values()]).sum().sqrt()
    return {name: t * min(1.0, 0.1 / float(size)) for name, t in update.items()}


@pytest.mark.parametrize(
    ("worn", "step"),
    [
        (compressed(share=0.05), {}),
        (compressed(method="sign"), {}),
        (compressed(method="quantised", bits=3), {}),
        (clipped, {}),
        (noisy(0.02), {}),
        (lambda update: update, {"optimiser": "adam", "steps": 1, "lr": 1e-3}),
    ],
    ids=["top", "sign", "quantised", "clipped", "noise", "adam"],
)
def test_it_stays_useful_against_what_wears_a_message(worn, step) -> None:
    mean, ours, expected = fits(*lab(worn=worn, **step))
    print("class mean", round(mean, 3), "inverter", round(ours, 3), "expected", round(expected, 3))
    assert ours > mean + 0.1


def test_what_it_expects_of_itself_is_what_it_reaches() -> None:
    """Judged on messages of records that no training message knows; at two strengths of noise, from most to little."""
    pairs = [fits(*lab(worn=noisy(scale)))[1:] for scale in (0.02, 1.0)]
    assert max(abs(ours - expected) for ours, expected in pairs) < 0.15
    assert pairs[0][0] > pairs[1][0] + 0.3


def test_batches_are_judged_in_any_order() -> None:
    mean, ours, _ = fits(*lab(batch=3))
    assert ours > mean + 0.1
    seen, truth = lab(batch=3)
    seen.targets = [probe(MODULE, x.flip(0), VICTIMS.y[3 * i : 3 * i + 3].flip(0)) for i, x in enumerate(truth)]
    assert fits(seen, truth)[1] == pytest.approx(ours, abs=0.05)


def test_same_seed_same_bytes() -> None:
    seen, _ = lab()
    one, two, three = (LearnedInverter(128).run(seen, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.cat(one.value), torch.cat(two.value))
    assert not torch.equal(torch.cat(one.value), torch.cat(three.value))


def test_what_it_cannot_use_is_refused() -> None:
    seen, _ = lab()
    seen.auxiliary = Records(PUBLIC.x[:0], PUBLIC.y[:0])
    with pytest.raises(Skip, match="own records"):
        LearnedInverter().run(seen, torch.Generator())
    crowd, _ = lab()
    crowd.targets = [replace(crowd.targets[0], batch=33)]
    with pytest.raises(Skip, match="more than 32 records"):
        LearnedInverter().run(crowd, torch.Generator())
    with pytest.raises(RequestError, match="learned_inverter needs"):
        LearnedInverter(limit=0)
    assert "probes" not in LearnedInverterOfSum.needs


def test_what_was_done_to_a_message_is_told_from_it() -> None:
    seen, _ = lab()
    update = seen.targets[0].update
    clean = {name: torch.stack([target.update[name] for target in seen.targets]) for name in update}
    size = sum(t.numel() for t in update.values())
    told = {name: Wear.of(worn(update), clean, 1, F) for name, worn in {
        "nothing": lambda u: u, "top": compressed(share=0.05), "sign": compressed(method="sign"),
        "quantised": compressed(method="quantised", bits=4), "noise": noisy(0.02),
    }.items()}  # fmt: skip
    assert told["nothing"] == Wear()
    assert told["top"] == Wear(kept=round(0.05 * size))
    assert told["sign"] == Wear(levels=0)
    assert told["quantised"] == Wear(levels=7)
    assert told["noise"].noise == pytest.approx(0.02, rel=0.1)
    for name, wear in told.items():  # and what is put on others is what was seen
        again = wear.put_on(clean, torch.Generator().manual_seed(1))
        assert Wear.of({key: t[1] for key, t in again.items()}, clean, 1, F).levels == wear.levels, name
    kept = told["top"].put_on(clean, torch.Generator())
    assert int(torch.cat([t[2].flatten() for t in kept.values()]).count_nonzero()) == round(0.05 * size)


def test_records_drawn_in_the_likeness_of_few_are_of_their_kind_and_not_in_their_span() -> None:
    x, y = Likeness(PUBLIC).draw(2000, torch.Generator().manual_seed(3))
    real, own = torch.corrcoef(PUBLIC.x.T), torch.corrcoef(x.T)
    assert float(torch.corrcoef(torch.stack([real.flatten(), own.flatten()]))[0, 1]) > 0.95
    assert float((x.std(0) / PUBLIC.x.std(0) - 1).abs().mean()) < 0.1
    few = Records(PUBLIC.x[:40], PUBLIC.y[:40])
    drawn, _ = Likeness(few).draw(100, torch.Generator().manual_seed(3))
    basis = torch.linalg.svd(few.x, full_matrices=False)[2]
    assert float((drawn - drawn @ basis.T @ basis).norm() / drawn.norm()) > 0.1
    assert set(y.tolist()) == set(range(K))


@pytest.mark.slow
def test_unknown_keys_are_drawn_and_a_real_observation_serves() -> None:
    """INFL as published scales the first layer's rows by a key: the inverter trains on messages under keys of its own."""
    pool = Records(torch.cat([PUBLIC.x, VICTIMS.x]), torch.cat([PUBLIC.y, VICTIMS.y]))
    sight = look([Published()], pool, [[160 + i] for i in range(3)], torch.arange(160, 170), torch.arange(160), classes=K)
    seen = Seen(sight.scene, sight.evidence, Threat())
    assert seen.key is None
    assert seen.draw_key(0) is not None
    guess = sight.guess(LearnedInverter(256), "inverter")
    assert r2(guess.value, sight.truth) > 0.6
