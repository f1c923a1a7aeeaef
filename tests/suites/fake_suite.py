"""A suite over the fake cells: two defenses of its own, three attacks of its own in files beside it."""

from pathlib import Path

FUNCTIONS = {stage: f"tests.suites.fake_cells:{stage}_cell" for stage in ("train", "reference", "attack")}

_ATTACK = '''"""A plug-in attack."""


class {name}:
    """{name} does as it is told."""

    goal = "membership"
    needs = frozenset({needs})
    bonus = {bonus}

    def run(self, seen, rng):
        return None
'''
_DEFENSES = '''"""Plug-in defenses, without the contract's base class and so without torch: a worker starts in no time."""


class Plain:
    """Nothing at all."""


class Keyed:
    """Has a secret."""

    def secret(self, rng):
        return None
'''

_TASK = '''"""A plug-in task."""


class Nothing:
    """Learns nothing."""
'''


def write(folder: Path, *, epochs: int = 1, seeds: int = 2, references: int = 0) -> Path:
    """Write plug-ins and suite into ``folder``; the path of the suite file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "defenses.py").write_text(_DEFENSES)
    (folder / "task.py").write_text(_TASK)
    for name, bonus, needs in (
        ("First", 1, '{"released"}'),
        ("Second", 2, '{"released", "key"}'),
        ("Third", 3, '{"updates", "references"}'),
    ):
        (folder / f"{name.lower()}.py").write_text(_ATTACK.format(name=name, bonus=bonus, needs=needs))
    suite = folder / "small.yaml"
    suite.write_text(
        f"""suite: small
task: task.py:Nothing
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
