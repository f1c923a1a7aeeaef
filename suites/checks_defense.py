"""The contract's tests of a defense: what its hooks return, where its secret goes, whether it repeats, and what it claims."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import get_args

import torch
from torch import Tensor

from suites import registry
from suites.checks_channel import check_channel
from suites.checks_flags import noise_shares
from suites.checks_result import CheckResult, judged
from suites.checks_stage import CLASSES, FEATURES, MEMBERS, SITES, Stage, same
from suites.contracts import (
    Claim,
    Defense,
    Exchange,
    Federation,
    Params,
    Probe,
    RequestError,
    Secret,
    Shape,
    Skip,
    Topology,
    Unit,
)
from suites.federation import Trained
from suites.lanes import wire
from suites.randomness import keys, stream
from suites.stack import Stack

_ROUNDS = 3


def check_defense(ref: str) -> list[CheckResult]:
    """Every promise of the contract for a layer or a stack (``a+b``), each with what was seen."""
    layers: list[Defense] = [plugin.make() for plugin in registry.stack(ref)]
    demands = [layer for layer in layers if isinstance(layer, Defense) and layer.minimum > 1]
    strangers = [type(layer).__name__ for layer in layers if not isinstance(layer, Defense)]
    if strangers:
        return [
            CheckResult(
                "type", "fail", f"{', '.join(strangers)} does not derive from suites.contracts.Defense, whose hooks are the identity"
            )
        ]
    topologies = {layer.topology for layer in layers}
    if not topologies <= set(get_args(Topology)):
        return [CheckResult("topology", "fail", f"topology is {topologies}; it must be one of {', '.join(get_args(Topology))}")]
    results: list[CheckResult] = [result for layer in demands for result in _minimum(layer)]
    try:
        stage = Stage(Stack(layers), rounds=_ROUNDS)
        for check in (_card, _secret, _prepare, _model, _transforms):
            results.append(check(stage))
        results.append(_claim(stage, Stack([plugin.make() for plugin in registry.stack(ref)]) if demands else stage.stack))
        results.extend(_trained(stage))
    except (RequestError, Skip) as refusal:
        results.append(CheckResult("runs", "fail", f"refuses a plain federation of {SITES} sites: {refusal}"))
    except Exception as error:  # whatever a plug-in does, the check says it in a sentence
        results.append(CheckResult("runs", "fail", f"{type(error).__name__}: {error}"))
    return results


def carried(secret: Secret | None, params: Params) -> Iterator[str]:
    """Where a secret's numbers lie inside named tensors, in any float type: "tensor <- secret"."""
    if secret is None:
        return
    for own in secret.names:
        value = secret[own].detach().cpu().reshape(-1)
        if value.numel() < 2 or len(torch.unique(value)) < 2:
            continue  # a lone number or a constant is found everywhere
        kinds = (torch.float64, torch.float32, torch.float16) if value.is_floating_point() else (value.dtype,)
        needles = {value.to(kind).numpy().tobytes() for kind in kinds}
        for name, tensor in params.items():
            held = tensor.detach().cpu().contiguous().numpy().tobytes()
            if any(needle in held for needle in needles):
                yield f"{name} <- {own}"


def _minimum(layer: Defense) -> Iterator[CheckResult]:
    """Sites below what a layer demands are refused, and so are probes; for the other checks, with their small sites, it then demands 1."""
    name, least = "minimum", layer.minimum
    try:
        layer.plan(Federation(sites=2), Shape((least, least - 1), FEATURES, CLASSES))
        yield CheckResult(name, "fail", f"it demands {least} records behind a message and plans a federation with a site of {least - 1}")
        return
    except RequestError:
        pass
    layer.plan(Federation(sites=2), Shape((least, least), FEATURES, CLASSES))
    refused = not Stack([layer]).sends(Probe("one too few", 0, (tuple(range(least)), tuple(range(least - 1)))))
    layer.minimum = 1
    said = f"sites and probes of fewer than {least} records are refused; the checks below lift that, since theirs are smaller"
    yield judged(name, refused, said, f"a probe of {least - 1} records is sent")


