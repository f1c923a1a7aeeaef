"""What things are called in pictures and tables: plain words for plug-in names, threats and numbers.

A name that is not known here is shown as it is written in the table, underscores turned to blanks, so other people's results read well too.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Final

LAYERS: Final = {
    "centralized": "Centralized",
    "local_only": "Local only",
    "fedavg": "FedAvg",
    "dp_sgd": "DP-SGD",
    "dp_fedavg": "DP-FedAvg",
    "secure_aggregation": "Secure aggregation",
    "skellam": "Secure aggregation with Skellam noise",
    "homomorphic": "Homomorphic",
    "infl": "INFL",
    "ppml_omics": "PPML-Omics",
}
ATTACKS: Final = {
    "lira": "LiRA",
    "cosine_inversion": "Cosine inversion",
    "cosine_inversion_of_sum": "Cosine inversion of the sum",
    "inverting_gradients": "Inverting gradients",
    "inverting_gradients_of_sum": "Inverting gradients, on the sum",
    "dlg": "DLG",
    "dlg_of_sum": "DLG, on the sum",
    "idlg": "iDLG",
    "idlg_of_sum": "iDLG, on the sum",
    "tableak": "TabLeak",
    "tableak_of_sum": "TabLeak, on the sum",
    "learned_inverter": "Learned inverter",
    "learned_inverter_of_sum": "Learned inverter, on the sum",
    "closed_form": "Closed form, first layer",
    "loss_threshold": "Loss threshold",
    "round_cosine": "Round-wise cosine",
    "key_vector": "Key vector, closed form",
    "key_vector_of_sum": "Key vector of the sum",
    "key_vector_of_step": "Key vector, one step",
    "ladder": "Ladder of inversions",
    "ladder_of_sum": "Ladder, on the sum",
    "spear": "SPEAR",
    "spear_of_sum": "SPEAR, on the sum",
    "cocktail_party": "Cocktail party",
    "cocktail_party_of_sum": "Cocktail party, on the sum",
    "row_space": "Row space, first layer",
    "row_space_of_sum": "Row space of the sum",
    "round_cosine_of_sum": "Round-wise cosine of the sum",
    "span": "Span of one update",
    "span_of_sum": "Span of the sum",
    "matched_span": "Matched span",
    "matched_span_of_sum": "Matched span of the sum",
    "rmia": "RMIA",
    "quantile": "Quantile regression",
    "fedmia": "FedMIA",
    "gradient_difference": "Gradient difference",
    "gradient_norm": "Gradient norm",
    "bias_difference": "Bias difference",
    "modified_entropy": "Modified entropy",
    "norms": "Norms of mixed records",
    "norms_of_sum": "Norms, from the sum",
    "imprint": "Imprint",
    "imprint_of_sum": "Imprint, from the sum",
    "gram_search": "Gram search",
    "gram_search_of_sum": "Gram search, from the sum",
    "known_plaintext": "Known plaintext",
    "principal_components": "Principal components",
    "blind": "Blind (sees no model)",
    "site_of_origin": "Site of origin",
    "class_mix": "Class mix",
    "class_mix_of_sum": "Class mix of all sites",
    "disaggregation": "Disaggregation",
    "sratta": "SRATTA",
    "donor_attribute": "Donor attribute",
    "joint_key": "Joint search for records and key",
    "overlap": "Overlap with the row space",
    "candidates_in_span": "Candidates in the span",
    "candidates_in_span_of_sum": "Candidates in the span of the sum",
    "seed_search": "Search of integer seeds",
    "donor_attribute_of_sum": "Donor attribute of all sites",
    "designed_canaries": "Designed canaries",
    "designed_canaries_of_sum": "Designed canaries in the sum",
    "designed_canaries_black_box": "Designed canaries, black box",
    "random_canaries": "Random-direction canaries",
    "open_without_key": "Open without a key",
    "open_with_wrong_keys": "Open with wrong keys",
    "open_with_held_key": "Open with the held key",
}
_WHO: Final = {"server": "server", "active_server": "active server", "site": "one site", "outsider": "outsider"}
VIEWS: Final = {
    **_WHO,
    **{f"{who}_neighbours_unknown": f"{said}, neighbours unknown" for who, said in _WHO.items()},
    "server_known_pairs": "server, some records known",
}
_SEES: Final = {
    "server": "the server, which sees every message",
    "active_server": "an active server, which sees every message and chooses what it sends",
    "site": "a site, which sees broadcasts, its own records and the sum of the others",
    "outsider": "an outsider, who holds the released model",
}
_ALONE: Final = ", and of a record that it asks about knows nothing that its neighbours gave"
SEES: Final = {
    **_SEES,
    **{f"{who}_neighbours_unknown": said + _ALONE for who, said in _SEES.items()},
    "server_known_pairs": _SEES["server"] + ", and knows the records behind some of them",
}
GOALS: Final = {
    "reconstruction": "Reconstruction of records",
    "membership": "Membership of records",
    "membership:person": "Membership of units (a person, a tile, a perturbation)",
    "membership:site": "Membership of sites",
    "key": "Opening the model (key)",
    "property": "Properties of sites and records",
    "audit": "Audit",
}
METRICS: Final = {
    "rero": "ReRo bound (claim)",
    "epsilon_lower": "ε at least",
    "epsilon_lower:clopper_pearson": "by Clopper–Pearson",
    "epsilon_lower:one_run": "by one run",
    "epsilon_lower:one_run_f_dp": "by one run, f-DP",
    "epsilon_lower:multi_split": "by split thresholds",
    "epsilon_assumed:gaussian_family": "if Gaussian (assumed)",
    "epsilon_assumed:one_run_gaussian": "if Gaussian, one run (assumed)",
    "epsilon_estimate:raw_counts": "raw counts (no bound)",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "f1_macro": "macro F1",
    "weighted_f1": "weighted F1",
    "f1_weighted": "weighted F1",
    "auc": "AUC",
    "mse_top20": "MSE of the top 20 DE genes",
    "coherence_gap": "distance from the annotation's coherence (lower is better)",
    "weighted_auc": "weighted OvR AUC",
    "r2": "R²",
    "r2_calibrated": "calibrated R²",
    "leakage_calibrated": "calibrated leakage",
    "confidence_auc": "AUC of the confidence",
    "expected_calibration_error": "calibration error",
    "expected_calibration_error:perfect": "of a perfect one",
    "brier": "Brier score",
    "brier:share_alone": "of the share alone",
}
FLOORS: Final = {
    "accuracy": "the largest class alone",
    "balanced_accuracy": "the largest class alone",
    "ari": "one cluster for all",
    "pearson_delta": "no change for any gene",
}
KEYS: Final = {"without": "without the key", "none": "no key", "wrong": "wrong key", "right": "right key", "leaked": "leaked key"}

_PREFIXES: Final = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"))
_TELLING: Final = ("epsilon", "noise_multiplier")
_SHORTER: ContextVar[Mapping[str, str]] = ContextVar("_SHORTER", default=MappingProxyType({}))
MISSING: Final = "–"


@contextmanager
def among(defenses: Iterable[str], attacks: Iterable[str]) -> Iterator[None]:
    """Within this block a name leaves out the settings that nobody needs to tell these defenses, or these attacks, apart."""
    shorter = {name: _short(name) for name in {*defenses, *attacks}}
    counts = Counter(shorter.values())
    token = _SHORTER.set({name: short for name, short in shorter.items() if counts[short] == 1})
    try:
        yield
    finally:
        _SHORTER.reset(token)


def defense(name: str) -> str:
    """``dp_sgd:epsilon=8:lr=0.01+secure_aggregation`` → ``DP-SGD ε 8 (lr 0.01) + Secure aggregation``; see ``among``."""
    return " + ".join(_layer(part) for part in _SHORTER.get().get(name, name).split("+"))


def _layer(name: str) -> str:
    head, *rest = name.split(":")
    words, settings = [LAYERS.get(head, head.replace("_", " "))], []
    for part in rest:
        parameter, equals, value = part.partition("=")
        if not equals:
            words.append(parameter.replace("_", " "))
        elif parameter == "epsilon":
            words.append(f"ε {value}")
        elif parameter == "noise_multiplier":
            words.append("clip only" if value.strip("0.") == "" else f"σ {value}")
        else:
            settings.append(f"{parameter.replace('_', ' ')} {value}")
    return " ".join(words) + (f" ({', '.join(settings)})" if settings else "")


def attack(name: str) -> str:
    """A known attack's name in words, else the name itself with blanks; ``lira:references=16`` → ``LiRA (references 16)``."""
    head, *rest = _SHORTER.get().get(name, name).split(":")
    known = ATTACKS.get(head, head.replace("_", " "))
    return known + (f" ({', '.join(part.replace('_', ' ').replace('=', ' ') for part in rest)})" if rest else "")


