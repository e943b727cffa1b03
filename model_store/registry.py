"""Versions of a stream's model: the contract, and its twin in memory.

Tags begin with `palimpsest.`; aliases are used, stages never.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast, get_args

from model_store.lineage import Lineage, lineage
from model_store.offsets import offsets_json
from pipeline.record import Partition
from pipeline.user_error import UserError

Alias = Literal["champion", "challenger", "previous"]
ALIASES: tuple[Alias, ...] = get_args(Alias)

SNAPSHOT_SHA256_TAG = "palimpsest.snapshot_sha256"
OFFSETS_TAG = "palimpsest.offsets"
CLASSES_TAG = "palimpsest.classes"
CLASS_COUNT_TAG = "palimpsest.class_count"
TRIGGER_TAG = "palimpsest.trigger"
PARENT_VERSION_TAG = "palimpsest.parent_version"
AVERAGE_ACCURACY_TAG = "palimpsest.average_accuracy"
AVERAGE_FORGETTING_TAG = "palimpsest.average_forgetting"
WORST_CLASS_TAG = "palimpsest.worst_class"
STATE_ID_TAG = "palimpsest.state_id"
RECORDS_TRAINED_TAG = "palimpsest.records_trained"
SUPERSEDED_BY_TAG = "palimpsest.superseded_by"
# Of a version that was made of two others by hand: `models:/NAME/NUMBER`.
OLD_VERSION_TAG = "palimpsest.old_version"
NEW_VERSION_TAG = "palimpsest.new_version"

# What every MLflow server takes: older ones refuse longer tags, newer ones those of more than 100,000 characters. What
# is cut stands whole in the artifact's provenance.json, and the tag says so.
MAX_TAG_CHARACTERS = 5_000
PROVENANCE_FILE = "provenance.json"
# Of `pipeline.classifier`, which is not imported for them: it takes torch with it, which the registrar does without.
SERVABLE_FILES = ("servable.json", "weights.safetensors")

# Kafka's legal topic characters: what a stream may be called. It keeps "/", ":" and quotes out of names and filters.
_STREAM = re.compile(r"^[A-Za-z0-9._-]{1,200}$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")


class RegistryUnavailable(Exception):
    """The registry cannot be reached or cannot answer now: try again later."""


class RegistryRefused(Exception):
    """The registry answered, and refused: credentials, a deleted experiment, a request it does not take."""


class ServableBroken(Exception):
    """What should be registered is not a whole servable: no retry will help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricPoint:
    """One value of one metric. `step` counts records trained on."""

    name: str
    value: float
    step: int
    timestamp_ms: int  # when it was measured; a point that is logged twice is the same point


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationRequest:
    """What a version is made of, but for its parent, which the registry knows."""

    stream: str
    state_id: str
    snapshot_sha256: str
    offsets: Mapping[Partition, int]
    classes: tuple[str, ...]
    trigger: str  # periodic, consolidation, expansion, manual, final
    servable: Path  # a folder as written by `Classifier.save`
    records_trained: int = 0
    average_accuracy: float | None = None  # on the hold-outs, as `average_forgetting`
    average_forgetting: float | None = None
    worst_class: str | None = None
    parent_version: int | None = None  # None: the newest of this state when it is registered, of the line it is of
    goes_back: bool = False  # an adopted state, still on its way back: what has seen more of the log is superseded
    metrics: tuple[MetricPoint, ...] = ()  # since the last request
    tags: Mapping[str, str] = field(default_factory=dict)  # further ones

    def __post_init__(self) -> None:
        check_model_name(self.stream)
        assert _SHA256.match(self.snapshot_sha256), f"not a SHA-256: {self.snapshot_sha256!r}"
        assert self.trigger, "a version has a trigger"

    def version_tags(self, parent_version: int | None) -> dict[str, str]:
        """The tags of the version, each within MLflow's limit."""
        tags = {
            **self.tags,
            SNAPSHOT_SHA256_TAG: self.snapshot_sha256,
            STATE_ID_TAG: self.state_id,
            OFFSETS_TAG: _offsets_tag(self.offsets),
            CLASSES_TAG: _classes_tag(self.classes),
            CLASS_COUNT_TAG: str(len(self.classes)),
            TRIGGER_TAG: self.trigger,
            RECORDS_TRAINED_TAG: str(self.records_trained),
        }
        if parent_version is not None:
            tags[PARENT_VERSION_TAG] = str(parent_version)
        averages = {AVERAGE_ACCURACY_TAG: self.average_accuracy, AVERAGE_FORGETTING_TAG: self.average_forgetting}
        for tag, average in averages.items():
            if average is not None and math.isfinite(average):
                tags[tag] = f"{average:.6f}"
        if self.worst_class is not None:
            tags[WORST_CLASS_TAG] = self.worst_class[:MAX_TAG_CHARACTERS]
        return tags

    def provenance(self) -> bytes:
        """JSON of everything that made the version, uncut; it lies in the version's artifact."""
        return json.dumps(
            {
                "stream": self.stream,
                "state_id": self.state_id,
                "snapshot_sha256": self.snapshot_sha256,
                "offsets": offsets_json(self.offsets),
                "classes": list(self.classes),
                "trigger": self.trigger,
                "records_trained": self.records_trained,
                "average_accuracy": self.average_accuracy,
                "average_forgetting": self.average_forgetting,
                "worst_class": self.worst_class,
                "tags": dict(self.tags),
            },
            ensure_ascii=False,
            indent=1,
        ).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredVersion:
    """A version as the registry has it."""

    stream: str
    version: int
    tags: Mapping[str, str]
    aliases: frozenset[str]
    created_at_ms: int
    run_id: str | None

    @property
    def snapshot_sha256(self) -> str | None:
        return self.tags.get(SNAPSHOT_SHA256_TAG)

    @property
    def trigger(self) -> str | None:
        return self.tags.get(TRIGGER_TAG)

    @property
    def parent_version(self) -> int | None:
        return self._number(PARENT_VERSION_TAG)

    @property
    def superseded_by(self) -> int | None:
        """The version whose line went back to before this one's records; None: it is of the present line."""
        return self._number(SUPERSEDED_BY_TAG)

    @property
    def records_trained(self) -> int | None:
        return self._number(RECORDS_TRAINED_TAG)

    @property
    def state_id(self) -> str | None:
        return self.tags.get(STATE_ID_TAG)

    @property
    def is_ours(self) -> bool:
        """Whether Palimpsest registered it."""
        return SNAPSHOT_SHA256_TAG in self.tags

    def _number(self, tag: str) -> int | None:
        text = self.tags.get(tag, "")
        return int(text) if text.isascii() and text.isdecimal() else None

    @property
    def offsets(self) -> dict[Partition, int] | None:
        """None: too many partitions for a tag; they stand in the artifact's provenance.json."""
        try:
            topics = json.loads(self.tags.get(OFFSETS_TAG, "null"))
        except ValueError:
            return None
        if not isinstance(topics, dict) or "see" in topics:
            return None
        return {
            Partition(topic, int(number)): int(offset)
            for topic, numbers in topics.items()
            for number, offset in cast("dict[str, int]", numbers).items()
        }


