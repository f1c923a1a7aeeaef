"""The contract that every plug-in meets: words and shapes, no behaviour beyond identity.

Torch and the standard library only, so that a plug-in file can import it at no cost. One import line serves a plug-in:
``from suites.contracts import Attack, Defense, Guess``.

Units. Every record tensor that an attack sees or guesses is in *public units*: standardised per feature with the mean and
scale of the public auxiliary records (see ``suites.preprocess``). An update is ``parameters after - parameters broadcast``; a
gradient is the derivative of the *mean* loss over the batch. ``F`` counts features, ``K`` classes, ``B`` records in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NoReturn, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from suites.errors import RequestError as RequestError  # noqa: PLC0414 (a re-export that type checkers accept)
from suites.errors import Skip as Skip  # noqa: PLC0414

Params = dict[str, Tensor]  # named tensors, as on the wire (a state_dict without secrets)

Goal = Literal["reconstruction", "membership", "key", "property", "audit"]
View = Literal["server", "site", "outsider"]
KeyHeld = Literal["none", "wrong", "partial", "right", "leaked"]
Unit = Literal["record", "person", "site", "condition"]
Topology = Literal["federated", "centralized", "local_only"]

Sees = Literal[
    "released",  # the final model's parameters
    "broadcasts",  # the parameters sent out each kept round
    "updates",  # each site's own update in the clear, each kept round
    "sums",  # what the server combined, each kept round
    "probes",  # single sites' probe messages in the clear (batch gradients, steps, epochs)
    "probe_sums",  # only the combination of the sites' probe messages
    "candidates",  # records whose membership is asked
    "auxiliary",  # the adversary's own public records
    "simulate",  # the public client algorithm
    "predict",  # the public model function
    "references",  # models trained by the referee under the same defense
    "key",  # the key that the threat grants
    "own_keys",  # keys of the adversary's own drawing
    "own_records",  # view "site": the colluding site's own training records
    "known_pairs",  # the records behind the first probe messages, where the threat knows some
    "oracle",  # the truth itself: controls only; the row becomes an upper bound
]


# --------------------------------------------------------------------------------------------------- randomness and secrets


@runtime_checkable
class KeySource(Protocol):
    """A cryptographic stream (HKDF then AES-CTR in a benchmark, the operating system in a deployment)."""

    def bytes(self, count: int) -> bytes: ...
    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor: ...  # float64
    def normal(self, *shape: int) -> Tensor: ...  # float64
    def signs(self, count: int) -> Tensor: ...  # float64, each -1 or 1
    def permutation(self, count: int) -> Tensor: ...  # int64
    def child(self, *coordinates: object) -> KeySource: ...


class Secret:
    """Named tensors that only sites hold; it prints nothing, cannot be pickled, copied to JSON or compared by value.

    ``secret["coordinates"]`` reads a tensor; ``names`` lists them.
    """

    __slots__ = ("_tensors",)

    def __init__(self, **tensors: Tensor) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def __repr__(self) -> str:
        return f"Secret(<{len(self._tensors)} tensors withheld>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is never pickled: derive it again where it is needed")


# --------------------------------------------------------------------------------------------------- the protocol


@dataclass(frozen=True, slots=True)
class Local:
    """What a site does between a broadcast and its message. The optimiser's state is fresh each round."""

    epochs: int = 1
    batch: int = 100  # a site with fewer records uses what it has
    optimiser: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.0


@dataclass(frozen=True, slots=True)
class Federation:
    """The protocol; ``flaws`` names each deliberate fault.

    ``pooled_client``: one more site that holds all records, and equal weights. ``test_set_choice``: the best local epoch of each site and
    the best round are chosen on the test records. ``key_in_state``, ``integer_seed``: of a keyed defense that can reproduce them.
    """

    topology: Topology = "federated"
    sites: int = 5
    rounds: int = 10
    local: Local = field(default_factory=Local)
    participation: float = 1.0
    vanishing: int = 0  # sites that are lost in every round once it has begun; who they are, and how far they get, is drawn anew
    selection: Literal["last", "validation"] = "last"
    patience: int | None = None  # under "validation": rounds without a better one after which training ends
    flaws: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Shape:
    """Public sizes of one federation, known before training."""

    site_sizes: tuple[int, ...]
    features: int
    classes: int
    persons: tuple[int, ...] | None = None  # a site, where it is known who gave each record
    width: int = 0  # units of the network's first linear layer; 0 where there is none or it is not known


