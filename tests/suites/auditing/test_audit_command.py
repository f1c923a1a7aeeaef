"""``infl-bench audit``: a file of scores in, tables out, one sentence and exit code 2 for what cannot be read."""

from pathlib import Path

import numpy as np
import pytest

from suites.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["infl-bench", "audit", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def scores(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    member = draw.permutation(2 * n) < n
    return draw.normal(size=2 * n) + 2 * member, member


def test_csv_and_npz_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    value, member = scores()
    (tmp_path / "a.csv").write_text("score,member\n" + "".join(f"{v!r},{int(m)}\n" for v, m in zip(value.tolist(), member)))
    np.savez(tmp_path / "a.npz", score=value, member=member)
    said = []
    for name in ("a.csv", "a.npz"):
        assert run(monkeypatch, str(tmp_path / name)) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert "clopper_pearson" in said[0]
    assert "one_run" not in said[0]


def test_other_names_words_for_members_and_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    value, member = scores()
    (tmp_path / "a.csv").write_text("s, m\n" + "".join(f"{v!r}, {'True' if m else 'False'}\n" for v, m in zip(value.tolist(), member)))
    given = (str(tmp_path / "a.csv"), "--score", "s", "--member", "m", "--independent", "--out", str(tmp_path / "out"))
    assert run(monkeypatch, *given) == 0
    assert "one_run_f_dp" in capsys.readouterr().out
    assert (tmp_path / "out" / "report" / "index.html").is_file()


def test_a_refuted_claim_is_exit_code_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    value, member = scores()
    np.savez(tmp_path / "a.npz", score=value, member=member)
    assert run(monkeypatch, str(tmp_path / "a.npz"), "--claimed", "0.1") == 1
    assert "lies above the claimed" in " ".join(capsys.readouterr().out.split())
    assert run(monkeypatch, str(tmp_path / "a.npz"), "--claimed", "10") == 0


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("none.csv", None, "there is no file"),
        ("a.csv", "score,who\n1,1\n", "no column 'member'"),
        ("a.csv", "scores,member\n1,1\n0,0\n", "did you mean 'scores'"),
        ("a.csv", "score,member\nx,1\n0,0\n", "not a number"),
        ("a.csv", "score,member\n1,1\n2,1\n", "marks every record"),
        ("a.csv", "score,member\n1,0.5\n2,1\n", "must be 1 or 0"),
        ("a.csv", "score,member\n,1\n2,0\n", "NaN"),
        ("a.csv", "", "cannot be read as a CSV"),
        ("a.npz", "not an archive", "cannot be read as an npz"),
    ],
)
def test_bad_files_are_one_sentence(
    name: str, text: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert run(monkeypatch, str(tmp_path / name)) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1


def test_an_archive_that_holds_objects_is_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", score=np.array([object()], dtype=object), member=np.array([1]))
    assert run(monkeypatch, str(tmp_path / "a.npz")) == 2
    assert "plain arrays" in capsys.readouterr().err
