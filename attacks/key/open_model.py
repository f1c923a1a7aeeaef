"""Open the released model with no key, with keys of the adversary's own drawing, or with the key it holds.

These are guesses without cleverness; the scorer opens the model with each on test records. A wrong key comes from the same public
distribution as the right one: whether it fails is measured, not assumed.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from suites.contracts import Goal, Guess, Observation, Sees, Skip

WRONG_KEYS = 20


class WithoutKey:
    """The path without a key."""

    goal: ClassVar[Goal] = "key"
    needs: ClassVar[frozenset[Sees]] = frozenset({"released"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        return Guess([None])


class WrongKeys:
    """Twenty keys from the public distribution, none of them the federation's."""

    goal: ClassVar[Goal] = "key"
    needs: ClassVar[frozenset[Sees]] = frozenset({"released", "own_keys"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        drawn = [seen.draw_key(index) for index in range(WRONG_KEYS)]
        if any(key is None for key in drawn):
            raise Skip("this defense has no key, so there is no wrong one")
        return Guess(drawn)


class HeldKey:
    """The key the threat grants: leaked, partial, a colluding site's, or a wrong one that it drew."""

    goal: ClassVar[Goal] = "key"
    holder: ClassVar[bool] = True  # a threat without any key has nothing to try here
    needs: ClassVar[frozenset[Sees]] = frozenset({"released", "key"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        if seen.key is None:
            raise Skip("this threat holds no key, or the defense has none")
        return Guess([seen.key])
