"""First parts of the searches of several messages, done together from the starts that one search after the other would draw.

A search draws its starts when its turn comes, so they depend on how much the searches before it drew. Most are solved within their first
part and draw no more. On that bet the starts of the next ones are drawn ahead, and only first parts that solved their messages are taken
over, while every bet before held: records are those of the loop to rounding, and a search that is not solved, where rounding may lead
elsewhere, is the loop's own. A lost bet costs those first parts, so the next is made only after a search that would have won it (one that
is given up draws no more either, and has lost it all the same), and none on a message with more directions than records, which noise has
made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.gradient_inversion.order import shuffles
from attacks.gradient_inversion.row_problem import PARTS, Begun, Problem, searched

TOGETHER = 16  # messages at most


class Ahead:
    """Beginnings of the searches of ``problems``, asked for in their order."""

    def __init__(self, problems: Sequence[Problem], budget: int, restarts: int) -> None:
        self.problems, self.budget, self.restarts = problems, int(PARTS[0] * budget), restarts
        self.begun: dict[int, tuple[Begun, Tensor]] = {}  # and the generator's state after its starts
        self.left: Tensor | None = None  # the state in which the last search began
        self.lost = False  # whether that search is given up, and with it the bet

    def begin(self, index: int, rng: torch.Generator) -> Begun:
        """Points [L, B r] and losses [L] after the first part of a search, ``rng`` as its starts leave it."""
        problem = self.problems[index]
        held = not self.lost and (self.left is None or torch.equal(self.left, rng.get_state()))
        if not held:
            self.begun = {}
        elif index not in self.begun:
            self._bet(index, rng)
        found, after = self.begun.pop(index, (None, None))
        if found is not None and after is not None and bool((found[1] < problem.solved).any()):
            rng.set_state(after)
        else:
            found = searched([problem], problem.starts(self.restarts, rng)[None], self.budget)[0]
        self.left, self.lost = rng.get_state(), problem.hopeless(found, self.budget)
        return found

    def _bet(self, index: int, rng: torch.Generator) -> None:
        """Begin the searches from ``index`` on that can be begun together."""
        chosen: list[int] = []
        first = self.problems[index]
        for at in range(index, len(self.problems)):
            problem = self.problems[at]
            if problem.case == "plain":  # no search, no draw
                continue
            if problem.noisy or shuffles(problem.target) or not first.alike(problem) or len(chosen) == TOGETHER:
                break
            chosen.append(at)
        if len(chosen) < 2:
            return
        before, starts, after = rng.get_state(), [], []
        for at in chosen:
            starts.append(self.problems[at].starts(self.restarts, rng))
            after.append(rng.get_state())
        rng.set_state(before)
        found = searched([self.problems[at] for at in chosen], torch.stack(starts), self.budget)
        self.begun = dict(zip(chosen, zip(found, after)))
