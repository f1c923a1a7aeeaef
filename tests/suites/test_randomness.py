"""Named streams: numpy's Mersenne state of a hash, in torch's generator."""

from __future__ import annotations

import numpy as np

from suites.randomness import digest, stream


def test_a_stream_holds_the_state_of_numpys_generator_of_the_same_hash() -> None:
    seed = int.from_bytes(digest("infl-bench stream", "a", 1), "little")
    words = np.random.MT19937(np.random.SeedSequence(seed)).state["state"]["key"]
    state = stream("a", 1).get_state().numpy()
    assert (state[24 : 24 + 8 * 624].view("<u8") == words).all()
