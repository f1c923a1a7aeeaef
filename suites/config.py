"""The suite file: one YAML, checked to the last key, in words that a typo cannot slip through.

``load("quickstart")`` reads from the catalogue, ``load("mine.yaml")`` from a file. Whatever is wrong raises ``RequestError`` with one
sentence that names file, line and key. Torch-free: the command line reads suites before it knows whether anything will run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from suites import parts
from suites.cohorts.spec import DataSpec, PartitionSpec, SplitSpec
from suites.errors import RequestError, did_you_mean

CATALOG = Path(__file__).parent / "catalog"
FILE_SUFFIXES = (".yaml", ".yml")


class Strict(BaseModel):
    """An unknown key is an error, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LocalSpec(Strict):
    """What a site does between a broadcast and its message."""

    epochs: int = Field(default=1, ge=1)
    batch: int = Field(default=100, ge=1)
    optimiser: Literal["adam", "sgd"] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)


Flaw = Literal["pooled_client", "test_set_choice", "key_in_state", "integer_seed"]


class FederationSpec(Strict):
    """The protocol; the number of sites is the partition's, the topology is the defense's."""

    rounds: int = Field(default=10, ge=1)
    participation: float = Field(default=1.0, gt=0, le=1)
    vanishing: int = Field(default=0, ge=0)
    selection: Literal["last", "validation"] = "last"
    local: LocalSpec = LocalSpec()
    flaws: tuple[Flaw, ...] = ()


