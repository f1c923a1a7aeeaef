"""Canary audits: what leaks is found, a planted lack of noise is caught, an honest defense is not, and nobody sees a coin."""

import tempfile
from pathlib import Path

import pytest
import torch
from audit.audits import audit, plant, spec
from observations import normal
from scipy import stats

from attacks.audit.designed import DesignedCanaries, designed
from attacks.audit.matched_filter import silent
from suites import registry
from suites.auditing.insertion import SITE, insert
from suites.bench import Bench
from suites.checks import check_attack
from suites.contracts import Claim, Records, RequestError, Threat
from suites.referee import train_cell
from suites.scoring_audit import score_audit
from suites.trial import Trial

DESIGNED, RANDOM = "designed_canaries:count=256", "random_canaries:count=256"
BOUNDS = ("epsilon_lower", *(f"epsilon_lower:{name}" for name in ("clopper_pearson", "multi_split", "one_run", "one_run_f_dp")))


@pytest.mark.parametrize("seed", range(3))
def test_a_tenth_of_the_noise_is_caught(seed: int, tmp_path: Path) -> None:
    told, rows = audit(plant(tmp_path), DESIGNED, seed)
    assert told["epsilon"] == pytest.approx(2.0, abs=0.05)
    assert told["epsilon_lower"] > told["epsilon"]
    flag = next(row for row in rows if row["metric"] == "flag:claim_refuted")
    assert flag["role"] == "flag"
    assert "lies above the claimed" in flag["reason"]


def test_random_directions_catch_it_too_under_a_smaller_claim(tmp_path: Path) -> None:
    told, _ = audit(plant(tmp_path).replace("epsilon=2", "epsilon=1"), RANDOM, 0, epochs=3)
    assert "flag:claim_refuted" in told


@pytest.mark.parametrize("seed", range(3))
def test_an_honest_defense_is_not_refuted(seed: int) -> None:
    told, rows = audit("dp_sgd:epsilon=2", DESIGNED, seed)
    assert told["epsilon_lower"] <= told["epsilon"]
    assert "flag:claim_refuted" not in told
    kinds = {row["metric"]: row["reason"].split(":")[0] for row in rows if row["metric"].startswith("epsilon_")}
    assert kinds["epsilon_lower:one_run"] == "bound"
    assert kinds["epsilon_assumed:gaussian_family"] == "assumption"
    assert kinds["epsilon_estimate:raw_counts"] == "estimate"


@pytest.mark.slow
@pytest.mark.parametrize("attack", [DESIGNED, RANDOM])
def test_an_honest_defense_is_not_refuted_over_twenty_seeds(attack: str) -> None:
    """Each bound errs in at most 5 % of runs; only counts above the family-wise 1 % quantile, over bounds and attacks, speak against it."""
    found = [audit("dp_sgd:epsilon=2", attack, 100 + seed)[0] for seed in range(20)]
    allowed = stats.binom.ppf(1 - 0.01 / (2 * len(BOUNDS)), 20, 0.05)
    for name in BOUNDS:
        assert sum(told[name] > told["epsilon"] for told in found) <= allowed


@pytest.mark.slow
def test_a_tenth_of_the_noise_is_caught_over_twenty_seeds(tmp_path: Path) -> None:
    assert sum("flag:claim_refuted" in audit(plant(tmp_path), DESIGNED, 100 + seed)[0] for seed in range(20)) >= 19


@pytest.mark.parametrize(
    ("attack", "view", "above"),
    [
        (DESIGNED, "server", 0.95),
        ("designed_canaries_of_sum:count=256", "server", 0.95),
        ("designed_canaries_black_box:count=256", "outsider", 0.75),
        (RANDOM, "server", 0.8),
    ],
)
def test_every_audit_has_power_where_nothing_protects(attack: str, view: str, above: float) -> None:
    told, _ = audit("fedavg", attack, 0, view=view, epochs=5, batch=100)
    assert told["auc"] > above
    assert told["epsilon_lower"] > 0
    assert "epsilon" not in told  # nothing is claimed, so nothing is compared