class Registry(ABC):
    """Where versions are kept.

    From every method `RegistryUnavailable`: try again later; `RegistryRefused`: it said no.
    """

    @abstractmethod
    def register(self, request: RegistrationRequest) -> RegisteredVersion:
        """Make a version of a snapshot, or find the one that was made of it before. Its metrics are logged too.

        A version of which the snapshot's SHA-256 tag exists is never made again, however often a killed caller comes
        back. The newest version gets the alias `challenger`, and those that it supersedes are told so (`lineage.py`).
        `ServableBroken` where the folder holds no servable.
        """

    @abstractmethod
    def versions(self, stream: str) -> list[RegisteredVersion]:
        """All versions of a stream's model, oldest first; [] where it has none."""

    @abstractmethod
    def newest(self, stream: str, count: int) -> list[RegisteredVersion]:
        """At most so many of them, the newest, oldest first. After months there are thousands: it is one request."""

    @abstractmethod
    def find(self, stream: str, at: int | str) -> RegisteredVersion | None:
        """A version by its number, or by an alias, be it one of ours or not."""

    @abstractmethod
    def fetch_servable(self, version: RegisteredVersion, folder: Path) -> None:
        """Copy the servable that the version was made of, for `Classifier.load`, to `folder`, which is not there yet.

        Nothing of the artifact is run. `ServableBroken` where there is none in it.
        """

    @abstractmethod
    def alias(self, stream: str, alias: Alias) -> RegisteredVersion | None:
        """The version that an alias points to."""

    @abstractmethod
    def set_alias(self, stream: str, alias: Alias, version: int | None) -> None:
        """Point an alias to a version (`UserError` where there is none such), or (None) take it away."""

    @abstractmethod
    def set_tag(self, stream: str, version: int, name: str, value: str) -> None:
        """Give a version a tag, or another value for one that it has. `UserError` where there is no such version.

        What the registries in use take in full is `MAX_TAG_CHARACTERS`; more is a mistake of the caller's.
        """

    @abstractmethod
    def log_metrics(self, stream: str, state_id: str, points: Sequence[MetricPoint]) -> None:
        """Add points to the metrics of a learner's state. The same point twice is one."""


