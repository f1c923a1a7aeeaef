"""The sum of clipped per-record gradients, without the per-record gradients.

One pass ("ghost clipping": Goodfellow 2015, arXiv 1510.01799; Li et al. 2022, arXiv 2110.05679). For a linear layer with inputs a
[B, in] and output derivatives d [B, out], record i's weight gradient is d_i a_i^T, so its squared norm is |a_i|^2 |d_i|^2 and the clipped
sum is (c∘d)^T a: one matrix product of the size that the plain gradient needs. The derivatives d come from zero *probes* added to every
layer's output; no weight gradient is taken twice. LayerNorm's gradients d∘x̂ are [B, width], small, and are formed as they are.

What does not fit that pattern (other parameterised modules, a layer that is called twice, by keyword or on another shape, a weight that
is used outside its module, a network that mixes records) takes the exact path: each record alone. The choice is not left to the modules'
types: the first call compares both paths on a few records at a shifted point, and keeps the exact one where they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap  # not grad: its first call imports sympy and dynamo, 1.4 s
from torch.nn import functional

from suites.contracts import Params, RequestError

Layer = nn.Linear | nn.LayerNorm  # the layers whose per-record gradients are known in closed form
Loss = Callable[[Tensor, Tensor], Tensor]  # outputs [B, K], y [B] or [B, K] -> [B]

_CHECKED_RECORDS = 4
_FLOATS_AT_ONCE = 1 << 26  # per-record gradients that the exact path holds together: 256 MB


class _DoesNotFit(Exception):
    """The network left the pattern that ghost clipping knows."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """One step's arguments; ``lane`` has no leading axis any more."""

    params: Params
    private: Params
    x: Tensor
    y: Tensor
    weight: Tensor
    norm: float

    def lane(self, k: int) -> _Batch:
        params, private = _pick(self.params, k), _pick(self.private, k)
        return _Batch(params, private, self.x[k], self.y[k], self.weight[k].to(self.x.dtype), self.norm)