def test_without_leakage_there_is_no_bound() -> None:
    """Coins that had nothing to do with training: P(epsilon > 0) is at most 5 %."""
    positive = 0
    for seed in range(40):
        scores = normal(300, seed=seed).squeeze()
        coins = torch.rand(300, generator=torch.Generator().manual_seed(1000 + seed)) < 0.5
        told = {m.metric: m.value for m in score_audit(scores, coins, None, 0)}
        positive += told["epsilon_lower"] > 0
    assert positive <= stats.binom.ppf(0.99, 40, 0.05)


def test_the_claim_of_the_canaries_own_site_is_the_one_compared() -> None:
    coins = torch.arange(200) < 100
    claim = Claim("dp", epsilon=9.0, delta=1e-5, per_site=(1.0, 9.0), sentence="as said")
    told = {m.metric: m for m in score_audit(coins.float(), coins, claim, SITE)}
    assert (told["epsilon"].value, told["epsilon"].role) == (1.0, "claim")
    assert "flag:claim_refuted" in told
    assert "flag:claim_refuted" not in {m.metric for m in score_audit(coins.float(), coins, claim, 1)}


def test_coins_are_the_referees_and_fair() -> None:
    """They differ between seeds and attacks, fall for about half, and are nowhere in what an attack can read."""
    given = spec("fedavg", DESIGNED, 0)
    benches = [Bench({**given, "seed": seed}, None) for seed in range(4)] + [Bench({**given, "inserts": RANDOM}, None)]
    member = torch.stack([bench.prepared.member for bench in benches]).float()
    assert 0.4 < float(member.mean()) < 0.6
    assert float(torch.corrcoef(member).fill_diagonal_(0).abs().max()) < 0.25
    bench = benches[0]
    inside = bench.prepared.candidates[bench.prepared.member]
    assert torch.isin(inside, bench.prepared.sites[SITE]).all()
    assert not torch.isin(bench.prepared.candidates[~bench.prepared.member], torch.cat(bench.prepared.sites)).any()
    assert not torch.isin(bench.prepared.candidates, bench.prepared.auxiliary).any()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "cells" / "train"
        folder.mkdir(parents=True)
        train_cell(given, folder)
        seen = Trial(Bench(given, None), Threat(), folder, ()).seen
        assert seen.known["members"].value == 128  # of 256: what the coins make likely, not how they fell
        assert torch.equal(seen.candidates.x, bench.prepared.pool.x[bench.prepared.candidates])


def test_a_federation_with_canaries_is_trained_apart(tmp_path: Path) -> None:
    """The plan gives an audit its own training, which leaves everybody else's ids and numbers alone."""
    from suites.config import load
    from suites.plan import plan

    text = "suite: small\ndata: {name: synthetic}\nseeds: 1\nreferences: 2\ndefenses: [fedavg]\nattacks: [%s]\n"
    plans = []
    for attacks in ("lira", "lira, designed_canaries, random_canaries, designed_canaries_of_sum"):
        path = tmp_path / "small.yaml"
        path.write_text(text % attacks)
        plans.append(plan(load(path)[0], "cpu"))
    without, with_audits = ({cell.id: cell for cell in one.cells} for one in plans)
    assert set(without) <= set(with_audits)
    own = [cell for cell in with_audits.values() if cell.stage == "train" and "inserts" in cell.spec]
    assert sorted(cell.spec["inserts"] for cell in own) == ["designed_canaries", "designed_canaries_of_sum", "random_canaries"]
    for cell in with_audits.values():
        if cell.stage == "attack":
            assert with_audits[cell.inputs["train"]].spec.get("inserts", "lira") == cell.spec["attack"]


def test_designed_canaries_are_orthogonal_to_each_other_and_to_what_is_public() -> None:
    draw = torch.Generator().manual_seed(5)
    factors = torch.randn(10, 200, generator=draw)
    public = Records(torch.randn(100, 10, generator=draw) @ factors + 0.1 * torch.randn(100, 200, generator=draw), torch.zeros(100).long())
    made = designed(public, 3, 80, draw)
    unit = made.x / made.x.norm(dim=1, keepdim=True)
    assert (unit @ unit.T - torch.eye(80)).abs().max() < 1e-4
    shares = (public.x @ unit.T).square().sum(1) / public.x.square().sum(1)
    assert float(shares.max()) < 0.02
    assert set(made.y.tolist()) == {0, 1, 2}
    more = designed(public, 3, 250, draw)  # more canaries than room: directions are used again
    assert more.x.shape == (250, 200)
    assert bool(more.x.isfinite().all())