class InMemoryRegistry(Registry):
    """The twin for tests. `available = False` makes it a registry that is away."""

    def __init__(self) -> None:
        self.available = True
        self.metrics: dict[tuple[str, str], set[MetricPoint]] = {}  # (stream, state_id) -> points
        self._versions: dict[str, list[RegisteredVersion]] = {}
        self._aliases: dict[str, dict[str, int]] = {}
        self._servables: dict[tuple[str, int], dict[str, bytes]] = {}  # (stream, version) -> content by path
        self._lock = threading.Lock()

    def register(self, request: RegistrationRequest) -> RegisteredVersion:
        with self._lock:
            self._check_available()
            check_servable(request.servable)
            stream = request.stream
            known = self._versions.setdefault(stream, [])
            found = next((entry for entry in known if entry.snapshot_sha256 == request.snapshot_sha256), None)
            if found is None:
                self.metrics.setdefault((stream, request.state_id), set()).update(request.metrics)
                parent = _lineage(known, request).parent
                found = RegisteredVersion(
                    stream=stream,
                    version=known[-1].version + 1 if known else 1,
                    tags=request.version_tags(parent if request.parent_version is None else request.parent_version),
                    aliases=frozenset(),
                    created_at_ms=time.time_ns() // 1_000_000,
                    run_id=f"{stream}/{request.state_id}",
                )
                known.append(found)
                self._servables[stream, found.version] = _contents(request.servable)
            if request.goes_back:
                abandoned = _lineage(known[: found.version - 1], request).abandoned
                for number in abandoned:
                    entry = known[number - 1]
                    known[number - 1] = replace(entry, tags={**entry.tags, SUPERSEDED_BY_TAG: str(found.version)})
            if found is known[-1]:
                self._aliases.setdefault(stream, {})["challenger"] = found.version
            return self._with_aliases(found)

    def versions(self, stream: str) -> list[RegisteredVersion]:
        with self._lock:
            self._check_available()
            return [self._with_aliases(entry) for entry in self._versions.get(stream, [])]

    def newest(self, stream: str, count: int) -> list[RegisteredVersion]:
        return self.versions(stream)[-count:]

    def find(self, stream: str, at: int | str) -> RegisteredVersion | None:
        return next((entry for entry in self.versions(stream) if at == entry.version or at in entry.aliases), None)

    def fetch_servable(self, version: RegisteredVersion, folder: Path) -> None:
        self._check_available()
        for name, content in self._servables[version.stream, version.version].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    def alias(self, stream: str, alias: Alias) -> RegisteredVersion | None:
        number = self._aliases.get(stream, {}).get(alias)
        return next((entry for entry in self.versions(stream) if entry.version == number), None)

    def set_alias(self, stream: str, alias: Alias, version: int | None) -> None:
        known = [entry.version for entry in self.versions(stream)]
        if version is None:
            self._aliases.get(stream, {}).pop(alias, None)
        elif version in known:
            self._aliases.setdefault(stream, {})[alias] = version
        else:
            raise UserError(f"model {stream!r} has no version {version}; it has {known}")

    def set_tag(self, stream: str, version: int, name: str, value: str) -> None:
        check_tag(name, value)
        with self._lock:
            self._check_available()
            known = self._versions.get(stream, [])
            for place, entry in enumerate(known):
                if entry.version == version:
                    known[place] = replace(entry, tags={**entry.tags, name: value})
                    return
        raise UserError(f"model {stream!r} has no version {version}; it has {[entry.version for entry in known]}")

    def log_metrics(self, stream: str, state_id: str, points: Sequence[MetricPoint]) -> None:
        self._check_available()
        self.metrics.setdefault((stream, state_id), set()).update(points)

    def _check_available(self) -> None:
        if not self.available:
            raise RegistryUnavailable("the registry in memory was told to be away")

    def _with_aliases(self, entry: RegisteredVersion) -> RegisteredVersion:
        aliases = self._aliases.get(entry.stream, {})
        return replace(entry, aliases=frozenset(name for name, version in aliases.items() if version == entry.version))