class ProbeSpec(Strict):
    """``gradients`` extra updates of ``batch`` records at each site, made at round ``round``'s checkpoint.

    Each of ``steps`` takes all of them, or the next ``minibatch`` of them in an order of the site's own, anew each epoch.
    """

    gradients: int = Field(default=4, ge=1)
    batch: int = Field(default=1, ge=1)
    round: int = Field(default=0, ge=0)
    optimiser: Literal["gradient", "sgd", "adam"] = "gradient"
    steps: int = Field(default=1, ge=1)
    lr: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    minibatch: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _stepping(self) -> ProbeSpec:
        if self.optimiser != "gradient" and self.lr == 0:
            raise ValueError(f"a probe with optimiser {self.optimiser} needs a positive lr, since a step of length 0 shows nothing")
        if self.momentum and self.optimiser != "sgd":
            raise ValueError(f"a probe with optimiser {self.optimiser} has no momentum; give optimiser: sgd, or leave momentum out")
        if self.minibatch is not None and self.optimiser == "gradient":
            raise ValueError("a probe's gradient is of all its records at once; give optimiser: sgd and steps, or leave minibatch out")
        if self.minibatch is not None and self.minibatch * self.steps < self.batch:
            raise ValueError(
                f"{self.steps} steps on {self.minibatch} records each leave some of a probe's {self.batch} records out of its message; "
                f"give at least steps: {-(-self.batch // self.minibatch)}"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_it_was(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is left out, so that suites that know no mini-batches keep their cells' ids."""
        written: dict[str, Any] = write(self)
        return {name: value for name, value in written.items() if name != "minibatch" or value is not None}


class ThreatSpec(Strict):
    """Who looks and what key they hold; ``key: partial:0.5`` is half a key."""

    view: Literal["server", "site", "outsider"] = "server"
    key: Literal["none", "wrong", "partial", "right", "leaked"] = "none"
    key_fraction: float = Field(default=1.0, gt=0, le=1)
    active: bool = False
    colluders: int = Field(default=0, ge=0)
    auxiliary: int = Field(default=0, ge=0)
    unit: Literal["record", "person", "site", "condition"] = "record"
    neighbours: Literal["known", "unknown"] = "known"
    known_pairs: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _partial(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and str(given.get("key", "")).startswith("partial:"):
            return {**given, "key": "partial", "key_fraction": str(given["key"]).removeprefix("partial:")}
        return given

    @model_validator(mode="after")
    def _measured(self) -> ThreatSpec:
        if self.active and self.view != "server":
            raise ValueError(f"only a server chooses what is sent, and this view is {self.view}; give view: server, or leave active out")
        if self.known_pairs and (self.view != "server" or self.active or self.neighbours == "unknown"):
            raise ValueError(
                "known_pairs are messages that a server sees and knows the records of; give view: server, without active and neighbours"
            )
        if self.colluders or self.unit == "condition":
            asked = f"colluders: {self.colluders}" if self.colluders else f"unit: {self.unit}"
            raise ValueError(f"{asked} is not measured yet, and a row that says so would mislead; leave it out")
        return self

    @property
    def key_label(self) -> str:
        return f"partial:{self.key_fraction:g}" if self.key == "partial" else self.key

    @property
    def view_label(self) -> str:
        label = f"active_{self.view}" if self.active else self.view
        label = label if self.neighbours == "known" else f"{label}_neighbours_unknown"
        return f"{label}_known_pairs" if self.known_pairs else label


class EngineSpec(Strict):
    """What decides the bytes but not the meaning: lanes trained together, rounds kept, references in one cell."""

    chunk: int = Field(default=1, ge=1)
    keep_every: int = Field(default=1, ge=1)
    reference_chunk: int = Field(default=8, ge=1)


class SuiteSpec(Strict):
    """One suite: a grid of defenses × attacks × threats × seeds on one task and cohort, or on one a part."""

    suite: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    title: str = ""
    task: str = "classification"
    data: DataSpec
    split: SplitSpec = SplitSpec()
    partition: PartitionSpec = PartitionSpec()
    federation: FederationSpec = FederationSpec()
    seeds: int = Field(default=3, ge=1)
    references: int = Field(default=0, ge=0)
    noise_draws: int = Field(default=1, ge=1)  # federations whose utility is averaged in a cell, where a defense adds noise
    budget: float = Field(default=1.0, gt=0)
    probes: tuple[ProbeSpec, ...] = ()
    defenses: tuple[str, ...] = Field(min_length=1)
    utility_only: tuple[str, ...] = ()  # trained beside the defenses for their utility alone: no attack looks at them
    attacks: tuple[str, ...] = ()
    threats: tuple[ThreatSpec, ...] = (ThreatSpec(),)
    engine: EngineSpec = EngineSpec()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    parts: tuple[SuiteSpec, ...] = ()  # what a part leaves open is as the suite has it; with parts, the suite's own keys are the first's

    @property
    def each(self) -> tuple[SuiteSpec, ...]:
        """The parts; a suite without any is its own."""
        return self.parts or (self,)

    @model_validator(mode="before")
    @classmethod
    def _spread(cls, given: Any) -> Any:
        return parts.spread(given) if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _told_apart(self) -> SuiteSpec:
        parts.refuse_twins([(part.task.partition(":")[0], str(part.data.name or part.data.path)) for part in self.parts])
        return self

    @field_validator("probes", mode="before")
    @classmethod
    def _one_or_many(cls, given: Any) -> Any:
        return [given] if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _probes_lie_in_training(self) -> SuiteSpec:
        late = [probe.round for probe in self.probes if probe.round >= self.federation.rounds]
        if late:
            raise ValueError(f"a probe asks for round {late[0]}, but rounds count from 0 to {self.federation.rounds - 1}")
        return self


def catalog() -> dict[str, Path]:
    """The suites that ship with the package, by name."""
    return {path.stem: path for path in sorted(CATALOG.glob("*.yaml"))}


def load(source: str | Path) -> tuple[SuiteSpec, str]:
    """The suite behind a catalogue name or a YAML file, and its text; relative paths inside are taken from the file's folder."""
    path = Path(source)
    if path.suffix not in FILE_SUFFIXES:
        known = catalog()
        if str(source) not in known:
            raise RequestError(f"there is no suite '{source}'{did_you_mean(str(source), known)} (a file's name must end in .yaml)")
        path = known[str(source)]
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RequestError(f"there is no suite file {path}; check the path or see `infl-bench list suites`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"the suite file {path} cannot be read ({error}); give a readable UTF-8 YAML file") from None
    return parse(text, path), text


def parse(text: str, path: Path) -> SuiteSpec:
    """Check the text of a suite file; ``path`` is named in errors and anchors relative paths."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_duplicates(root, path)
        given = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RequestError(
            f"{path}, line {line}: not YAML ({error.problem or error.context}); check indentation, colons and quotes"
        ) from None
    except yaml.YAMLError as error:
        raise RequestError(f"{path}: not YAML ({' '.join(str(error).split())}); save it as plain UTF-8 text") from None
    if not isinstance(given, Mapping):
        raise RequestError(f"{path}: a suite is a mapping of keys such as suite, data and defenses; see `infl-bench list suites`")
    try:
        spec = SuiteSpec.model_validate(given)
    except ValidationError as error:
        raise RequestError(_sentence(error, root, path)) from None
    return _anchor(spec, path.parent)


def override(spec: SuiteSpec, **changes: Any) -> SuiteSpec:
    """The suite with some keys replaced from the command line; ``None`` leaves a key alone, and the whole is checked again.

    Of a suite with parts each is changed.
    """
    if spec.parts:
        changed = tuple(override(part, **changes) for part in spec.parts)
        shared = {key: getattr(changed[0], key) for key in type(spec).model_fields if key not in ("title", "parts")}
        return spec.model_copy(update={**shared, "parts": changed, "title": changes.get("title") or spec.title})
    if changes.get("defenses") is not None:  # whoever names the defenses means these and no others
        changes = {"utility_only": (), **changes}
    given = {**spec.model_dump(), **{key: value for key, value in changes.items() if value is not None}}
    try:
        return SuiteSpec.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part in given or isinstance(part, str))
        raise RequestError(f"option for '{where}': {_plain(first)}") from None


def is_file_ref(ref: str) -> bool:
    """Whether a plug-in reference names a file (``my_attack.py:Mine``) rather than an entry point."""
    head = ref.split(":", 1)[0]
    return head.endswith(".py") or "/" in head


def _anchor(spec: SuiteSpec, folder: Path) -> SuiteSpec:
    """Relative paths in a suite file are relative to that file, unless only the working folder has them."""
    if spec.parts:
        near_parts = tuple(_anchor(part, folder) for part in spec.parts)
        return _anchor(spec.model_copy(update={"parts": ()}), folder).model_copy(update={"parts": near_parts})

    def near(path: str) -> str:
        beside = folder / Path(path).expanduser()
        return str(beside) if beside.exists() else path

    def plugin(ref: str) -> str:
        layers = (layer.partition(":") for layer in ref.split("+"))
        return "+".join(near(head) + colon + rest if is_file_ref(head) else head + colon + rest for head, colon, rest in layers)

    changes: dict[str, Any] = {key: tuple(plugin(ref) for ref in getattr(spec, key)) for key in ("defenses", "utility_only", "attacks")}
    changes["task"] = plugin(spec.task)
    if spec.data.path is not None:
        changes["data"] = spec.data.model_copy(update={"path": type(spec.data.path)(near(str(spec.data.path)))})
    return spec.model_copy(update=changes)


def _refuse_duplicates(node: yaml.Node | None, path: Path) -> None:
    """PyYAML keeps the last of two equal keys in silence; here that is an error."""
    stack, seen = [node], set[int]()
    while stack:
        node = stack.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            stack.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            names = set[str]()
            for key, value in node.value:
                if key.value in names:
                    raise RequestError(f"{path}, line {key.start_mark.line + 1}: the key '{key.value}' is given twice; keep one")
                if isinstance(key.value, str):
                    names.add(key.value)
                stack.append(value)


def _sentence(error: ValidationError, root: yaml.Node | None, path: Path) -> str:
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")  # a misspelt key also counts as missing: name the typo
    loc = first["loc"]
    line = _line(root, loc)
    name = next((str(part) for part in reversed(loc) if isinstance(part, str)), "")
    if first["type"] == "extra_forbidden":
        said = f"unknown key '{name}'{did_you_mean(name, _known(loc[:-1]))}"
    elif first["type"] == "missing":
        said = f"the key '{'.'.join(str(part) for part in loc)}' is missing; add it"
    else:
        said = f"'{'.'.join(str(part) for part in loc)}': {_plain(first)}" if loc else _plain(first)
    return f"{path}, line {line}: {said}"


def _plain(first: Any) -> str:
    message = str(first["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = first.get("input")
    return message if isinstance(given, Mapping | BaseModel | list | tuple) else f"{message}, but it is {given!r}"


def _line(node: yaml.Node | None, loc: tuple[int | str, ...]) -> int:
    """The line of the deepest node that the error's path reaches."""
    line = 1 if node is None else node.start_mark.line + 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == part), None)
            if pair is None:
                continue
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _known(loc: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed at a path: the fields of the model that the path's annotations lead to."""
    model: type[BaseModel] = SuiteSpec
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            found = _model_in(model.model_fields[part].annotation)
            if found is None:
                return []
            model = found
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, tuple, list, Annotated):
        return next((found for part in get_args(annotation) if (found := _model_in(part)) is not None), None)
    return None
