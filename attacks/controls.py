"""The ends of every scale: guesses without the message, and the truth itself. A score means something only between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from attacks.gradient_inversion.closed_form import ClosedForm
from attacks.gradient_inversion.labels import label_list
from attacks.gradient_inversion.message import known_count
from suites.contracts import Goal, Guess, Observation, Records, Sees, Skip, Target


class RandomGuess:
    """Control: draws from N(0, 1) in public units, the prior of a standardised record."""

    goal: ClassVar[Goal] = "reconstruction"
    control: ClassVar[bool] = True
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        features = known_count(seen.known, "features")
        return Guess([torch.randn(target.batch, features, generator=rng) for target in self.messages(seen)])

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.targets

    @staticmethod
    def of_sums() -> RandomGuess:
        """The same control where only sums of messages are seen."""
        return RandomGuessOfSum()


class ClassMean:
    """Control: the auxiliary mean of each record's class, the class read off the output bias; the overall mean where there is none."""

    goal: ClassVar[Goal] = "reconstruction"
    control: ClassVar[bool] = True
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "auxiliary", "predict", "key"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        features, classes = known_count(seen.known, "features"), known_count(seen.known, "classes")
        public = seen.auxiliary
        overall = public.x.mean(0) if len(public) else torch.zeros(features)
        means = [public.x[public.y == c].mean(0) if bool((public.y == c).any()) else overall for c in range(classes)]
        values = []
        for target in self.messages(seen):
            outputs = seen.predict(target.params, public.x, seen.key).detach() if len(public) else None
            labels = label_list(target, classes, outputs)
            rows = [overall] * target.batch if labels is None else [means[int(label)] for label in labels]
            values.append(torch.stack(rows))
        return Guess(values)

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.targets

    @staticmethod
    def of_sums() -> ClassMean:
        """The same control where only sums of messages are seen."""
        return ClassMeanOfSum()


class RandomRecord:
    """Control: auxiliary records drawn for the classes that the output bias shows; whoever is matched to the truth gains by many draws."""

    goal: ClassVar[Goal] = "reconstruction"
    control: ClassVar[bool] = True
    needs: ClassVar[frozenset[Sees]] = ClassMean.needs

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        classes, among, public = known_count(seen.known, "classes"), self.among(seen), seen.auxiliary
        if not len(among):
            raise Skip("there is no record to draw")
        values = []
        for target in self.messages(seen):
            outputs = seen.predict(target.params, public.x, seen.key).detach() if len(public) else None
            values.append(among.x[_draw(label_list(target, classes, outputs), target.batch, among.y, rng)])
        return Guess(values)

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.targets

    def among(self, seen: Observation) -> Records:
        """Whom it draws."""
        return seen.auxiliary

    @staticmethod
    def of_sums() -> RandomRecord:
        """The same control where only sums of messages are seen."""
        return RandomRecordOfSum()


class RandomCandidate(RandomRecord):
    """Control: candidates drawn for the classes that the output bias shows. Some are members, so a draw is right now and then."""

    needs: ClassVar[frozenset[Sees]] = RandomRecord.needs | {"candidates"}

    def among(self, seen: Observation) -> Records:
        return seen.candidates

    @staticmethod
    def of_sums() -> RandomCandidate:
        """The same control where only sums of messages are seen."""
        return RandomCandidateOfSum()


class NearestAuxiliary:
    """Control: the auxiliary record nearest to what the closed form reads, which is no reconstruction but a plausible stand-in."""

    goal: ClassVar[Goal] = "reconstruction"
    control: ClassVar[bool] = True
    needs: ClassVar[frozenset[Sees]] = ClosedForm.needs

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        guess, public = ClosedForm().run(seen, rng), seen.auxiliary.x
        return Guess([_nearest(value, public) for value in guess.value])


class RandomGuessOfSum(RandomGuess):
    """Control where only sums of messages are seen: draws from N(0, 1) in public units."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"probe_sums"})

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums


class ClassMeanOfSum(ClassMean):
    """Control where only sums of messages are seen: the auxiliary class means by the label counts of the whole sum."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"probe_sums", "auxiliary", "predict", "key"})

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums


class RandomRecordOfSum(RandomRecord):
    """Control where only sums of messages are seen: auxiliary records drawn by the label counts of the whole sum."""

    needs: ClassVar[frozenset[Sees]] = ClassMeanOfSum.needs

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums


class RandomCandidateOfSum(RandomCandidate):
    """Control where only sums of messages are seen: candidates drawn by the label counts of the whole sum."""

    needs: ClassVar[frozenset[Sees]] = ClassMeanOfSum.needs | {"candidates"}

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums


class OracleReconstruction:
    """Control: the true records; the upper end of the scale."""

    goal: ClassVar[Goal] = "reconstruction"
    control: ClassVar[bool] = True
    needs: ClassVar[frozenset[Sees]] = frozenset({"oracle"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        return Guess(seen.oracle())


class RandomMembership:
    """Control: uniform scores."""

    goal: ClassVar[Goal] = "membership"
    control: ClassVar[bool] = True
    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        return Guess(torch.rand(len(seen.candidates), generator=rng))


class OracleMembership:
    """Control: the true membership; the upper end of the scale."""

    goal: ClassVar[Goal] = "membership"
    control: ClassVar[bool] = True
    needs: ClassVar[frozenset[Sees]] = frozenset({"oracle"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        return Guess(torch.as_tensor(seen.oracle()).float())


def _draw(labels: Tensor | None, count: int, y: Tensor, rng: torch.Generator) -> Tensor:
    """Positions [count] in ``y`` [n], as many of each class as ``labels`` [count] has (None: of any); nobody twice where it can be."""
    held = y.cpu()
    if labels is None:
        return _some(torch.arange(len(held)), count, rng)
    parts = []
    for label, wanted in zip(*torch.unique(labels.cpu(), return_counts=True)):
        own = (held == label).nonzero().squeeze(1)
        parts.append(_some(own if len(own) else torch.arange(len(held)), int(wanted), rng))
    return torch.cat(parts)


def _some(places: Tensor, count: int, rng: torch.Generator) -> Tensor:
    rounds = -(-count // len(places))
    return torch.cat([places[torch.randperm(len(places), generator=rng)] for _ in range(rounds)])[:count]


def _nearest(value: Tensor, public: Tensor) -> Tensor:
    return public[torch.cdist(value.to(public.dtype), public).argmin(1)] if len(public) else torch.zeros_like(value)
