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

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import vmap

from suites.contracts import Params, RequestError
from suites.ghost import Alike, DoesNotFit, Jacobian, Tap, Use, Watch, expanded
from suites.per_record import Batch, EachRecord, Loss, pick
from suites.stacked import places

_CHECKED_RECORDS = 4
_ROUNDING = 1e-13  # of double precision, in an inner product, beside the product of the lengths


@dataclass(slots=True)
class _Run:
    """What a watched forward pass left: uses and their inputs by name, and the batch-shared vectors."""

    uses: dict[str, Use]
    inputs: Params
    vectors: Params


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
        self._places = places(module)
        self._each_record = EachRecord(module, loss)
        self._shared = {name: part for name, part in module.named_modules() if getattr(part, "batch_shared", False)}
        self._behind = {name: [f"{name}.{own}" for own, _ in part.named_parameters()] for name, part in self._shared.items()}
        self._met = set(self._shapes).difference(*self._behind.values())  # the parameters that meet records themselves
        self._widths: dict[str, int] = {}  # of the probes
        self._checked = False
        self._ghost = True

    @property
    def ghost(self) -> bool:
        """Whether the one-pass path is in use (before the first call: whether nothing rules it out yet)."""
        return self._ghost

    def __call__(
        self, params: Params, private: Params, x: Tensor, y: Tensor, weight: Tensor, norm: float, group: Tensor | None = None
    ) -> tuple[Params, Tensor]:
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
        group : Tensor, optional
            [L, B]; the records of one group (of one person) are summed before they are clipped, by their common norm.

        Returns
        -------
        tuple of Params and Tensor
            Clipped sums [L, ...] by parameter name, and the norms before clipping [L, B], each record's or its group's (0 for padding).
        """
        if not norm > 0:
            raise RequestError(f"the clipping norm is {norm:g}, but only a bound above 0 leaves a gradient to add; give clip=1.0, say")
        batch = Batch(params, private, x, y, weight, norm, group)
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

    def _one_pass(self, batch: Batch) -> tuple[Params, Tensor]:
        lanes, records = batch.x.shape[:2]
        lead = (records,) if lanes == 1 else (lanes, records)  # one lane runs without vmap
        fixed = {n: tensor.detach() if tensor.requires_grad else tensor for n, tensor in {**batch.params, **batch.private}.items()}
        with torch.enable_grad():
            fixed |= {name: fixed[name].detach().requires_grad_() for names in self._behind.values() for name in names}
            if lanes == 1:
                outputs, run, tapped = self._tapped(pick(fixed, 0), batch.x[0])
                run.vectors = {name: vector.unsqueeze(0) for name, vector in run.vectors.items()}
            else:
                outputs, run, tapped = self._probed(fixed, batch.x)
            # The loss stays outside vmap: cross-entropy under vmap is decomposed in Python, and its first call imports sympy.
            losses = self._loss(outputs.flatten(0, -2), batch.y.flatten(0, 1))
            slopes = torch.autograd.grad(losses.sum(), list(tapped.values()), materialize_grads=True)
            jacobians = {name: Jacobian.of(v, {own: fixed[own] for own in self._behind[name]}) for name, v in run.vectors.items()}
        with torch.no_grad():
            weight = batch.weight.to(batch.x.dtype).reshape(lead)
            each = dict(zip(tapped, slopes, strict=True))
            groups = Alike.grouped(run.uses, run.inputs, each)
            behind = {name: each[name].reshape(lanes, records, -1) for name in jacobians}
            if batch.group is None:
                squared = [torch.zeros_like(weight), *(group.squared_norms() for group in groups)]
                squared += [j.squared_norms(behind[name]).view(lead) for name, j in jacobians.items()]
                norms = torch.stack(squared).sum(0).sqrt()
            else:  # |sum of a group's gradients|² is the sum of their inner products
                # Records of a group may cancel, which leaves single precision nothing of a sum that is short beside its terms.
                groups = [replace(g, a=None if g.a is None else g.a.double(), d=g.d.double()) for g in groups]
                jacobians = {name: Jacobian({own: rows.double() for own, rows in j.rows.items()}) for name, j in jacobians.items()}
                behind = {name: v.double() for name, v in behind.items()}
                owner, weight = batch.group.reshape(lead), weight.double()
                products = [*(group.products() for group in groups)]
                products += [j.products(behind[name]).view(*lead, records) for name, j in jacobians.items()]
                together = (owner.unsqueeze(-1) == owner.unsqueeze(-2)) * weight.unsqueeze(-2)
                inner = torch.stack(products).sum(0)
                with_own = (inner * together).sum(-1)  # each record's with the sum of its group
                lengths = (together @ inner.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt().unsqueeze(-1)).squeeze(-1)
                squared_sum = (together @ with_own.unsqueeze(-1)).squeeze(-1).clamp_min(0)
                norms = (squared_sum + _ROUNDING * lengths.square()).sqrt()  # never below the true norm
            scale = (weight * (batch.norm / norms).clamp(max=1)).unsqueeze(-1)
            total: Params = {}
            for group in groups:
                total |= group.sums(scale)
            for name, jacobian in jacobians.items():
                total |= jacobian.sums((each[name] * scale).sum(-2).view(lanes, -1))
            unused = (name for name in self._shapes if name not in total)
            total |= {name: torch.zeros_like(fixed[name]) for name in unused}
        sums = {name: total[name].view(lanes, *shape).to(fixed[name].dtype) for name, shape in self._shapes.items()}
        return sums, (norms * (weight != 0)).view(lanes, records).to(batch.x.dtype)

    def _tapped(self, tensors: Params, x: Tensor) -> tuple[Tensor, _Run, Params]:
        """One lane: each place's own output is what the losses are differentiated by."""
        tapped: Params = {}

        def tap(name: str, output: Tensor) -> Tensor:
            tapped[name] = output if output.requires_grad else output.requires_grad_()
            return output

        outputs, run = self._watched(tap, tensors, x)
        return outputs, run, tapped

    def _probed(self, fixed: Params, x: Tensor) -> tuple[Tensor, _Run, Params]:
        """Many lanes: nothing inside vmap can be asked for its gradient, so a zero *probe* from outside is added at each place."""
        probes = {name: x.new_zeros(*x.shape[:2], width, requires_grad=True) for name, width in self._widths.items()}
        uses: dict[str, Use] = {}

        def lane(probes: Params, tensors: Params, x: Tensor) -> tuple[Tensor, Params, Params]:
            def tap(name: str, output: Tensor) -> Tensor:
                if name not in probes:  # the first pass did not come by here
                    raise DoesNotFit(name)
                return output + probes[name]

            outputs, run = self._watched(tap, tensors, x)
            uses.update(run.uses)
            return outputs, run.inputs, run.vectors

        outputs, inputs, vectors = vmap(lane, randomness="different")(probes, fixed, x)
        return outputs, _Run(uses, inputs, vectors), probes

    def _watched(self, tap: Tap, tensors: Params, x: Tensor) -> tuple[Tensor, _Run]:
        vectors: Params = {}
        watch = Watch({id(tensors[name]): name for name in self._met}, tap, len(x))
        with self._holding(tensors), expanded(self._shared, tap, len(x), vectors), watch:
            outputs: Tensor = self._module(x)
        return outputs, _Run(watch.uses, watch.inputs, vectors)

    @contextmanager
    def _holding(self, tensors: Params) -> Iterator[None]:
        """The module with these tensors in place of its own: ``functional_call`` without its search by name, which small nets feel."""
        before = [(store, key, store[key]) for name in tensors for store, key in self._places.get(name, ())]
        try:
            for name, tensor in tensors.items():
                for store, key in self._places.get(name, ()):
                    store[key] = tensor
            yield
        finally:
            for store, key, tensor in before:
                store[key] = tensor

    def _find_widths(self, batch: Batch) -> None:
        """How wide each probe has to be, from a forward pass."""

        def tap(name: str, output: Tensor) -> Tensor:
            self._widths[name] = output.shape[-1]
            return output

        with torch.no_grad():
            self._watched(tap, pick({**batch.params, **batch.private}, 0), batch.x[0])

    # ------------------------------------------------------------------------------------------------------- trust, but verify

    def _agrees(self, batch: Batch) -> bool:
        """Whether both paths give the same sums for the first records, at shifted parameters (a zero start must not hide a path)."""
        rng = torch.Generator(device=batch.x.device).manual_seed(0)

        def shifted(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor[:1]
            return tensor[:1] + 0.1 * torch.randn(tensor[:1].shape, generator=rng, device=tensor.device, dtype=tensor.dtype)

        own = set(self._each_record.belonging_to_records(batch.private, leading=1))
        few = replace(
            batch,
            params={name: shifted(tensor) for name, tensor in batch.params.items()},
            private={name: tensor[:1, :_CHECKED_RECORDS] if name in own else tensor[:1] for name, tensor in batch.private.items()},
            x=batch.x[:1, :_CHECKED_RECORDS],
            y=batch.y[:1, :_CHECKED_RECORDS],
            weight=torch.ones_like(batch.weight[:1, :_CHECKED_RECORDS]),
            norm=float("inf"),
            group=None if batch.group is None else torch.arange(batch.x[:1, :_CHECKED_RECORDS].shape[1], device=batch.x.device)[None] // 2,
        )
        try:
            self._find_widths(few)
            fast, fast_norms = self._one_pass(few)
        except (DoesNotFit, RuntimeError):  # torch refuses to tap what is then changed in place
            return False
        slow, slow_norms = self._each_record(few)
        allowed = 1e-3 * max(float(slow_norms.max()), 1e-30)
        pairs = [(fast_norms, slow_norms), *((fast[name], slow[name]) for name in slow)]
        return all(bool(torch.linalg.vector_norm(a - b) <= allowed) for a, b in pairs)


def _refuse_batch_statistics(module: nn.Module) -> None:
    for name, part in module.named_modules():
        mixes = isinstance(part, nn.modules.batchnorm._BatchNorm)
        if mixes or (isinstance(part, nn.modules.instancenorm._InstanceNorm) and part.track_running_stats):
            raise RequestError(
                f"layer '{name}' is {type(part).__name__}, whose statistics mix the records of a batch, so clipping one record's gradient "
                "does not bound what that record changes and no ε holds; use LayerNorm (norm: layer) with dp_sgd"
            )
