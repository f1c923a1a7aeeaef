"""Who guesses without looking: draws are drawn anew each time, and candidates are drawn only by whom they are shown to."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attacks.gradient_inversion.closed_form import ClosedForm
from attacks.key.norms import Norms
from suites.contracts import Attack, Guess
from suites.priors import DRAWS, priors


@pytest.mark.parametrize(("attack", "drawing"), [(ClosedForm, {"random_record"}), (Norms, {"random_record", "random_candidate"})])
def test_each_draw_has_a_stream_of_its_own(attack: type[Any], drawing: set[str]) -> None:
    streams: list[str] = []

    def run(control: Attack, stream: str) -> Guess:
        streams.append(stream)
        return Guess([torch.full((3, 2), float(len(streams)))] * 5)

    fixed, drawn = priors(attack(), run, sums=False, targets=4, several=True)
    assert len(set(streams)) == len(streams) == len(fixed) + DRAWS * len(drawing)
    assert set(drawn) == drawing
    assert {len(answers) for answers in drawn.values()} == {DRAWS}
    assert {len(answer) for answer in (*fixed.values(), *drawn["random_record"])} == {4}, "no more answers than there are targets"
    assert priors(attack(), run, sums=False, targets=4, several=False)[1] == {}
