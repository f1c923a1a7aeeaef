"""From a registered name to its cohort.

Loaders are imported by name where they are called, so that the closure of a cell's code, read from import statements, covers
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from suites.cohorts.cohort import Cohort
from suites.cohorts.load import from_file
from suites.cohorts.registry import card
from suites.cohorts.spec import DataSpec
from suites.errors import RequestError


def named(data: DataSpec) -> Cohort:
    """The registered cohort ``data.name`` with its defaults, each of which ``data`` may overrule."""
    assert data.name is not None
    about = card(data.name)
    if data.name == "synthetic":
        return synthetic(data)
    if data.name in SYNTHETIC:
        return synthetic_omics(data)
    found = source(data)
    assert found is not None
    return from_file(*found, data.name, about.citation, about.licence)


def source(data: DataSpec) -> tuple[DataSpec, Path] | None:
    """The .h5ad of a cohort, and ``data`` with its defaults, each of which ``data`` may overrule; None of a generated one."""
    if data.path is not None:
        return data, Path(data.path).expanduser()
    assert data.name is not None
    about = card(data.name)
    if data.name == "synthetic" or data.name in SYNTHETIC:
        return None
    if data.params:
        raise RequestError(f"data.params belong to a generated cohort (name: synthetic) and {data.name} has none; remove them")
    known = {field: value for field, value in about.defaults if getattr(data, field) in (None, ())}
    return data.model_copy(update=known), parsed(data.name) if about.download else pbmc68k()


def pbmc68k() -> Path:
    """Zheng et al. 2017: the file inside the scanpy package, found without importing scanpy (which takes seconds)."""
    found = find_spec("scanpy")
    path = Path(found.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad" if found and found.origin else None
    if path is None or not path.exists():
        raise RequestError("cohort pbmc68k comes with scanpy, which is not installed completely; run pip install --force-reinstall scanpy")
    return path


def at_hand(name: str) -> bool:
    """Whether a downloadable cohort is on this machine: parsed, in the cache, or in the mirror folder."""
    from suites.cohorts import fetch
    from suites.cohorts.originals import ORIGINALS

    folder, stem = _parsed(name)
    return any(folder.glob(f"{stem}-*.h5ad")) or all(fetch.place(original) is not None for original in ORIGINALS[name])


def _parsed(name: str) -> tuple[Path, str]:
    """The folder of parsed files, and how the name of this cohort's begins for these pins and this parser."""
    from suites.cohorts import fetch
    from suites.cohorts.originals import ORIGINALS

    version = hashlib.sha256(Path(__file__).with_name("parsers.py").read_bytes())
    for original in ORIGINALS[name]:
        version.update(original.sha256.encode())
    return fetch.cache() / "parsed", f"{name}-{version.hexdigest()[:16]}"


def _digest(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def parsed(name: str, mirror: Path | None = None, say: Callable[[str], None] = lambda line: None) -> Path:
    """The .h5ad that a downloadable cohort's parser makes of its verified originals: made once for these pins and this parser.

    Its name ends in its own SHA-256, which is held against the bytes every time; one that was changed or cut short is made again.
    """
    from suites.cohorts import fetch

    folder, stem = _parsed(name)
    for path in sorted(folder.glob(f"{stem}-*.h5ad")):
        if path.stem.endswith(f"-{_digest(path)}"):
            return path
        say(f"{path} is not what was parsed, and is made again from the original files")
        path.unlink(missing_ok=True)
    fetch.make_folder(folder)
    from suites.cohorts import parsers, written  # and with them pandas and anndata, only where there is something to parse

    files = fetch.fetch(name, mirror, say)
    made = written.image(parsers.parse(name, files))
    path = folder / f"{stem}-{written.digest(made)[:32]}.h5ad"
    try:
        written.put(made, path)  # several processes may do this at once: each its own file, the same values
    except OSError as error:
        raise RequestError(
            f"the cache folder {folder} cannot take the parsed {name} ({error}); make room or set $INFL_BENCH_CACHE"
        ) from error
    return path


SYNTHETIC = {
    "synthetic_perturbation": "X",
    "synthetic_tissue": "obsm/spatial",
    "synthetic_paired": "obsm/protein",
    "synthetic_multiome": "obsm/peaks",
}


def synthetic_omics(data: DataSpec) -> Cohort:
    """The generated cohort of a task; ``data.params`` are fields of its recipe in ``suites.cohorts.synthetic_omics``."""
    from suites.cohorts.synthetic import omics_recipe
    from suites.cohorts.synthetic_omics import Multiome, Screen, Tissue, multiome, paired, screen, tissue

    assert data.name is not None
    given = [field for field in ("label", "site", "person") if getattr(data, field) is not None] + (["only"] if data.only else [])
    if given:
        raise RequestError(f"the generated cohort {data.name} has its own label and site and no {given[0]} to choose; remove {given[0]}")
    if data.matrix not in (None, "X", SYNTHETIC[data.name]):
        raise RequestError(f"{data.name} holds no matrix '{data.matrix}'; it has {', '.join(dict.fromkeys(('X', SYNTHETIC[data.name])))}")
    made = omics_recipe(data.name, data.params)
    if isinstance(made, Screen):
        return screen(made)
    if isinstance(made, Multiome):
        return multiome(made, data.matrix)
    return tissue(made, data.matrix) if isinstance(made, Tissue) else paired(made, data.matrix)


def synthetic(data: DataSpec) -> Cohort:
    """The generated cohort; ``data.params`` are fields of ``suites.cohorts.synthetic.Recipe``."""
    from suites.cohorts.synthetic import generate, recipe

    made = recipe(data.params)
    given = [field for field in ("label", "site", "person", "attribute", "matrix") if getattr(data, field) is not None]
    if data.only:
        raise RequestError("the synthetic cohort has no obs columns to choose records by; remove only, or give params other sizes")
    if given:
        raise RequestError(f"the synthetic cohort has its own label, site and person and no {given[0]} to choose; remove {given[0]}")
    if made.missing and not data.imputes:
        raise RequestError("this synthetic cohort has missing values, which no network survives; set missing: impute (--missing impute)")
    return generate(made)