def _short(name: str) -> str:
    """Without the parameters that say how, and not what."""
    layers = (layer.split(":") for layer in name.split("+"))
    return "+".join(
        ":".join(part for i, part in enumerate(parts) if i == 0 or part.split("=")[0] in _TELLING or "=" not in part) for parts in layers
    )


def key(name: str) -> str:
    """``partial:0.5`` → ``50 % of the key``."""
    if name.startswith("partial:"):
        return f"{float(name.removeprefix('partial:')):.0%} of the key".replace("%", "\N{NO-BREAK SPACE}%")
    return KEYS.get(name, name)


def threat(view: str, held: str) -> str:
    """``server, none`` → ``server, no key``."""
    return f"{VIEWS.get(view, view)}, {key(held)}"


def metric(name: str) -> str:
    head, _, exposure = name.partition(":exposure=")
    if exposure:
        return f"{metric(head)} after {exposure} records"
    return METRICS.get(name, name.replace("_", " "))


def floor(headline: str) -> str:
    """What a guess without features is, by the metric that judges: of classes the largest, of clusters one, of changes none."""
    return FLOORS.get(headline, "the best guess without features")


def number(value: float, digits: int = 3) -> str:
    """A number to ``digits`` decimals, in scientific form where that would hide it; a dash for NaN."""
    if not math.isfinite(value):
        return MISSING
    if value != 0 and abs(value) < 0.5 * 10**-digits:
        return scientific(value)
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def scientific(value: float) -> str:
    """``3.2e-08`` → ``3.2·10⁻⁸``."""
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa}·10{raised}".replace("-", "\N{MINUS SIGN}")


def interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """``0.812 [0.790, 0.834]``, without the brackets where no interval is known."""
    middle = number(value, digits)
    if not (math.isfinite(low) and math.isfinite(high)):
        return middle
    return f"{middle} [{number(low, digits)}, {number(high, digits)}]"


def amount(value: float, unit: str = "") -> str:
    """Three figures with an SI prefix: ``1.23 G`` + unit."""
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return f"0 {unit}".strip()
    factor, prefix = next((pair for pair in _PREFIXES if abs(value) >= pair[0]), _PREFIXES[-1])
    scaled = f"{value / factor:#.3g}".removesuffix(".")
    return f"{scaled} {prefix}{unit}".strip()


def slug(*parts: str) -> str:
    """A file name of letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(part for part in parts if part).lower()).strip("-") or "all"
