"""A keyed model in a federation of one's own: what a site needs around its training loop, and the gate that checks what arrives.

No engine and no simulation: the key comes from a key file, its secret from that key's 256 bits, and messages are tensors with public
metadata that any transport can carry (safetensors keeps both). Threat: a reader or a careless site. The tag shows which key an update
was made under; its proof, which only key holders can check, binds it to round, site and bytes. It does not make an update honest.
"""

from __future__ import annotations

import copy
import hmac
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256

import torch
from torch import Tensor, nn

from infl.embed import strip
from infl.first_layer import units_reading
from infl.hardened import Hardened
from infl.key import Identity, Key, secret_of
from infl.revocation import Revoked
from suites.contracts import Defense, Federation, Params, RequestError, Shape

PREFIX = "infl-bench."


@dataclass(frozen=True, slots=True)
class Tag:
    """The metadata of one update; all of it is public."""

    federation: str
    version: int
    fingerprint: str
    site: str
    round: int
    proof: str

    @property
    def identity(self) -> Identity:
        return Identity(self.federation, self.version, self.fingerprint)

    def metadata(self) -> dict[str, str]:
        """As safetensors' ``metadata``, or a header of any other transport."""
        return {PREFIX + name: str(value) for name, value in asdict(self).items()}

    @classmethod
    def read(cls, metadata: Mapping[str, str] | None) -> Tag | None:
        """The tag in an update's metadata; None where it has none that can be read."""
        try:
            own = {name: (metadata or {})[PREFIX + name] for name in cls.__slots__}
            numbers = {name: int(own[name]) for name in ("version", "round")}
        except (KeyError, ValueError):
            return None
        return cls(own["federation"], numbers["version"], own["fingerprint"], own["site"], numbers["round"], own["proof"])


class KeyedSite:
    """One site: its keyed model, its records as that model is fed them, and tagged updates. Training is the caller's own loop.

    Parameters
    ----------
    name : str
        Public; stands in the tags.
    key : Key
    defense : Defense
        Any keyed one: ``Published(strength=5)``, ``Hardened()``.
    net : nn.Module
        The plain network, equal at every site (a copy is taken); the key enters as non-persistent buffers only.
    x : Tensor
        The site's own records [n, F]; ``self.x`` [n, F'] is what the model is trained on: prepared once.
    classes : int
        Outputs of the network.
    revoked : Revoked, optional
        Versions that must not be used.

    Raises
    ------
    RequestError
        If the key was revoked, or the defense refuses a site of this size; ``Hardened`` without a ``minimum`` of one's own also where it
        cannot be told how many units read the records (``infl.first_layer``).
    """

    def __init__(
        self, name: str, key: Key, defense: Defense, net: nn.Module, x: Tensor, *, classes: int, revoked: Revoked | None = None
    ) -> None:
        if revoked is not None:
            revoked.refuse(key)
        self.name, self.key = name, key
        width = 0
        if isinstance(defense, Hardened) and defense.per_unit:
            width = units_reading(net, x)
            if not width:
                raise RequestError(
                    "infl:hardened asks twice as many records of a site as units read them, and this network's layers do not say how many "
                    "do: give Hardened(minimum=...), 128 for 64 units and more in proportion"
                )
        self._defense = defense.plan(Federation(sites=1), Shape((len(x),), x.shape[1], classes, width=width))
        self._secret = secret_of(key, self._defense)
        self.model = self._defense.model(copy.deepcopy(net), self._secret)  # some defenses hand the same net back
        self.x = self.prepare(x)

    def prepare(self, x: Tensor) -> Tensor:
        """Records [n, F] as the model is fed them [n, F']."""
        return self._defense.prepare(x, self._secret)

    def outputs(self, x: Tensor) -> Tensor:
        """The model's answer on records [n, F] in evaluation mode."""
        was = self.model.training
        try:
            with torch.no_grad():
                answer: Tensor = self.model.eval()(self.prepare(x))
        finally:
            self.model.train(was)
        return answer

    def broadcast(self) -> Params:
        """The model's present state, as it may cross a wire: no secret is in it."""
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def receive(self, broadcast: Params) -> None:
        """Start a round from what the server sent; every name must be there, and no other."""
        self.model.load_state_dict(broadcast, strict=True)

    def update(self, broadcast: Params, round_index: int) -> tuple[Params, Tag]:
        """What the model has moved since ``broadcast``, with its tag."""
        moved = {name: tensor - broadcast[name] for name, tensor in self.broadcast().items()}
        return moved, tag(self.key, self.name, round_index, moved)

    def stripped(self) -> nn.Module:
        """The plain network with the base weights: no key, no modulators. It is not expected to be of use."""
        return strip(self.model)

    def __repr__(self) -> str:
        return f"KeyedSite({self.name!r}, {self.key.identity})"


class Gate:
    """Lets through only updates that were made under an accepted version, and counts by reason what it refused.

    Parameters
    ----------
    accepted : Identity or Key
        Usually one. A server has identities only (public); a key holder gives keys, and then each update's proof is checked too.
    revoked : Revoked, optional
    """

    def __init__(self, *accepted: Identity | Key, revoked: Revoked | None = None) -> None:
        if not accepted:
            raise RequestError("a gate that accepts no version refuses every update; give it the key's identity")
        self._keys = {one.identity: one for one in accepted if isinstance(one, Key)}
        self.accepted = frozenset(one.identity if isinstance(one, Key) else one for one in accepted)
        self._revoked = revoked or Revoked()
        self.refused: Counter[str] = Counter()
        self._seen: set[tuple[str, int]] = set()

    def admits(self, update: Params, label: Tag | None, round_index: int) -> bool:
        """Whether this update may enter round ``round_index``'s mean; a refusal is counted in ``refused``."""
        reason = self._reason(update, label, round_index)
        if reason is not None:
            self.refused[reason] += 1
        elif label is not None:
            self._seen.add((label.site, round_index))
        return reason is None

    def _reason(self, update: Params, label: Tag | None, round_index: int) -> str | None:
        if label is None:
            return "no tag"
        if self._revoked.holds(label.identity):
            return "revoked version"
        if label.federation not in {one.federation for one in self.accepted}:
            return "another federation"
        if label.version not in {one.version for one in self.accepted}:
            return "another version"
        if label.identity not in self.accepted:
            return "another key"
        if label.round != round_index:
            return "another round"
        if (label.site, round_index) in self._seen:
            return "a second update of one site"
        key = self._keys.get(label.identity)
        if key is not None and not hmac.compare_digest(tag(key, label.site, label.round, update).proof.encode(), label.proof.encode()):
            return "no proof of the key"
        return None


def tag(key: Key, site: str, round_index: int, update: Params) -> Tag:
    """The tag of an update."""
    identity = key.identity
    proof = key.proof("update", site, round_index, _digest(update))
    return Tag(identity.federation, identity.version, identity.fingerprint, site, round_index, proof)


def average(updates: Sequence[Params], weights: Sequence[float]) -> Params:
    """The weighted mean of updates (FedAvg); counters, which have no mean, are the first one's."""
    if not updates or len(updates) != len(weights) or not sum(weights) > 0:
        raise RequestError(f"{len(updates)} updates and {len(weights)} weights have no mean; give one positive weight an update")
    total = sum(weights)
    return {
        name: torch.stack([u[name] * (w / total) for u, w in zip(updates, weights)]).sum(0) if first.is_floating_point() else first.clone()
        for name, first in updates[0].items()
    }


def _digest(update: Params) -> str:
    whole = sha256()
    for name in sorted(update):
        tensor = update[name].detach().cpu().contiguous()
        whole.update(f"{len(name)}|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()