class ClippedSum:
    """Sum over records of ``min(1, norm / |g_i|) g_i`` for a stack of lanes.

    Parameters
    ----------
    module : nn.Module
        The network [B, F] -> [B, K]. It is only called, never changed.
    loss : callable
        Per-record loss: outputs [B, K] and y -> [B].

    Raises
    ------
    RequestError
        For BatchNorm, and InstanceNorm with running statistics: they mix the records of a batch, so no bound on one record's gradient
        bounds what that record changes.
    """

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        _refuse_batch_statistics(module)
        self._module = module
        self._loss = loss
        self._shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        self._tied = {name for name, _ in module.named_parameters(remove_duplicate=False)} - set(self._shapes)
        self._own_buffers = {name: buffer.shape for name, buffer in module.named_buffers()}
        self._layers = _ghost_layers(module)
        self._checked = False

    @property
    def ghost(self) -> bool:
        """Whether the one-pass path is in use (before the first call: whether the modules' types allow it)."""
        return self._layers is not None

    def __call__(self, params: Params, private: Params, x: Tensor, y: Tensor, weight: Tensor, norm: float) -> tuple[Params, Tensor]:
        """Clip and sum.

        Parameters
        ----------
        params, private : Params
            [L, ...] each: the wire parameters, and the non-persistent buffers (secrets; dropout masks). A private tensor named ``mask``,
            or whose shape differs from the module's own buffer, belongs to the records: [L, B, ...].
        x, y, weight : Tensor
            [L, B, F], [L, B] (or [L, B, K]), [L, B]; weight 0 marks a padding record.
        norm : float
            Bound above 0 on each record's gradient, over all parameters together.

        Returns
        -------
        tuple of Params and Tensor
            Clipped sums [L, ...] by parameter name, and the per-record norms before clipping [L, B] (0 for padding).
        """
        if not norm > 0:
            raise RequestError(f"the clipping norm is {norm:g}, but only a bound above 0 leaves a gradient to add; give clip=1.0, say")
        batch = _Batch(params, private, x, y, weight, norm)
        if self._layers is not None and not self._checked and x.shape[1] > 0:
            self._checked = True
            if not self._agrees(batch):
                self._layers = None
        if self._layers is not None:
            try:
                return self._one_pass(batch, self._layers)
            except _DoesNotFit:
                self._layers = None
        return self._each_record(batch)

    # ------------------------------------------------------------------------------------------------------- one pass

    def _one_pass(self, batch: _Batch, layers: dict[str, Layer]) -> tuple[Params, Tensor]:
        lanes, records = batch.x.shape[:2]
        lead = (records,) if lanes == 1 else (lanes, records)  # one lane runs without vmap
        fixed = {name: tensor.detach() for name, tensor in {**batch.params, **batch.private}.items()}
        with torch.enable_grad():
            probes = {name: batch.x.new_zeros(*lead, _width(layer), requires_grad=True) for name, layer in layers.items()}
            if lanes == 1:
                outputs, inputs = self._probed(_pick(fixed, 0), probes, batch.x[0])
            else:
                outputs, inputs = vmap(self._probed, randomness="different")(fixed, probes, batch.x)
            # The loss stays outside vmap: cross-entropy under vmap is decomposed in Python, and its first call imports sympy.
            losses = self._loss(outputs.flatten(0, -2), batch.y.flatten(0, 1))
            slopes = torch.autograd.grad(losses.sum(), list(probes.values()), materialize_grads=True)
        with torch.no_grad():
            deltas = dict(zip(probes, slopes, strict=True))
            weight = batch.weight.to(batch.x.dtype).reshape(lead)
            norms = _sum([_squared_norm(layer, inputs.get(name), deltas[name]) for name, layer in layers.items()]).sqrt()
            scale = (weight * (batch.norm / norms).clamp(max=1)).unsqueeze(-1)
            total: Params = {}
            for name, layer in layers.items():
                total |= _summed(name, layer, inputs.get(name), scale * deltas[name])
        ordered = {name: total[name].reshape(lanes, *shape) for name, shape in self._shapes.items()}
        return ordered, (norms * (weight != 0)).reshape(lanes, records)

    def _probed(self, tensors: Params, probes: Params, x: Tensor) -> tuple[Tensor, Params]:
        """Outputs [B, K] and each layer's input [B, in] (x̂ for LayerNorm), with ``probes`` added to the layers' outputs."""
        inputs: Params = {}
        with self._hooks(probes, inputs, len(x)):
            outputs: Tensor = functional_call(self._module, tensors, (x,))
        return outputs, inputs

    @contextmanager
    def _hooks(self, probes: Params, inputs: Params, records: int) -> Iterator[None]:
        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
            def probe(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
                if name in inputs or len(arguments) != 1 or arguments[0].dim() != 2 or len(arguments[0]) != records:
                    raise _DoesNotFit(name)
                a = arguments[0].detach()
                inputs[name] = functional.layer_norm(a, layer.normalized_shape, eps=layer.eps) if isinstance(layer, nn.LayerNorm) else a
                return output + probes[name]

            return probe

        handles = [self._module.get_submodule(name).register_forward_hook(hook(name)) for name in probes]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # ------------------------------------------------------------------------------------------------------- each record alone

    def _each_record(self, batch: _Batch) -> tuple[Params, Tensor]:
        done = [self._each_record_of(batch.lane(k)) for k in range(len(batch.x))]
        return {name: torch.stack([total[name] for total, _ in done]) for name in self._shapes}, torch.stack([norms for _, norms in done])

    def _each_record_of(self, lane: _Batch) -> tuple[Params, Tensor]:
        parameters = {name: lane.params[name].detach() for name in self._shapes}
        shared = {name: tensor.detach() for name, tensor in {**lane.params, **lane.private}.items() if name not in parameters}
        shared = {name: tensor for name, tensor in shared.items() if name not in self._tied}  # they follow the parameter they are tied to
        own = {name: shared.pop(name) for name in self._belonging_to_records(lane.private, leading=0)}

        def of_one(parameters: Params, own: Params, x: Tensor) -> Tensor:
            tensors = {**shared, **parameters, **{name: tensor.unsqueeze(0) for name, tensor in own.items()}}
            outputs: Tensor = functional_call(self._module, tensors, (x.unsqueeze(0),))
            return outputs.squeeze(0)

        total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        norms = torch.zeros_like(lane.weight)
        at_once = max(1, _FLOATS_AT_ONCE // max(1, sum(tensor.numel() for tensor in parameters.values())))
        for start in range(0, len(lane.x), at_once):
            part = slice(start, start + at_once)
            x, y, weight = lane.x[part], lane.y[part], lane.weight[part]
            with torch.enable_grad():  # every record has a copy of the parameters, so one backward pass gives each its own gradient
                copies = {name: tensor.expand(len(x), *tensor.shape).requires_grad_() for name, tensor in parameters.items()}
                outputs = vmap(of_one, randomness="different")(copies, {name: tensor[part] for name, tensor in own.items()}, x)
                slopes = torch.autograd.grad(self._loss(outputs, y).sum(), list(copies.values()), materialize_grads=True)
            norms[part] = _sum([slope.flatten(1).square().sum(1) for slope in slopes]).sqrt()
            scale = weight * (lane.norm / norms[part]).clamp(max=1)
            for name, slope in zip(copies, slopes, strict=True):
                total[name] += torch.tensordot(scale, slope, dims=1)
        return total, norms * (lane.weight != 0)

    def _belonging_to_records(self, private: Params, leading: int) -> list[str]:
        def per_record(name: str, tensor: Tensor) -> bool:
            if tensor.shape[leading:] == self._own_buffers.get(name):
                return name.rpartition(".")[2] == "mask" and tensor.dim() > leading + 1  # a mask as built, [1], drops nothing
            return True

        return [name for name, tensor in private.items() if per_record(name, tensor)]

    # ------------------------------------------------------------------------------------------------------- trust, but verify

    def _agrees(self, batch: _Batch) -> bool:
        """Whether both paths give the same sums for the first records, at shifted parameters (a zero start must not hide a path)."""
        assert self._layers is not None
        rng = torch.Generator(device=batch.x.device).manual_seed(0)

        def shifted(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor[:1]
            return tensor[:1] + 0.1 * torch.randn(tensor[:1].shape, generator=rng, device=tensor.device, dtype=tensor.dtype)

        own = set(self._belonging_to_records(batch.private, leading=1))
        few = replace(
            batch,
            params={name: shifted(tensor) for name, tensor in batch.params.items()},
            private={name: tensor[:1, :_CHECKED_RECORDS] if name in own else tensor[:1] for name, tensor in batch.private.items()},
            x=batch.x[:1, :_CHECKED_RECORDS],
            y=batch.y[:1, :_CHECKED_RECORDS],
            weight=torch.ones_like(batch.weight[:1, :_CHECKED_RECORDS]),
            norm=float("inf"),
        )
        try:
            fast, fast_norms = self._one_pass(few, self._layers)
        except _DoesNotFit:
            return False
        slow, slow_norms = self._each_record(few)
        allowed = 1e-3 * max(float(slow_norms.max()), 1e-30)
        pairs = [(fast_norms, slow_norms), *((fast[name], slow[name]) for name in slow)]
        return all(bool(torch.linalg.vector_norm(a - b) <= allowed) for a, b in pairs)


# ----------------------------------------------------------------------------------------------------------- one layer


def _width(layer: Layer) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else int(layer.normalized_shape[0])


def _squared_norm(layer: Layer, inputs: Tensor | None, delta: Tensor) -> Tensor:
    """|g_i|^2 [..., B] over one layer's parameters; a layer that was not called has none."""
    squared = delta.square().sum(-1)
    if inputs is None:
        return torch.zeros_like(squared)
    if isinstance(layer, nn.Linear):
        of_weight: Tensor = torch.linalg.vector_norm(inputs, dim=-1).square() * squared
    else:
        of_weight = (delta * inputs).square().sum(-1)
    if layer.bias is not None:
        of_weight = of_weight + squared
    return of_weight


def _summed(name: str, layer: Layer, inputs: Tensor | None, scaled: Tensor) -> Params:
    """The layer's summed gradients from c∘d [..., B, out] and its inputs."""
    if inputs is None:
        inputs = scaled.new_zeros(*scaled.shape[:-1], layer.in_features if isinstance(layer, nn.Linear) else _width(layer))
    prefix = f"{name}." if name else ""
    gradients = {f"{prefix}weight": scaled.mT @ inputs if isinstance(layer, nn.Linear) else (scaled * inputs).sum(-2)}
    return gradients if layer.bias is None else {**gradients, f"{prefix}bias": scaled.sum(-2)}


def _sum(terms: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(0)


def _pick(tensors: Params, k: int) -> Params:
    return {name: tensor[k] for name, tensor in tensors.items()}


def _refuse_batch_statistics(module: nn.Module) -> None:
    for name, part in module.named_modules():
        mixes = isinstance(part, nn.modules.batchnorm._BatchNorm)
        if mixes or (isinstance(part, nn.modules.instancenorm._InstanceNorm) and part.track_running_stats):
            raise RequestError(
                f"layer '{name}' is {type(part).__name__}, whose statistics mix the records of a batch, so clipping one record's gradient "
                "does not bound what that record changes and no ε holds; use LayerNorm (norm: layer) with dp_sgd"
            )


def _ghost_layers(module: nn.Module) -> dict[str, Layer] | None:
    """The Linear and LayerNorm layers that own all parameters; None where anything else owns one, or two layers share one."""
    layers: dict[str, Layer] = {}
    seen: set[int] = set()
    for name, part in module.named_modules(remove_duplicate=False):
        own = {id(parameter) for parameter in part.parameters(recurse=False)}
        if not own:
            continue
        if seen & own:
            return None
        seen |= own
        if type(part) is nn.Linear or (type(part) is nn.LayerNorm and len(part.normalized_shape) == 1):
            layers[name] = part
        else:  # a subclass may compute anything
            return None
    return layers