def check_model_name(name: str) -> None:
    """`UserError` where no stream, and so no registered model, can be called so."""
    if not _STREAM.match(name) or name.strip(".") == "":
        raise UserError(f"stream {name!r} cannot name a model; use letters, digits, '.', '_' and '-'")


def check_tag(name: str, value: str) -> None:
    """Only ours are set, and none that a server might cut or refuse."""
    assert name.startswith("palimpsest."), f"{name!r} is not a tag of ours"
    assert len(value) <= MAX_TAG_CHARACTERS, f"tag {name!r} has {len(value)} characters, more than {MAX_TAG_CHARACTERS}"


def lineage_of(older: Iterable[RegisteredVersion], request: RegistrationRequest) -> Lineage:
    """Of the version that is to be, or was, made of the request. `older`: of its state, newest first."""
    return lineage(older, goes_back=request.goes_back, records_trained=request.records_trained, offsets=request.offsets)


def check_servable(folder: Path, called: str | None = None) -> None:
    """`ServableBroken` where the two files of a servable are not there; `called`: what a person knows it as."""
    for name in SERVABLE_FILES:
        if not (folder / name).is_file():
            raise ServableBroken(f"{called or folder} has no {name}")


def _lineage(known: Sequence[RegisteredVersion], request: RegistrationRequest) -> Lineage:
    return lineage_of((entry for entry in reversed(known) if entry.state_id == request.state_id), request)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _offsets_tag(offsets: Mapping[Partition, int]) -> str:
    """{"topic": {"partition": offset}} as JSON."""
    topics: dict[str, dict[str, int]] = {}
    for partition, offset in sorted(offsets.items()):
        topics.setdefault(partition.topic, {})[str(partition.number)] = offset
    text = json.dumps(topics, separators=(",", ":"))
    return text if len(text) <= MAX_TAG_CHARACTERS else json.dumps({"see": PROVENANCE_FILE})


def _classes_tag(classes: Sequence[str]) -> str:
    """A JSON list of the names; a long one is cut after a name, and its last entry says how many more there are."""
    text = json.dumps(list(classes), ensure_ascii=False)
    if len(text) <= MAX_TAG_CHARACTERS:
        return text
    kept: list[str] = []
    length = 100  # brackets and the last entry
    for name in classes:
        length += len(json.dumps(name, ensure_ascii=False)) + 2
        if length > MAX_TAG_CHARACTERS:
            break
        kept.append(name)
    return json.dumps([*kept, f"... and {len(classes) - len(kept)} more: {PROVENANCE_FILE}"], ensure_ascii=False)
