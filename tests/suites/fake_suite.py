"""A suite over the fake cells: two defenses of its own, three attacks of its own in files beside it."""

from pathlib import Path

FUNCTIONS = {stage: f"fake_cells:{stage}_cell" for stage in ("train", "reference", "attack")}

_ATTACK = '''"""A plug-in attack."""
from suites.contracts import Guess


class {name}:
    """{name} does as it is told."""

    goal = "membership"
    needs = frozenset({needs})
    bonus = {bonus}

    def run(self, seen, rng):
        return Guess(None)
'''
_DEFENSES = '''"""Plug-in defenses."""
from suites.contracts import Defense


class Plain(Defense):
    """Nothing at all."""


class Keyed(Defense):
    """Has a secret."""

    def secret(self, rng):
        return None
'''


def write(folder: Path, *, epochs: int = 1, seeds: int = 2, references: int = 0) -> Path:
    """Write plug-ins and suite into ``folder``; the path of the suite file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "defenses.py").write_text(_DEFENSES)
    for name, bonus, needs in (("First", 1, '{"released"}'), ("Second", 2, '{"released", "key"}'), ("Third", 3, '{"updates", "references"}')):
        (folder / f"{name.lower()}.py").write_text(_ATTACK.format(name=name, bonus=bonus, needs=needs))
    suite = folder / "small.yaml"
    suite.write_text(
        f"""suite: small
data: {{name: synthetic}}
federation: {{rounds: 2, local: {{epochs: {epochs}}}}}
seeds: {seeds}
references: {references}
engine: {{reference_chunk: 2}}
defenses: ["defenses.py:Plain", "defenses.py:Keyed"]
attacks: ["first.py:First", "second.py:Second", "third.py:Third"]
threats:
  - {{view: server, key: none}}
  - {{view: server, key: leaked}}
  - {{view: outsider, key: none}}
device: cpu
"""
    )
    return suite
