"""A registered version as a teacher: found, fetched, and checked to be one of ours before anything is read for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from consumers import topics
from model_store.model_uri import ModelUri
from model_store.registry import RegisteredVersion, Registry, ServableBroken
from pipeline.classifier import TOKENIZER_FOLDER, Classifier
from pipeline.restructuring.teacher import Teacher
from pipeline.settings import InputSettings
from pipeline.user_error import UserError

_NEWEST = 5  # so many are named where another one was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionTeacher:
    """A version, and what it serves, on the CPU."""

    uri: ModelUri  # by number, also where it was asked for by an alias
    version: RegisteredVersion
    classifier: Classifier
    servable: Path  # where it lies, for as long as the classifier is used

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.classifier.class_names

    def teacher(self) -> Teacher:
        """The classifier's own network: it is in eval mode, and nothing of it changes."""
        return Teacher(self.classifier.network, self.class_names)

    @property
    def unlabelled_topic(self) -> str:
        """Of the stream that it was learnt from, or of the records that it was distilled on."""
        for partition in self.version.offsets or {}:
            stream, _, ending = partition.topic.rpartition(".")
            if stream and ending in ("samples", "unlabelled"):
                return topics.unlabelled(stream)
        return topics.unlabelled(self.version.stream)


def find_version(registry: Registry, uri: ModelUri) -> RegisteredVersion:
    """`UserError` where there is no such version, or Palimpsest did not make it; else as the registry."""
    version = registry.find(uri.name, uri.at)
    if version is None:
        raise UserError(_no_version(registry, uri))
    if not version.is_ours:
        raise UserError(f"{uri} is no version that Palimpsest registered: name one that `palimpsest learn` has made")
    return version


def open_version(registry: Registry, uri: ModelUri, folder: Path) -> VersionTeacher:
    """Fetch its servable to `folder`, which is not there yet. No code of the artifact is run, nothing is unpickled.

    `UserError` where there is no such version, or Palimpsest did not make it; else as the registry.
    """
    version = find_version(registry, uri)
    by_number = ModelUri(name=uri.name, at=version.version)
    try:
        registry.fetch_servable(version, folder)
    except ServableBroken as error:
        raise UserError(
            f"{by_number} cannot be opened, its artifact is not whole: name another one ({error})"
        ) from None
    return VersionTeacher(uri=by_number, version=version, classifier=Classifier.load(folder), servable=folder)


def check_of_one_kind(old: VersionTeacher, new: VersionTeacher) -> None:
    """`UserError` where one could not be asked about the other's records."""
    if old.uri == new.uri:
        raise UserError(f"--old and --new are both {old.uri}: name two versions")
    if old.classifier.spec != new.classifier.spec:
        raise UserError(
            f"{old.uri} takes {_what(old)}, {new.uri} takes {_what(new)}: name two versions of one kind of input"
        )
    if not read_alike(old, new):
        raise UserError(
            f"{old.uri} and {new.uri} read texts with other tokens (vocabulary_size, checkpoint): name two versions "
            "that read them alike"
        )


def read_alike(one: VersionTeacher, other: VersionTeacher) -> bool:
    """Whether both make the same input of a payload, where their specs are the same."""
    return one.classifier.spec.kind != "text" or _reading(one) == _reading(other)


def _no_version(registry: Registry, uri: ModelUri) -> str:
    """What there is instead."""
    known = registry.versions(uri.name)
    if not known:
        return f"{uri}: there is no model {uri.name!r} in this MLflow; check the name, or --tracking-uri"
    newest = ", ".join(str(entry.version) for entry in reversed(known[-_NEWEST:]))
    aliases = sorted(alias for entry in known for alias in entry.aliases)
    what = f"no version {uri.at}" if isinstance(uri.at, int) else f"no alias {uri.at!r}"
    more = f", its aliases {', '.join(aliases)}" if aliases else ""
    return f"{uri}: model {uri.name!r} has {what}; its newest versions are {newest}{more}"


def _what(teacher: VersionTeacher) -> str:
    spec = teacher.classifier.spec
    return f"{spec.kind} of shape {spec.shape}"


def _reading(teacher: VersionTeacher) -> tuple[object, ...]:
    """What a text becomes: hashed characters, or the tokens of a tokenizer."""
    settings: InputSettings = teacher.classifier.input_settings
    if settings.checkpoint is None:
        return (settings.vocabulary_size,)
    files = sorted((teacher.servable / TOKENIZER_FOLDER).iterdir())
    return tuple((file.name, file.read_bytes()) for file in files)