@dataclass(frozen=True, slots=True)
class Probe:
    """One extra update of chosen records at a chosen checkpoint, made *through the whole defense stack*.

    ``records[s]`` are the pool indices that site ``s`` uses. ``optimiser="gradient"`` sends the gradient of the mean loss;
    ``"sgd"`` (with ``momentum``) and ``"adam"`` send the update after ``steps`` steps of rate ``lr``. The federation itself is not moved.

    A step takes all these records, or with ``minibatch`` the next so many, which the site shuffles anew whenever all had their turn. That
    number is public; in what order they came nobody else learns.
    """

    name: str
    round: int
    records: tuple[tuple[int, ...], ...]
    optimiser: Literal["gradient", "sgd", "adam"] = "gradient"
    steps: int = 1
    lr: float = 0.0
    momentum: float = 0.0
    minibatch: int | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """Exactly what one site put on the wire. ``kind`` says whether anybody but the channel can read it."""

    site: int
    kind: Literal["update", "gradient", "masked", "ciphertext", "count", "statistic"]
    payload: Params
    records: int | None = None  # n_k, where the protocol sends it in the clear


@dataclass(frozen=True, slots=True)
class Own:
    """One site's part of a mean as that site knows it: what it put in (with its noise, rounded as the sum rounds it), and the weights."""

    update: Params
    weight: float
    total: float  # of all whose messages are in the mean


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    probe: Probe
    messages: tuple[Message, ...]
    combined: Params  # equal-weight mean over the sites
    own: Own | None = None  # as in ``Round``
    sent: Params | None = None  # what the sites were given to answer at, where an active server made it up


@dataclass(frozen=True, slots=True)
class Round:
    """One round as it crossed the wire; kept or dropped whole by the engine's keep policy."""

    index: int
    broadcast: Params
    messages: tuple[Message, ...]
    combined: Params  # the (weighted) mean update that the server could read
    probes: tuple[ProbeRecord, ...] = ()
    own: Own | None = None  # the colluding site's part, where a channel hides it from the wire: never seen by the server


# --------------------------------------------------------------------------------------------------- who looks, and what they see


@dataclass(frozen=True, slots=True)
class Threat:
    """Who looks (``view``), what key they hold, and what the unit of privacy is."""

    view: View = "server"
    key: KeyHeld = "none"
    key_fraction: float = 1.0
    active: bool = False
    colluders: int = 0
    auxiliary: int = 0  # 0: all auxiliary records
    unit: Unit = "record"
    neighbours: Literal["known", "unknown"] = "known"  # whether of a record that is asked about also what its neighbours gave is known
    known_pairs: int = 0  # probe messages, the first, of which the records are known: what is asked is the others'

    @property
    def key_label(self) -> str:
        return f"partial:{self.key_fraction:g}" if self.key == "partial" else self.key

    @property
    def view_label(self) -> str:
        """What tables print: a server that also chooses what it sends, and whoever knows records in part or in advance, stand apart."""
        label = f"active_{self.view}" if self.active else self.view
        label = label if self.neighbours == "known" else f"{label}_neighbours_unknown"
        return f"{label}_known_pairs" if self.known_pairs else label


@dataclass(frozen=True, slots=True)
class Fact:
    """Something the adversary knows, with its source; a row that read an ORACLE fact is an upper bound, never a headline."""

    value: Any
    source: Literal["protocol", "public", "inferred", "ORACLE"]