def _card(stage: Stage) -> CheckResult:
    cards = stage.stack.cards
    missing = len(cards) < len(stage.stack.layers)
    return CheckResult(
        "card",
        "warn" if missing else "pass",
        "a layer has no card: say what each party sees and what it does not protect against" if missing else "present",
    )


def _secret(stage: Stage) -> CheckResult:
    name, stack = "secret", stage.stack
    one, again, other = (stack.secret(keys("check", "secret", at)) for at in ("a", "a", "b"))
    if one is None:
        return judged(name, again is None and other is None, "none", "some draws give a secret and some give None")
    if not isinstance(one, Secret) or not isinstance(again, Secret) or not isinstance(other, Secret):
        return CheckResult(name, "fail", f"secret() returned a {type(one).__name__}; it must be a Secret or None")
    tensors, repeated, different = ({n: s[n] for n in s.names} for s in (one, again, other))
    if not same(tensors, repeated):
        return CheckResult(name, "fail", "the same key source gives different secrets: draw from ``rng`` alone")
    if same(tensors, different):
        return CheckResult(name, "fail", "every key source gives the same secret: it is a constant, and no secret")
    detail = f"{', '.join(f'{n} {tuple(t.shape)}' for n, t in tensors.items())}"
    try:
        weak = stack.weaken(one, 0.0, keys("check", "weaken"))
        whole = stack.weaken(one, 1.0, keys("check", "weaken"))
    except Skip as skip:
        return CheckResult(name, "warn", f"{detail}; no partial key can be tried: {skip}")
    if same(tensors, {n: weak[n] for n in weak.names}):
        return CheckResult(name, "fail", "weaken(fraction=0) still holds the whole key")
    return judged(name, same(tensors, {n: whole[n] for n in whole.names}), detail, "weaken(fraction=1) is not the key")


def _prepare(stage: Stage) -> CheckResult:
    name, stack = "prepare and restore", stage.stack
    if not stack.prepares:
        return CheckResult(name, "pass", "records are left as they are")
    x, secret = stage.pool.x[:8], stack.secret(keys("check", "secret", "a"))
    out = stack.prepare(x, secret)
    if out.ndim != 2 or len(out) != len(x) or not torch.isfinite(out).all():
        return CheckResult(name, "fail", f"prepare turns [8, {FEATURES}] into {list(out.shape)}; it must keep one finite row a record")
    alone = torch.cat([stack.prepare(row[None], secret) for row in x])
    if not torch.allclose(alone, out, rtol=1e-4, atol=1e-5):
        return CheckResult(name, "fail", "a record's prepared row depends on the records beside it: that is a message nobody recorded")
    back, what = stack.restore(out, secret), "x"
    if not stack.keeps_lengths and back.shape == x.shape:  # as the defense says, which then is not to give lengths away either
        scaled = stack.prepare(3 * x, secret)
        if not torch.allclose(scaled, out, rtol=1e-4, atol=1e-5):
            return CheckResult(name, "fail", "it says that lengths are dropped, but a record three times as long is prepared otherwise")
        back, x, what = *(t / t.norm(dim=1, keepdim=True) for t in (back, x)), "the direction of x"
    error = float((back - x).norm() / x.norm()) if back.shape == x.shape else math.inf
    dropped = "" if stack.keeps_lengths else " in direction; the length of a record is dropped on purpose, and no key brings it back"
    return judged(
        name,
        error < 1e-3,
        f"{FEATURES} -> {out.shape[1]} features, restored to {error:.1e}{dropped}",
        f"restore(prepare(x)) differs from {what} by {error:.1e}",
    )


