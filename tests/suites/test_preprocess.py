"""Public units come from auxiliary records and from nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from suites.contracts import RequestError
from suites.preprocess import Preprocessor


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9999), st.integers(5, 60), st.integers(1, 40))
def test_it_equals_scikit_learn_where_no_scale_is_small(seed: int, n: int, f: int) -> None:
    rng = np.random.default_rng(seed)
    aux = (rng.normal(size=(n, f)) + rng.normal(size=f) * 20).astype(np.float32)
    x = rng.normal(size=(7, f)).astype(np.float32) * 30
    fitted = Preprocessor.fit(aux)
    reference = StandardScaler().fit(aux.astype(np.float64))
    if (reference.scale_ > 0.11 * np.median(reference.scale_)).all():
        np.testing.assert_allclose(fitted.transform(x).numpy(), reference.transform(x), rtol=2e-4, atol=2e-4)


def test_missing_values_become_the_auxiliary_mean_and_do_not_move_it() -> None:
    aux = np.array([[1.0, 5.0], [3.0, np.nan], [np.nan, 7.0]], dtype=np.float32)
    fitted = Preprocessor.fit(aux)
    torch.testing.assert_close(fitted.mean, torch.tensor([2.0, 6.0]))
    torch.testing.assert_close(fitted.scale, torch.tensor([1.0, 1.0]))
    assert fitted.transform(np.array([[np.nan, 7.0]], dtype=np.float32)).tolist() == [[0.0, 1.0]]


def test_constant_and_nearly_constant_and_unseen_features_have_a_sane_scale() -> None:
    rng = np.random.default_rng(0)
    aux = rng.normal(size=(400, 6)).astype(np.float32) * 2
    aux[:, 0] = 7.0
    aux[:, 1] *= 1e-3
    aux[:, 2] = np.nan
    fitted = Preprocessor.fit(aux)
    typical = float(torch.median(fitted.scale[3:]))
    assert float(fitted.scale[0]) == pytest.approx(typical, rel=0.2)
    assert float(fitted.scale[1]) == pytest.approx(typical / 10, rel=0.2)
    assert float(fitted.scale[2]) == pytest.approx(typical, rel=0.2)
    assert torch.isfinite(fitted.transform(aux)).all()
    assert float(Preprocessor.fit(np.ones((3, 2), dtype=np.float32)).scale[0]) == 1.0


def test_changing_one_record_changes_no_other() -> None:
    rng = np.random.default_rng(1)
    aux, x = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(70, 8)).astype(np.float32)
    fitted = Preprocessor.fit(aux)
    before, kept = fitted.transform(x), x.copy()
    x[3] = 1000.0
    after = fitted.transform(x)
    assert torch.equal(before[torch.arange(70) != 3], after[torch.arange(70) != 3])
    x[3] = kept[3]
    fitted.transform(torch.from_numpy(x))
    assert np.array_equal(x, kept)  # the caller's matrix is not written to


def test_blocks_agree_with_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(2).normal(size=(31, 17)).astype(np.float32)
    whole = Preprocessor.fit(x)
    monkeypatch.setattr("suites.preprocess._BLOCK", 40)
    pieces = Preprocessor.fit(torch.from_numpy(x))
    assert torch.equal(whole.mean, pieces.mean)
    assert torch.equal(whole.scale, pieces.scale)
    assert torch.equal(whole.transform(x), pieces.transform(torch.from_numpy(x)))


def test_one_auxiliary_record_is_refused() -> None:
    with pytest.raises(RequestError, match=r"larger share"):
        Preprocessor.fit(np.ones((1, 3), dtype=np.float32))


def test_in_place_gives_the_same_in_the_memory_that_was_given() -> None:
    x = np.random.default_rng(0).normal(3, 2, (40, 7)).astype(np.float32)
    x[3, 2] = np.nan
    public = Preprocessor.fit(x[:20])
    before = x.copy()
    fresh = public.transform(x)
    np.testing.assert_array_equal(x, before)  # as it was
    held = public.transform(x, in_place=True)
    assert torch.equal(held, fresh)
    assert held.data_ptr() == x.ctypes.data