@dataclass(frozen=True, slots=True)
class Records:
    """Records in public units: ``x`` [n, F] float32, ``y`` [n] labels; ``site``/``person`` [n] where the threat knows them.

    ``attribute`` [n] is known of auxiliary records alone: 1 and 0 for having it or not, -1 where nobody knows.
    """

    x: Tensor
    y: Tensor
    site: Tensor | None = None
    person: Tensor | None = None
    attribute: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, slots=True)
class RoundView:
    """One round as a threat sees it; what it does not see is empty or None.

    ``combined`` is the mean of the sites' updates; at view "site", which takes out its own, of the others' (None where there are none).
    """

    index: int
    broadcast: Params | None
    updates: Mapping[int, Params]  # site -> update in the clear
    combined: Params | None
    weights: Mapping[int, int]  # site -> n_k where the protocol sends it
    participants: tuple[int, ...] = ()  # whose updates are in ``combined``; the server knows, whatever masks them


@dataclass(frozen=True, slots=True)
class Target:
    """One visible probe message to be inverted: ``batch`` records stand behind it.

    ``params`` is the checkpoint, ``update`` the message (a gradient when ``optimiser == "gradient"``). ``site`` is None for a
    combination over ``contributors`` sites; ``update`` is then their mean and ``batch`` counts the records of all of them. At view
    "site" those are the others: of two sites, the other one. ``minibatch`` is how many of its records a site took a step, in an order
    that is its own secret; None: all of them.
    """

    params: Params
    update: Params
    batch: int
    optimiser: Literal["gradient", "sgd", "adam"]
    steps: int
    lr: float
    site: int | None
    contributors: int
    round: int
    momentum: float = 0.0
    minibatch: int | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A probe message and the records behind it: a known plaintext. Of a batch nobody says which row went where."""

    target: Target
    records: Records


@dataclass(frozen=True, slots=True)
class Reference:
    """A model that the referee trained under the same defense with the adversary's own key.

    ``included`` [n_candidates + n_auxiliary] says which candidate and auxiliary records it was trained on; ``predict`` maps
    records [n, F] to outputs [n, K].
    """

    index: int
    included: Tensor
    params: Params
    predict: Callable[[Tensor], Tensor]


class Observation(Protocol):
    """All that an attack ever gets. Reading what the attack did not declare in ``needs`` raises."""

    @property
    def threat(self) -> Threat: ...
    @property
    def known(self) -> Mapping[str, Fact]:
        """protocol (Federation), classes, features, members, clip, claim; layout (suites.tasks) of a structured task; and ``columns``.

        These are bool [F]: the columns of a candidate that the threat knows. The others, its neighbours' say, are zero.
        """
        ...

    @property
    def rounds(self) -> Sequence[RoundView]: ...  # needs broadcasts, updates or sums
    @property
    def targets(self) -> Sequence[Target]: ...  # needs probes: single sites' messages, without those of ``known_pairs``
    @property
    def known_pairs(self) -> Sequence[Pair]: ...  # needs known_pairs: somebody's own records are among the senders'
    @property
    def released(self) -> Params: ...
    @property
    def candidates(self) -> Records: ...
    @property
    def auxiliary(self) -> Records: ...
    @property
    def own_records(self) -> Records: ...
    @property
    def target_sums(self) -> Sequence[Target]: ...  # needs probe_sums: the sites' probe messages combined
    @property
    def key(self) -> Secret | None: ...  # none: None; wrong: one the adversary drew; partial: weakened; right, leaked: the key

    def draw_key(self, index: int) -> Secret | None:
        """A key of the adversary's own, from the public distribution (never the federation's); needs own_keys or key."""
        ...

    def derive_key(self, source: KeySource) -> Secret | None:
        """What the public key generation makes of randomness that the adversary chooses (to count it, or to try it); needs own_keys."""
        ...

    def simulate(
        self, target: Target, x: Tensor, y: Tensor, key: Secret | None = None, *, prepared: bool = False, order: Tensor | None = None
    ) -> Params:
        """The message that records ``x`` [B, F] with labels ``y`` ([B] or probabilities [B, K]) would give at ``target``.

        Differentiable in records, labels and key. ``prepared`` says that ``x`` [B, F'] is what the network itself reads, past
        ``Defense.prepare``: whoever lacks the key can still search there. ``order`` [steps, B] is the caller's guess of the records that
        each step took, 1 or 0; without one every step takes all, whatever the target's ``minibatch``.
        """
        ...

    def predict(self, params: Params, x: Tensor, key: Secret | None = None) -> Tensor:
        """Outputs [n, K] of the public model; ``key=None`` takes the path without a key."""
        ...

    def signal(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Per-record membership signal [n], higher for better fitted records (for classes: the logit of the true class's probability)."""
        ...

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Per-record loss [n]."""
        ...

    def restore(self, x: Tensor, key: Secret | None = None) -> Tensor:
        """Model-input units back to public units with a key; without one, cut or padded to F."""
        ...

    def references(self, count: int) -> Sequence[Reference]: ...

    def oracle(self) -> Any:
        """The truth in the form of ``Guess.value``; reading it makes the row an upper bound that enters no headline."""
        ...


@dataclass(frozen=True, slots=True)
class Guess:
    """What an attack says.

    ``value`` by goal. reconstruction: a list with one [batch, F] tensor a target, in the order of ``seen.targets`` (or ``target_sums``);
    it may stop early. membership: [n_candidates] scores, higher for members; audit: the same of canaries. key: a list of ``Secret | None``
    (each is opened by the scorer on test records), or a dict of secret-derived tensors (compared with ``Defense.derived``). property:
    what ``Attack.property`` says. ``certified`` marks what the attack could verify without the truth.
    """

    value: Any
    confidence: Tensor | None = None
    certified: Tensor | None = None
    notes: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ground:
    """Where an attack shows its power: the small federation that ``infl-bench check`` builds for it.

    Without one it is plain FedAvg with gradients of single records; for a key attack, ``infl:published``. ``defense`` names another stack,
    ``flaws`` the protocol's deliberate faults, ``batch`` the records behind each message, ``tails`` records whose values are far from
    normal (cubes of normal ones, as omics has few high and many low). ``keys`` > 0: the federation's key is among the first so
    many that a two-byte seed gives, so that a search of all ends within a check. ``participation``: the share of sites in each round.
    ``known_pairs``: as many messages as the threat knows the records of (``Threat``). ``factors`` > 0: as many skewed factors hold nine
    tenths of a record's variance, as few programmes do of a cell's, where else all directions are alike. ``one_step``: each round is one
    step of SGD on all of a site's records, under a first layer with more units than there are records.
    """

    defense: str = ""
    flaws: frozenset[str] = frozenset()
    batch: int = 1
    tails: bool = False
    keys: int = 0
    participation: float = 1.0
    known_pairs: int = 0
    factors: int = 0
    one_step: bool = False


class Attack(Protocol):
    """A plug-in attack: one class, one idea. ``needs`` lists all it reads; lacking one makes its row ``skipped``.

    A class with ``control = True`` marks an end of a scale: printed beside the attacks, never the worst case. One whose power shows only in
    some scene names it in an attribute ``ground`` (a ``Ground``). A membership attack whose scores are log-likelihood ratios says so by
    ``log_ratio = True``: they are summed as they are where the unit is a person or a site, others by the normal scores of their ranks.

    An attack of goal "property" names in ``property`` what its value is: "site_of_origin" [n_candidates, S], higher for the site that a
    record is said to come from; "class_mix" [S, K] and "attribute" [S, 2], shares of each site's records, or one row for all together.

    An attack of goal "audit" also has ``inserts(auxiliary: Records, classes: int, rng) -> Records``: canaries, each of which the referee
    adds to site 0's training records by a fair coin. They are then the candidates; the attack scores them without seeing a coin.

    One with ``active = True`` has ``craft(seen, target, rng) -> Params``: what the server sends in place of ``target.params`` when it asks
    the sites for the answer that ``target`` (the honest one, all sites combined) was. The referee has them answer through the whole
    defense; ``seen.targets`` and ``seen.target_sums`` are then those answers. It runs under threats with ``active: true`` alone.
    """

    goal: ClassVar[Goal]
    needs: ClassVar[frozenset[Sees]]

    def run(self, seen: Observation, rng: torch.Generator) -> Guess: ...


# --------------------------------------------------------------------------------------------------- defenses


@dataclass(frozen=True, slots=True)
class Clip:
    """Per-record (or per-person) clipping to L2 norm ``norm``; ``sampling`` is what the engine really executes."""

    norm: float
    unit: Literal["record", "person"] = "record"
    sampling: Literal["poisson", "shuffle"] = "poisson"


@dataclass(frozen=True, slots=True)
class Claim:
    """What a defense promises, never used as a score. ``epsilon`` is the maximum over sites, ``per_site`` has each."""

    kind: Literal["dp", "keyed", "none"]
    epsilon: float | None = None
    delta: float | None = None
    unit: Unit = "record"
    relation: Literal["add_remove", "replace_one", ""] = ""
    sampler: str = ""
    sampling_rate: float | None = None
    noise_multiplier: float | None = None
    steps: int | None = None
    per_site: tuple[float, ...] = ()
    shares: int = 1  # messages whose noise adds up to what ``noise_multiplier`` says
    grid: float = 0.0  # steps in the bound, of Skellam noise on whole numbers; 0: the noise is Gaussian
    coordinates: int = 0  # that are rounded to that grid, at most
    server_sees: str = ""
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """In plain words: what each party sees under a defense and what it does not protect against."""

    server: str
    site: str
    outsider: str
    does_not_protect: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a channel is given for one round: public context and one private stream a site."""

    round: int
    context: bytes  # binds masks to federation, round kind and probe name
    broadcast: Params
    keys: tuple[KeySource, ...]  # one a site, never shared
    dropouts: Mapping[int, str] = field(default_factory=dict)  # site -> stage at which it vanishes


@dataclass(frozen=True, slots=True)
class Delivery:
    messages: tuple[Message, ...]
    combined: Params  # weighted mean update over the survivors
    survivors: tuple[int, ...]
    own: Own | None = None  # filled in by the engine


class Channel(Protocol):
    """A staged protocol between the sites and the server (secure aggregation, homomorphic encryption).

    One that goes on without sites that vanish has ``stages``, their names in order: a site vanishes at one of them. One that rounds has
    ``part(update, weights, site) -> Params``: site ``site``'s update as it stands in the sum.

    For ``infl-bench check``, which else sees only what ``run`` sends: one that masks by a stream of words has ``stream(key: bytes,
    words: int) -> Tensor``, what a mask of that key adds; one that claims to stand a server that lies has ``lies``, by name functions
    ``(updates, weights, exchange)`` that each tell one lie to its sites, whose refusal raises a RuntimeError.
    """

    def run(self, updates: Sequence[Params], weights: Sequence[float], exchange: Exchange) -> Delivery:
        """Carry the sites' updates; the server reads only ``messages`` and ``combined`` = sum(w u) / sum(w)."""
        ...


class Defense:
    """A layer whose every hook is the identity; layers stack with ``+``. FedAvg is the empty list of layers.

    Constructor arguments are the defense's parameters; the registry fills them from ``name:key=value``.
    """

    topology: Topology = "federated"
    clip: Clip | None = None
    channel: Channel | None = None
    equal_weights: bool = False  # every site counts 1 in the mean, and no n_k is sent
    needs_channel: bool = False  # its claim is about a sum that only a channel keeps from being taken apart
    bound: float | None = None  # L2 norm to which ``encode`` clips a site's whole update, where a claim rests on it
    minimum: int = 1  # records that must stand behind every message: a probe of fewer is not sent
    keeps_lengths: bool = True  # False: ``restore`` gives back the direction of a record, whose length ``prepare`` drops
    card: ClassVar[Card | None] = None

    def local(self, local: Local) -> Local:
        """What this defense changes about a site's own training (noise wants fewer and longer steps); public, and part of its claim."""
        return local

    def protocol(self, federation: Federation) -> Federation:
        """What this defense changes about the protocol (fewer rounds, a deliberate fault); public, and part of its claim."""
        return federation

    def plan(self, federation: Federation, shape: Shape) -> Defense:
        """The same defense fitted to public sizes (noise for a target ε, say); deterministic, no data."""
        return self

    def secret(self, rng: KeySource) -> Secret | None:
        """Once a federation; given to sites, never to the server."""
        return None

    def weaken(self, secret: Secret, fraction: float, rng: KeySource) -> Secret:
        """What an adversary holds who has ``fraction`` of the key; the rest is drawn anew."""
        raise Skip(f"{type(self).__name__} does not say what a partial key is")

    def prepare(self, x: Tensor, secret: Secret | None) -> Tensor:
        """What a site feeds its model, [n, F] -> [n, F']; done once, before the net is built."""
        return x

    def restore(self, x: Tensor, secret: Secret | None) -> Tensor:
        """The inverse of ``prepare`` for a holder of the secret, [n, F'] -> [n, F]."""
        return x

    def model(self, net: nn.Module, secret: Secret | None) -> nn.Module:
        """The net a site trains. A secret enters as non-persistent buffers only, so that no state_dict holds it."""
        return net

    def without_key(self, module: nn.Module) -> nn.Module:
        """The same module on its path without a key (for keyed layers: base weights only)."""
        return module

    def derived(self, module: nn.Module) -> Params:
        """Secret-derived tensors that key attacks aim for, by name; read by the scorer in memory, never stored."""
        return {}

    def noise(self, clipped_sum: Params, rng: torch.Generator) -> Params:
        """Added to the sum of clipped gradients of one step."""
        return clipped_sum

    def blend(self, records: int, rng: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """For a batch of ``records``: which other one each is blended with [B], and its own share in that blend [B], of inputs and loss.

        None blends nothing. Under clipping it is refused, since a record would be part of two gradients.
        """
        return None

    def encode(self, update: Params, rng: torch.Generator) -> Params:
        """A site's update on its way out (compression, noise, quantising); any number compose."""
        return update

    def encode_kept(self, update: Params, kept: Params, rng: torch.Generator) -> tuple[Params, Params]:
        """The same for a defense whose sites keep something from round to round (nothing at first): what is sent, and what is kept now."""
        return self.encode(update, rng), kept

    def release(self, mean: Params, rng: torch.Generator) -> Params:
        """What a trusted server does to the mean before anybody is given it; the server itself has seen what it was given."""
        return mean

    def claim(self, federation: Federation, shape: Shape) -> Claim | None:
        return None


# --------------------------------------------------------------------------------------------------- tasks


class Task(Protocol):
    """What is learnt, and how its usefulness is measured. One file a task."""

    name: ClassVar[str]

    def net(self, features: int, outputs: int) -> nn.Module:
        """The uninitialised network for [B, features] -> [B, outputs]; the engine initialises it from a stream."""
        ...

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Per-record loss [B]; ``y`` may be probabilities [B, K], since inversion attacks relax labels."""
        ...

    def signal(self, outputs: Tensor, y: Tensor) -> Tensor: ...

    def utility(self, outputs: Tensor, y: Tensor, classes: int) -> dict[str, float]:
        """Named metrics on test records; the first is the headline."""
        ...

    def floor(self, y_train: Tensor, y_test: Tensor, classes: int) -> dict[str, float]:
        """The same metrics for the best guess without features (majority class)."""
        ...