def _model(stage: Stage) -> CheckResult:
    name, stack = "model", stage.stack
    secret = stack.secret(keys("check", "secret", "a"))
    module = stage.module(secret).eval()
    outputs = module(stack.prepare(stage.pool.x[:6], secret))
    if outputs.shape != (6, CLASSES):
        return CheckResult(name, "fail", f"6 records give outputs {list(outputs.shape)}; the task's net gives [6, {CLASSES}]")
    leaked = [*carried(secret, wire(module)), *(n for n in wire(module) if secret is not None and n.rpartition(".")[2] in secret.names)]
    found = ", ".join(dict.fromkeys(leaked))
    return judged(
        name,
        not leaked,
        "no secret in the state_dict",
        f"the state_dict holds the secret ({found}): register it as a non-persistent buffer",
    )


def _transforms(stage: Stage) -> CheckResult:
    """``noise`` and ``encode`` keep names, shapes and types, leave their argument alone and repeat with the generator."""
    name = "noise and encode"
    params = wire(stage.module(stage.stack.secret(keys("check", "secret", "a"))))
    params = {n: torch.randn(t.shape, generator=stream("check", "update", n)) for n, t in params.items() if t.is_floating_point()}
    hooks: dict[str, Callable[[Params, torch.Generator], Params]] = {"noise": stage.stack.noise, "encode": stage.stack.encode}
    for hook, act in hooks.items():
        given = {n: t.clone() for n, t in params.items()}
        first, second = (act(given, stream("check", "hook")) for _ in range(2))
        if not same(given, params):
            return CheckResult(name, "fail", f"{hook} changes the tensors it is given; return new ones")
        if {n: (t.shape, t.dtype) for n, t in first.items()} != {n: (t.shape, t.dtype) for n, t in params.items()}:
            return CheckResult(name, "fail", f"{hook} must keep every name, shape and type of the update")
        if not same(first, second):
            return CheckResult(name, "fail", f"{hook} differs under equal generators: draw from ``rng`` alone")
    return CheckResult(name, "pass", "names, shapes and types kept; equal generators give equal bytes")


def _claim(stage: Stage, stack: Stack) -> CheckResult:
    each: list[object] = [layer.claim(stage.federation, stage.shape) for layer in stack.layers]
    strange = [type(one).__name__ for one in each if one is not None and not isinstance(one, Claim)]
    if strange:
        return CheckResult("claim", "fail", f"claim() returned a {strange[0]}; it must be a Claim or None")
    claim = stack.claim(stage.federation, stage.shape)
    if claim is None:
        return CheckResult("claim", "pass", "none")
    faults = [*_faults(claim, stage)]
    return judged("claim", not faults, claim.sentence or claim.kind, "; ".join(faults))


def _faults(claim: Claim, stage: Stage) -> Iterator[str]:
    if claim.unit not in get_args(Unit):
        yield f"its unit is {claim.unit!r}, none of {', '.join(get_args(Unit))}"
    if claim.kind == "keyed" and stage.stack.secret(keys("check", "secret", "a")) is None:
        yield "it claims a key, but secret() gives none"
    if claim.kind not in ("dp", "keyed", "none"):
        yield f"its kind is {claim.kind!r}, none of dp, keyed, none"
    if claim.kind != "dp":
        if claim.epsilon is not None:
            yield f"it states ε = {claim.epsilon:g} but its kind is {claim.kind}"
        return
    if claim.epsilon is None or not 0 < claim.epsilon < math.inf:
        yield f"ε is {claim.epsilon}, which promises nothing; it must be above 0 and finite"
    if claim.delta is None or not 0 < claim.delta * max(stage.shape.site_sizes) < 1:
        yield f"δ is {claim.delta}; it must be above 0 and below 1 / records of a site"
    missing = [name for name in ("relation", "sampler", "server_sees", "sentence") if not getattr(claim, name)]
    missing += [name for name in ("sampling_rate", "noise_multiplier", "steps") if getattr(claim, name) is None]
    if missing:
        yield f"it does not name {', '.join(missing)}, without which ε cannot be read"
    if claim.per_site and claim.epsilon is not None and not math.isclose(max(claim.per_site), claim.epsilon, rel_tol=1e-6):
        yield f"ε is {claim.epsilon:g}, but the worst site has {max(claim.per_site):g}"
    if claim.steps is not None and claim.steps < _ROUNDS:
        yield f"it counts {claim.steps} steps for {_ROUNDS} rounds: ε must hold over all of them"


