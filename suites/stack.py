"""A stack of defense layers that acts as one defense: ``infl:published+secure_aggregation``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from suites.contracts import Card, Claim, Defense, Federation, KeySource, Local, Params, Probe, RequestError, Secret, Shape, Skip
from suites.tasks.layout import Layout


class Stack(Defense):
    """Layers in the order given; an empty stack is plain FedAvg.

    ``prepare``, ``model``, ``noise`` and ``encode`` compose left to right. At most one layer clips, at most one is a channel, and a
    channel comes last, since nothing can be changed once it is masked.
    """

    def __init__(self, layers: Sequence[Defense] = (), layout: Layout | None = None) -> None:
        self.layers, self.layout = tuple(layers), layout
        clipping = [layer for layer in self.layers if layer.clip is not None]
        channels = [layer for layer in self.layers if layer.channel is not None]
        topologies = {layer.topology for layer in self.layers} - {"federated"}
        if len(clipping) > 1:
            raise RequestError("two layers of this stack clip records; keep one, since noise is calibrated to a single clipping norm")
        if len(channels) > 1 or (channels and self.layers[-1] is not channels[0]):
            raise RequestError("a channel such as secure_aggregation must be the one last layer of a stack: move it to the end after '+'")
        if topologies and len(self.layers) > 1:
            raise RequestError(f"{topologies.pop()!r} exchanges no updates, so nothing can be stacked on it with '+'; name it alone")
        if not channels and any(layer.needs_channel for layer in self.layers):
            raise RequestError(
                "noise shared between sites protects their sum only, and here single updates are sent; add +secure_aggregation"
            )
        blending = [layer for layer in self.layers if type(layer).blend is not Defense.blend]
        if len(blending) > 1 or (blending and clipping):
            raise RequestError(
                "a layer that blends records (mixup) must be the only one, and none may clip records beside it, since each record would be "
                "part of two gradients and no bound on one would hold; leave one out"
            )
        if channels and any(type(layer).release is not Defense.release for layer in self.layers):
            raise RequestError(
                "a layer whose noise the server adds trusts the server, so hiding single updates from that server with a channel says "
                "nothing about it; use noise that the sites add, such as dp_fedavg:shared=true"
            )
        self.equal_weights = any(layer.equal_weights for layer in self.layers)
        self.minimum = max((layer.minimum for layer in self.layers), default=1)
        self.keeps_lengths = all(layer.keeps_lengths for layer in self.layers)
        self.clip = clipping[0].clip if clipping else None
        self.channel = channels[0].channel if channels else None
        self.topology = topologies.pop() if topologies else "federated"

    def local(self, local: Local) -> Local:
        for layer in self.layers:
            local = layer.local(local)
        return local

    def protocol(self, federation: Federation) -> Federation:
        for layer in self.layers:
            federation = layer.protocol(federation)
        return federation

    def plan(self, federation: Federation, shape: Shape) -> Stack:
        return Stack([layer.plan(federation, shape) for layer in self.layers], self.layout)

    # A composite secret keeps each layer's tensors under "<position>/<name>".
    def _part(self, secret: Secret | None, position: int) -> Secret | None:
        if secret is None:
            return None
        prefix = f"{position}/"
        own = {name.removeprefix(prefix): secret[name] for name in secret.names if name.startswith(prefix)}
        return Secret(**own) if own else None

    @staticmethod
    def _join(parts: dict[int, Secret | None]) -> Secret | None:
        tensors = {f"{position}/{name}": part[name] for position, part in parts.items() if part is not None for name in part.names}
        return Secret(**tensors) if tensors else None

    def secret(self, rng: KeySource) -> Secret | None:
        return self._join({i: layer.secret(rng.child("layer", i)) for i, layer in enumerate(self.layers)})

    def weaken(self, secret: Secret, fraction: float, rng: KeySource) -> Secret:
        parts: dict[int, Secret | None] = {}
        for i, layer in enumerate(self.layers):
            own = self._part(secret, i)
            parts[i] = None if own is None else layer.weaken(own, fraction, rng.child("layer", i))
        joined = self._join(parts)
        if joined is None:
            raise Skip("no layer of this stack holds a key")
        return joined

    def prepare(self, x: Tensor, secret: Secret | None) -> Tensor:
        """Records as the layers leave them; of a structured record each block by itself, and what is aside as it is."""
        if self.layout is None:
            return self._prepare(x, secret)
        *blocks, aside = torch.split(x, [*self.layout.blocks, self.layout.aside], dim=-1)
        out = [self._prepare(block, secret) for block in blocks]
        if any(a.shape != b.shape for a, b in zip(blocks, out)):
            raise RequestError(
                "this defense changes the width of records, and this task's records have fixed parts; use another of the two"
            )
        return torch.cat([*out, aside], -1)

    def _prepare(self, x: Tensor, secret: Secret | None) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer.prepare(x, self._part(secret, i))
        return x

    def restore(self, x: Tensor, secret: Secret | None) -> Tensor:
        """The inverse; the fed columns alone (rows of a first layer) come back padded with zeros."""
        if self.layout is None:
            return self._restore(x, secret)
        fed, width = self.layout.fed, self.layout.fed + self.layout.aside
        x = torch.nn.functional.pad(x[..., :width], (0, max(0, width - x.shape[-1])))
        blocks = torch.split(x[..., :fed], list(self.layout.blocks), dim=-1)
        return torch.cat([*(self._restore(block, secret) for block in blocks), x[..., fed:]], -1)

    def _restore(self, x: Tensor, secret: Secret | None) -> Tensor:
        for i, layer in reversed(list(enumerate(self.layers))):
            x = layer.restore(x, self._part(secret, i))
        return x

    def model(self, net: nn.Module, secret: Secret | None) -> nn.Module:
        for i, layer in enumerate(self.layers):
            net = layer.model(net, self._part(secret, i))
        return net

    def without_key(self, module: nn.Module) -> nn.Module:
        for layer in reversed(self.layers):
            module = layer.without_key(module)
        return module

    def derived(self, module: nn.Module) -> Params:
        return {name: tensor for layer in self.layers for name, tensor in layer.derived(module).items()}

    def noise(self, clipped_sum: Params, rng: torch.Generator) -> Params:
        for layer in self.layers:
            clipped_sum = layer.noise(clipped_sum, rng)
        return clipped_sum

    @property
    def encodes(self) -> bool:
        """Whether any layer changes a site's update on its way out."""
        own = ((type(layer).encode, type(layer).encode_kept) for layer in self.layers)
        return any(hooks != (Defense.encode, Defense.encode_kept) for hooks in own)

    def encode(self, update: Params, rng: torch.Generator) -> Params:
        for layer in self.layers:
            update = layer.encode(update, rng)
        return update

    def encode_kept(
        self, update: Params, kept: Params, rng: torch.Generator, saw: Callable[[int, float, Params, Params], None] | None = None
    ) -> tuple[Params, Params]:
        """As ``encode``; what a layer keeps lies under "<position>/<name>". ``saw`` is told which layer with a bound did what."""
        left: Params = {}
        for i, layer in enumerate(self.layers):
            own = {name.removeprefix(f"{i}/"): tensor for name, tensor in kept.items() if name.startswith(f"{i}/")}
            given = update
            update, own = layer.encode_kept(update, own, rng)
            if saw is not None and layer.bound is not None:
                saw(i, layer.bound, given, update)
            left |= {f"{i}/{name}": tensor for name, tensor in own.items()}
        return update, left

    @property
    def blends(self) -> bool:
        """Whether a layer blends the records of a batch."""
        return any(type(layer).blend is not Defense.blend for layer in self.layers)

    def blend(self, records: int, rng: torch.Generator) -> tuple[Tensor, Tensor] | None:
        return next((blended for layer in self.layers if (blended := layer.blend(records, rng)) is not None), None)

    def sends(self, probe: Probe, among: Sequence[Probe] = ()) -> bool:
        """Whether the sites answer a probe: none that asks a site for a message of fewer records than a layer demands.

        Where one demands any number, it does so for each checkpoint at which the same records answer ``among`` all probes: gradients of one
        batch at two networks show as much of it as one of a layer twice as wide (docs/hardened.md).
        """
        if self.minimum <= 1:
            return True
        for site, chosen in enumerate(probe.records):
            again = {other.round for other in among if site < len(other.records) and set(other.records[site]) == set(chosen)}
            if chosen and len(chosen) < self.minimum * len(again | {probe.round}):
                return False
        return True

    @property
    def releases(self) -> bool:
        """Whether the server changes the mean before it gives it out."""
        return any(type(layer).release is not Defense.release for layer in self.layers)

    def release(self, mean: Params, rng: torch.Generator) -> Params:
        for layer in self.layers:
            mean = layer.release(mean, rng)
        return mean

    @property
    def prepares(self) -> bool:
        """Whether any layer changes the records that a site feeds its model."""
        return any(type(layer).prepare is not Defense.prepare for layer in self.layers)

    def claim(self, federation: Federation, shape: Shape) -> Claim | None:
        """The strongest formal claim of the layers: differential privacy before a key, a key before none."""
        claims = [claim for layer in self.layers if (claim := layer.claim(federation, shape)) is not None]
        return min(claims, key=lambda claim: ("dp", "keyed", "none").index(claim.kind), default=None)

    @property
    def cards(self) -> list[tuple[str, Card]]:
        """Each layer's card, by class name."""
        return [(type(layer).__name__, layer.card) for layer in self.layers if layer.card is not None]
