"""What a suite may say about its data: which cohort, how it is split, how it is spread over sites.

Three frozen pydantic models that refuse unknown keys. No torch, no pandas: the command line reads them before anything heavy.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Scalar = bool | int | float | str
BY_SITE = "impute_by_site"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSpec(_Frozen):
    """One cohort: a registered ``name``, or the ``path`` of an .h5ad with the obs columns that matter.

    ``label``, ``site`` and ``person`` name obs columns; a registered cohort has defaults for them. ``matrix`` picks the values: "X",
    "raw", "layers/NAME" or "obsm/NAME". ``transform``: "auto" turns integer counts into log(1 + 10,000 x / total of the record) and leaves
    all else, "log1p" takes log(1 + x), "none" leaves the values. ``missing="impute"`` admits NaN (the preprocessor then fills in the
    mean of the auxiliary records); "impute_by_site" has each site fill its training records' gaps with its own means (``suites.gaps``).
    ``drop`` says what may be left out where it would else be an error: "unlabelled" records, records of
    "rare" classes (fewer than two records), "empty" features (zero in every record). ``only`` keeps the records whose obs columns have
    the listed values: ``only: {cohort: [BRCA]}``. ``attribute`` names a binary obs column that property attacks are after and no model is
    told (``sex``), or one value of a column against all others (``batch=3``).
    """

    name: str | None = None
    path: str | None = None
    label: str | None = None
    site: str | None = None
    person: str | None = None
    attribute: str | None = None
    matrix: str | None = None
    transform: Literal["auto", "log1p", "none"] | None = None
    missing: Literal["error", "impute", "impute_by_site"] | None = None
    drop: tuple[Literal["unlabelled", "rare", "empty"], ...] = ()
    only: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    params: dict[str, Scalar] = Field(default_factory=dict)  # of a generated cohort (synthetic)

    @property
    def imputes(self) -> bool:
        """Whether missing values are admitted."""
        return self.missing in ("impute", BY_SITE)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.path is None):
            raise ValueError("data needs either name (a registered cohort) or path (an .h5ad file), and not both")
        return self


class SplitSpec(_Frozen):
    """Shares of the four disjoint parts, which sum to one; ``unit="person"`` keeps all records of a person in one part."""

    unit: Literal["record", "person"] = "record"
    train: float = Field(default=0.5, gt=0, lt=1)
    validation: float = Field(default=0.1, ge=0, lt=1)  # 0 where nothing is chosen on it
    test: float = Field(default=0.2, gt=0, lt=1)
    auxiliary: float = Field(default=0.2, gt=0, lt=1)

    @property
    def shares(self) -> tuple[float, float, float, float]:
        return self.train, self.validation, self.test, self.auxiliary

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"split shares must sum to 1, not {sum(self.shares):g}; change train, validation, test or auxiliary")
        return self


class PartitionSpec(_Frozen):
    """How training records are spread over sites: "iid", by the site "column", or label skew from a "dirichlet" of ``alpha``."""

    kind: Literal["iid", "column", "dirichlet"] = "iid"
    sites: int = Field(default=5, ge=1)  # not read for "column": every value of the column is a site
    alpha: float = Field(default=0.5, ge=0.01)  # dirichlet only: small is skewed, large is IID
    held_out: int = Field(default=0, ge=0)  # of these sites, drawn anew each seed, take no part: the others are set against them
