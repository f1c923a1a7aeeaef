"""The ends of every scale lie where they should."""

import pytest
import torch
from observations import FakeObservation, auc, auc_error, cosine, mlp, normal, probe, r2

from attacks.controls import (
    ClassMean,
    ClassMeanOfSum,
    NearestAuxiliary,
    OracleMembership,
    OracleReconstruction,
    RandomCandidate,
    RandomGuess,
    RandomGuessOfSum,
    RandomMembership,
    RandomRecord,
)
from suites.contracts import Records

F, K, TARGETS = 80, 4, 8


def lab() -> tuple[FakeObservation, list[torch.Tensor]]:
    """Records with strong class means, so that a class mean is worth something."""
    module, centre = mlp([F, 32, K]), normal(K, F, seed=9)
    y = torch.arange(TARGETS) % K
    x = 0.8 * centre[y] + 0.6 * normal(TARGETS, F, seed=1)
    labels = torch.arange(200) % K
    public = Records(0.8 * centre[labels] + 0.6 * normal(200, F, seed=2), labels)
    others = Records(0.8 * centre[labels] + 0.6 * normal(200, F, seed=4), labels)
    truth = [row[None] for row in x]
    targets = [probe(module, row, y[i : i + 1]) for i, row in enumerate(truth)]
    return FakeObservation(module, F, K, targets=targets, auxiliary=public, candidates=others, truth=truth), truth


def run(attack: type, seen: FakeObservation, seed: int = 3):
    return attack().run(seen, torch.Generator().manual_seed(seed)).value


def test_reconstruction_controls_rank_as_they_must() -> None:
    seen, truth = lab()
    assert r2(run(RandomGuess, seen), truth) < -0.5
    assert 0.4 < r2(run(ClassMean, seen), truth) < 0.8  # 1 - .36 of the energy
    assert r2(run(OracleReconstruction, seen), truth) == 1


def test_class_mean_reads_the_label_and_falls_back_to_the_overall_mean() -> None:
    seen, truth = lab()
    for value, row in zip(run(ClassMean, seen), truth):
        assert float(cosine(value, row)[0]) > 0.7
    for target in seen.targets:
        object.__setattr__(target, "update", {"0.weight": target.update["0.weight"]})
    assert all(torch.allclose(value[0], seen.auxiliary.x.mean(0)) for value in run(ClassMean, seen))


@pytest.mark.parametrize("control", [RandomRecord, RandomCandidate])
def test_a_drawn_record_has_the_labels_that_the_message_shows_and_is_another_next_time(control: type) -> None:
    seen, _ = lab()
    among = seen.candidates if control is RandomCandidate else seen.auxiliary
    rows = [[int((among.x == value).all(1).nonzero()) for value in run(control, seen, seed)] for seed in (3, 4)]
    assert among.y[rows[0]].tolist() == among.y[rows[1]].tolist() == [index % K for index in range(TARGETS)]
    assert rows[0] != rows[1]


def test_nearest_auxiliary_is_an_auxiliary_record_of_the_right_class() -> None:
    seen, _ = lab()
    for index, value in enumerate(run(NearestAuxiliary, seen)):
        row = (seen.auxiliary.x == value).all(1).nonzero()
        assert len(row) == 1
        assert int(seen.auxiliary.y[row[0, 0]]) == index % K


def test_random_guesses_do_not_resemble_the_truth() -> None:
    seen, truth = lab()
    similar = cosine(torch.cat(run(RandomGuess, seen)).flatten(), torch.cat(truth).flatten())
    assert abs(float(similar)) < 0.2


@pytest.mark.parametrize("attack", [RandomGuess, RandomMembership, ClassMean, NearestAuxiliary])
def test_same_seed_same_bytes(attack: type) -> None:
    seen, _ = lab()
    assert all(torch.equal(a, b) for a, b in zip(run(attack, seen), run(attack, seen)))


def test_membership_controls() -> None:
    seen, _ = lab()
    seen.truth = torch.arange(200) % 2 == 0
    assert auc(run(OracleMembership, seen), seen.truth) == 1
    assert abs(auc(run(RandomMembership, seen), seen.truth) - 0.5) < 4 * auc_error(seen.truth)


@pytest.mark.parametrize("attack", [RandomGuessOfSum, ClassMeanOfSum])
def test_controls_of_sums_read_sums_only(attack: type) -> None:
    seen, _ = lab()
    assert "probes" not in attack.needs
    assert type(attack.__base__().of_sums()) is attack
    assert [value.shape for value in run(attack, seen)] == [(1, F)] * TARGETS


def test_an_attacker_without_auxiliary_records_still_answers() -> None:
    seen, _ = lab()
    seen.auxiliary = Records(torch.empty(0, F), torch.empty(0, dtype=torch.int64))
    assert all(torch.equal(value, torch.zeros(1, F)) for value in run(ClassMean, seen))
    assert all(torch.equal(value, torch.zeros(1, F)) for value in run(NearestAuxiliary, seen))
