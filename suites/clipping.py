"""The sum of clipped per-record gradients, without the per-record gradients.

One pass ("ghost clipping": Goodfellow 2015, arXiv 1510.01799; Li et al. 2022, arXiv 2110.05679). For a linear layer with inputs a
[B, in] and output derivatives d [B, out], record i's weight gradient is d_i a_i^T, so its squared norm is |a_i|^2 |d_i|^2 and the clipped
sum is (c∘d)^T a: one matrix product of the size that the plain gradient needs, and no weight gradient is taken twice. ``suites.ghost``
says which uses of a parameter are treated so, those behind a key that the whole batch shares among them.

What does not fit (another use of a parameter, a layer that is called twice or on another shape, a network that mixes records) takes the
exact path: each record alone. The first call compares both paths on a few records at a shifted point, and keeps the exact one where
they differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap  # not grad: its first call imports sympy and dynamo, 1.4 s

from suites.contracts import Params, RequestError
from suites.ghost import Alike, DoesNotFit, Jacobian, Probes, Use, Watch, expanded

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs [B, K], y [B] or [B, K] -> [B]

_CHECKED_RECORDS = 4
_FLOATS_AT_ONCE = 1 << 26  # per-record gradients that the exact path holds together: 256 MB


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
        first = {id(buffer): name for name, buffer in module.named_buffers()}
        self._same = {n: first[id(b)] for n, b in module.named_buffers(remove_duplicate=False) if first[id(b)] != n}
        self._own_buffers = {name: buffer.shape for name, buffer in module.named_buffers()}
        self._shared = {name: part for name, part in module.named_modules() if getattr(part, "batch_shared", False)}
        self._behind = {name: [f"{name}.{own}" for own, _ in part.named_parameters()] for name, part in self._shared.items()}
        self._met = set(self._shapes).difference(*self._behind.values())  # the parameters that meet records themselves
        self._widths: dict[str, int] = {}  # of the probes
        self._checked = False
        self._ghost = not self._tied

    @property
    def ghost(self) -> bool:
        """Whether the one-pass path is in use (before the first call: whether nothing rules it out yet)."""
        return self._ghost

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
        if x.shape[1] == 0:
            return {name: torch.zeros_like(params[name]) for name in self._shapes}, torch.zeros_like(weight)
        if self._ghost and not self._checked:
            self._checked = True
            self._ghost = self._agrees(batch)
        if self._ghost:
            try:
                return self._one_pass(batch)
            except DoesNotFit:
                self._ghost = False
        return self._each_record(batch)

    # ------------------------------------------------------------------------------------------------------- one pass

    def _one_pass(self, batch: _Batch) -> tuple[Params, Tensor]:
        lanes, records = batch.x.shape[:2]
        lead = (records,) if lanes == 1 else (lanes, records)  # one lane runs without vmap
        fixed = {n: tensor.detach() if tensor.requires_grad else tensor for n, tensor in {**batch.params, **batch.private}.items()}
        uses: dict[str, Use] = {}
        with torch.enable_grad():
            fixed |= {name: fixed[name].detach().requires_grad_() for names in self._behind.values() for name in names}
            probes = batch.x.new_zeros(*lead, sum(self._widths.values()), requires_grad=True)
            if lanes == 1:
                outputs, inputs, vectors = self._probed(uses, probes, _pick(fixed, 0), batch.x[0])
                vectors = {name: vector.unsqueeze(0) for name, vector in vectors.items()}
            else:
                outputs, inputs, vectors = vmap(partial(self._probed, uses), randomness="different")(probes, fixed, batch.x)
            # The loss stays outside vmap: cross-entropy under vmap is decomposed in Python, and its first call imports sympy.
            losses = self._loss(outputs.flatten(0, -2), batch.y.flatten(0, 1))
            (deltas,) = torch.autograd.grad(losses.sum(), [probes], materialize_grads=True)
            jacobians = {name: Jacobian.of(vector, {own: fixed[own] for own in self._behind[name]}) for name, vector in vectors.items()}
        with torch.no_grad():
            weight = batch.weight.to(batch.x.dtype).reshape(lead)
            each = self._split(deltas)
            groups = Alike.grouped(uses, inputs, each)
            squared = [torch.zeros_like(weight), *(group.squared_norms() for group in groups)]
            squared += [j.squared_norms(each[name].reshape(lanes, records, -1)).view(lead) for name, j in jacobians.items()]
            norms = torch.stack(squared).sum(0).sqrt()
            scale = (weight * (batch.norm / norms).clamp(max=1)).unsqueeze(-1)
            total: Params = {}
            for group in groups:
                total |= group.sums(scale)
            for name, jacobian in jacobians.items():
                total |= jacobian.sums((each[name] * scale).sum(-2).view(lanes, -1))
            unused = (name for name in self._shapes if name not in total)
            total |= {name: torch.zeros_like(fixed[name]) for name in unused}
        sums = {name: total[name].view(lanes, *shape) for name, shape in self._shapes.items()}
        return sums, (norms * (weight != 0)).view(lanes, records)

    def _split(self, together: Tensor) -> Params:
        return dict(zip(self._widths, torch.split(together, list(self._widths.values()), dim=-1), strict=True))

    def _probed(self, uses: dict[str, Use], probes: Tensor, tensors: Params, x: Tensor) -> tuple[Tensor, Params, Params]:
        """Outputs [B, K], the inputs where parameters meet records, and the batch-shared vectors; ``uses`` is filled."""
        each = self._split(probes)

        def probe(name: str, width: int) -> Tensor:
            if self._widths.get(name) != width:
                raise DoesNotFit(name)
            return each[name]

        return self._watched(uses, probe, tensors, x)

    def _watched(self, uses: dict[str, Use], probe: Probes, tensors: Params, x: Tensor) -> tuple[Tensor, Params, Params]:
        vectors: Params = {}
        same = {name: tensors[first] for name, first in self._same.items() if first in tensors}
        watch = Watch({id(tensors[name]): name for name in self._met}, probe, len(x))
        with expanded(self._shared, probe, len(x), vectors), watch:
            outputs: Tensor = functional_call(self._module, {**tensors, **same}, (x,), tie_weights=False)
        uses |= watch.uses
        return outputs, watch.inputs, vectors

    def _find_probes(self, batch: _Batch) -> None:
        """Which probes this network needs, from a forward pass."""

        def probe(name: str, width: int) -> Tensor:
            self._widths[name] = width
            return batch.x.new_zeros(batch.x.shape[1], width)

        with torch.no_grad():
            self._watched({}, probe, _pick({**batch.params, **batch.private}, 0), batch.x[0])

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
            norms[part] = sum((slope.flatten(1).square().sum(1) for slope in slopes), torch.zeros_like(weight)).sqrt()
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
            self._find_probes(few)
            fast, fast_norms = self._one_pass(few)
        except DoesNotFit:
            return False
        slow, slow_norms = self._each_record(few)
        allowed = 1e-3 * max(float(slow_norms.max()), 1e-30)
        pairs = [(fast_norms, slow_norms), *((fast[name], slow[name]) for name in slow)]
        return all(bool(torch.linalg.vector_norm(a - b) <= allowed) for a, b in pairs)


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