def _trained(stage: Stage) -> Iterator[CheckResult]:
    first, second = stage.trained, stage.train()
    equal = same(first.finals[0], second.finals[0]) and all(
        same(a.payload, b.payload) for r, s in zip(first.rounds, second.rounds) for a, b in zip(r.messages, s.messages)
    )
    yield judged(
        "same bytes for the same coordinates", equal, f"{len(first.rounds)} rounds agree", "two trainings from equal coordinates differ"
    )
    yield _silent(stage, first)
    if stage.stack.channel is not None:
        yield _combines(stage, first)
        yield from check_channel(stage.stack.channel, _said(stage))
    claim = stage.stack.claim(stage.federation, stage.shape)
    if claim is not None and claim.kind == "dp" and stage.stack.topology == "federated":
        yield _noised(stage, first, claim)


def _said(stage: Stage) -> str:
    """What cards and claims say that a server sees."""
    claims = [layer.claim(stage.federation, stage.shape) for layer in stage.stack.layers]
    cards = [card.server for _, card in stage.stack.cards]
    return " ".join([*cards, *(f"{claim.server_sees}. {claim.sentence}" for claim in claims if claim is not None)])


def _silent(stage: Stage, trained: Trained) -> CheckResult:
    """No message, broadcast or released model holds the federation's secret."""
    found: list[str] = []
    for record in trained.rounds:
        probes = [m for probe in record.probes for m in probe.messages]
        for where, params in (
            ("broadcast", record.broadcast),
            *((f"message of site {m.site}", m.payload) for m in (*record.messages, *probes)),
        ):
            found += [f"{where}: {place}" for place in carried(trained.secret, params)]
    found += [f"released model: {place}" for params in trained.finals for place in carried(trained.secret, params)]
    shown = "; ".join(dict.fromkeys(found[:3]))
    return judged(
        "no secret on the wire", not found, "searched in every message, broadcast and model", f"the key itself crosses the wire: {shown}"
    )


def _combines(stage: Stage, trained: Trained) -> CheckResult:
    """The channel's sum equals the plain one of the same updates."""
    updates: list[Params] = [{"w": torch.randn(50, generator=stream("check", "channel", site))} for site in range(SITES)]
    weights = [1.0 + site for site in range(SITES)]
    channel = stage.stack.channel
    assert channel is not None
    broadcast: Params = {"w": torch.zeros(50)}
    exchange = Exchange(0, b"check", broadcast, tuple(keys("check", "site", site) for site in range(SITES)))
    delivery = channel.run(updates, weights, exchange)
    plain: Tensor = torch.stack([w * u["w"] for u, w in zip(updates, weights)]).sum(0) / sum(weights)
    error = float((delivery.combined["w"] - plain).abs().max())
    clear = sorted({m.kind for m in delivery.messages} & {"update", "gradient"})
    if clear:
        return CheckResult("channel", "fail", f"its messages are of kind {', '.join(clear)}: the server reads single sites' updates")
    return judged(
        "channel", error < 1e-3, f"its mean is off by {error:.1e}", f"its mean is off by {error:.1e} from the weighted mean of the updates"
    )


def _noised(stage: Stage, trained: Trained, claim: Claim) -> CheckResult:
    module = trained.module
    inputs = stage.stack.prepare(stage.pool.x, trained.secret)
    shares = list(noise_shares(stage.evidence, stage.stack, stage.task, module, inputs, stage.pool.y, claim))
    if not shares:
        said = "not measured: no gradient was probed, or layers leave unsaid or mix what bounds a message and how it is noised"
        return CheckResult("noise as claimed", "warn", said)
    mean = sum(shares) / len(shares)
    shown = f"messages hold {mean:.3f} of the claimed noise (batches of one, {MEMBERS} records)"
    return judged(
        "noise as claimed",
        mean >= 0.9 and min(shares) > 0.5,
        shown,
        f"{shown}: under a claim of ε = {claim.epsilon:.3g} gradients are too clean",
    )
