"""The ``standard`` ensembles: a fixed list of attacks for each goal, without knobs, whose worst case is the leakage that a report states.

As AutoAttack is for adversarial examples (Croce and Hein 2020, arXiv 2003.01690): whoever evaluates a defense does not choose the
adversary. ``standard`` in a suite's attacks stands for the first three goals, ``standard:membership`` for one. Each list goes from cheap to
dear and holds every view of the same weakness (single updates and sums), since what a defense hides decides which of them can look.

Two attacks on secrets stand outside. ``known_plaintext`` looks under threats with ``known_pairs`` alone, which a suite has to state; every
other would print its refusal. ``joint_key`` takes some 45 s of CPU a cell on ``infl:published`` (two records of pbmc68k), skips keys of
bits, and is the closed form where there is no key. ``infl-bench check`` runs both on any defense with a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from suites.errors import RequestError, did_you_mean

NAME = "standard"
MEMBERS: Mapping[str, tuple[str, ...]] = {
    "reconstruction": (
        "closed_form",
        "candidates_in_span",
        "candidates_in_span_of_sum",
        "norms",
        "norms_of_sum",
        "gram_search",
        "gram_search_of_sum",
        "principal_components",
        "overlap",
        "cocktail_party",
        "cocktail_party_of_sum",
        "ladder",
        "ladder_of_sum",
        "cosine_inversion_of_sum",
        "learned_inverter",
        "learned_inverter_of_sum",
    ),
    "membership": (
        "loss_threshold",
        "modified_entropy",
        "gradient_norm",
        "quantile",
        "rmia",
        "lira",
        "round_cosine",
        "round_cosine_of_sum",
        "gradient_difference",
        "bias_difference",
        "fedmia",
        "span",
        "span_of_sum",
        "matched_span",
        "matched_span_of_sum",
        "blind",
    ),
    "key": (
        "key_vector",
        "key_vector:optimiser=sgd",
        "key_vector_of_sum",
        "seed_search",
        "open_without_key",
        "open_with_wrong_keys",
        "open_with_held_key",
    ),
    "property": (
        "site_of_origin",
        "disaggregation",
        "sratta",
        "class_mix",
        "class_mix_of_sum",
        "donor_attribute",
        "donor_attribute_of_sum",
    ),
    "audit": ("designed_canaries", "designed_canaries_of_sum", "designed_canaries_black_box", "random_canaries"),
}
_PLAIN = ("reconstruction", "membership", "key")  # by name only: canaries train a federation of their own, properties need a column or skew


def expanded(attacks: Iterable[str]) -> tuple[str, ...]:
    """The attacks behind a suite's list, each once and in order."""
    found: dict[str, None] = {}
    for ref in attacks:
        found |= dict.fromkeys(_members(ref.strip()))
    return tuple(found)


def _members(ref: str) -> tuple[str, ...]:
    name, colon, goal = ref.partition(":")
    if name != NAME:
        return (ref,)
    if not colon:
        return tuple(member for goal in _PLAIN for member in MEMBERS[goal])
    if goal not in MEMBERS:
        raise RequestError(
            f"the standard ensemble has no part '{goal}' and no knobs{did_you_mean(goal, list(MEMBERS))}; it has {', '.join(MEMBERS)}"
        )
    return MEMBERS[goal]