def test_the_reading_directions_are_silent_for_others() -> None:
    x, others = normal(60, 200, seed=1), normal(20, 200, seed=2) * 5
    directions = silent(x, others)
    read = directions @ (x / x.norm(dim=1, keepdim=True)).T
    own = read.diagonal()
    assert float(own.min()) > 0.5
    assert float((read - torch.diag(own)).abs().max()) < 0.1  # plain cosines of random rows reach 0.25 here
    assert float((directions @ (others / others.norm(dim=1, keepdim=True)).T).abs().max()) < 0.1


def test_bad_canaries_are_refused_in_one_sentence() -> None:
    prepared = Bench({**spec("fedavg", DESIGNED, 0), "inserts": None}, None).prepared

    class Bad:
        def __init__(self, records: Records) -> None:
            self.records = records

        def inserts(self, auxiliary: Records, classes: int, rng: torch.Generator) -> Records:
            return self.records

    draw = torch.Generator()
    for records in (
        Records(torch.zeros(3, 7), torch.zeros(3).long()),
        Records(torch.full((3, 400), torch.nan), torch.zeros(3).long()),
        Records(torch.zeros(3, 400), torch.full((3,), 99)),
        Records(torch.zeros(0, 400), torch.zeros(0).long()),
    ):
        with pytest.raises(RequestError, match="inserts gave"):
            insert(prepared, Bad(records), draw, draw)


def test_the_registry_reads_from_the_text_that_an_attack_inserts() -> None:
    assert registry.find("attacks", DESIGNED).inserts
    assert registry.find("attacks", "designed_canaries_black_box").inserts
    assert not registry.find("attacks", "lira").inserts


def test_the_same_seed_gives_the_same_canaries() -> None:
    made = [DesignedCanaries(20).inserts(Records(normal(30, 50, seed=1), torch.zeros(30).long()), 2, torch.Generator()) for _ in range(2)]
    assert torch.equal(made[0].x, made[1].x)


@pytest.mark.parametrize("ref", ["designed_canaries", "designed_canaries_of_sum", "designed_canaries_black_box", "random_canaries"])
def test_every_audit_keeps_the_contract(ref: str) -> None:
    results = check_attack(ref)
    assert not [result for result in results if result.verdict == "fail"]
    assert {"nothing on the null", "power on fedavg", "same bytes for the same seed"} <= {r.name for r in results if r.verdict == "pass"}


def test_a_key_with_as_many_points_as_there_are_canaries_is_not_mistaken_for_them() -> None:
    told, _ = audit("infl:published", "designed_canaries:count=128", 0, optimiser="adam", lr=1e-3, batch=100, epochs=3)
    assert told["auc"] > 0.6


def test_scores_of_a_model_that_diverged_are_scored_as_knowing_nothing() -> None:
    coins = torch.arange(200) < 100
    told = {m.metric: m.value for m in score_audit(torch.full((200,), torch.nan), coins, None, 0)}
    assert (told["auc"], told["epsilon_lower"], told["undefined_scores"]) == (0.5, 0.0, 200)


def test_no_reference_model_was_trained_beside_an_audits_own_federation(tmp_path: Path) -> None:
    from suites.config import load
    from suites.plan import plan

    body = (
        "class {name}:\n    goal = 'audit'\n    needs = {needs}\n    def inserts(self, auxiliary, classes, rng): ...\n"
        "    def run(self, seen, rng): ...\n"
    )
    given = {"Wants": "frozenset({'released', 'references'})", "Untold": "frozenset(sights())"}
    for name, needs in given.items():
        (tmp_path / f"{name.lower()}.py").write_text(body.format(name=name, needs=needs))
    path = tmp_path / "small.yaml"
    attacks = "lira, wants.py:Wants, untold.py:Untold"
    path.write_text(f"suite: small\ndata: {{name: synthetic}}\nseeds: 1\nreferences: 2\ndefenses: [fedavg]\nattacks: [{attacks}]\n")
    made = plan(load(path)[0], "cpu")
    assert [one.reason for one in made.skipped] == ["the suite trains no reference models"]
    untold = next(cell for cell in made.cells if cell.stage == "attack" and "Untold" in cell.spec["attack"])
    assert set(untold.inputs) == {"train"}
