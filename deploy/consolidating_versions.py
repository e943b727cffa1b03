"""Puts a consolidation of two registered versions together: what `palimpsest consolidate --old --new` runs."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from consumers import topics
from consumers.kafka_record_source import KafkaRecordSource
from consumers.state_lock import job_lock
from consumers.version_consolidation import VersionConsolidation, VersionReport
from consumers.version_teacher import VersionTeacher, check_of_one_kind, open_version
from deploy.existing_registry import existing_registry, registry_errors
from deploy.learning import chosen_tracking_uri
from deploy.settings import Settings
from model_store.durable_files import TEMPORARY_PREFIX, remove_temporary
from model_store.model_uri import ModelUri
from model_store.registry import Registry, check_model_name
from pipeline.device import configure_torch
from pipeline.restructuring.consolidation_settings import for_ready_teachers
from pipeline.restructuring.progress import Progress
from pipeline.user_error import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVersions:
    """Two versions that go together, and all that a job on them needs."""

    old: VersionTeacher
    new: VersionTeacher
    topic: str  # of unlabelled records
    off: tuple[str, ...]  # settings that two ready teachers cannot have
    registry: Registry
    register: str  # the model that gets the version
    work: Path
    scratch: Path  # goes at the end
    settings: Settings

    @property
    def shared(self) -> tuple[str, ...]:
        """Classes that both know."""
        return tuple(name for name in self.old.class_names if name in self.new.class_names)

    def run(self, *, progress: Progress, stop: threading.Event) -> VersionReport | None:
        """Connect to the brokers and do the job. Raises as `VersionConsolidation.run`."""
        kafka, learner = self.settings.kafka, self.settings.learner
        consolidation, _ = for_ready_teachers(self.settings.consolidation)
        configure_torch(learner)
        partitions = topics.check_unlabelled_topic(kafka, self.topic)
        with KafkaRecordSource(kafka, partitions) as source, registry_errors():
            job = VersionConsolidation(
                registry=self.registry,
                register=self.register,
                unlabelled=source,
                work=self.work,
                scratch=self.scratch,
                consolidation=consolidation,
                hold_out=learner.hold_out,
                seed=learner.seed,
                device=learner.device,
            )
            return job.run(self.old, self.new, progress=progress, stop=stop)


@contextmanager
def open_versions(
    old: str,
    new: str,
    *,
    register: str | None,
    unlabelled: str | None,
    stream: str | None,
    work: Path,
    settings: Settings,
) -> Iterator[OpenVersions]:
    """Find both in MLflow and fetch them; what was fetched goes at the end.

    `register`: the model that gets the version, default `new`'s. `unlabelled`: a topic, default that of `stream`, and
    without one that of the stream that `new` was learnt from. Raises `UserError`, `RegistryUnavailable`, `OSError`.
    """
    old_uri, new_uri = ModelUri.parse(old), ModelUri.parse(new)
    register = register or new_uri.name
    check_model_name(register)
    registry = existing_registry(chosen_tracking_uri(settings, work))
    _make_folder(work)
    with ExitStack() as stack:
        stack.enter_context(job_lock(work))
        remove_temporary(work)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=work)))
        with registry_errors():
            teachers = [
                open_version(registry, uri, scratch / name) for uri, name in ((old_uri, "old"), (new_uri, "new"))
            ]
        check_of_one_kind(*teachers)
        _, off = for_ready_teachers(settings.consolidation)
        yield OpenVersions(
            old=teachers[0],
            new=teachers[1],
            topic=unlabelled or (topics.unlabelled(stream) if stream else teachers[1].unlabelled_topic),
            off=off,
            registry=registry,
            register=register,
            work=work,
            scratch=scratch,
            settings=settings,
        )


def _make_folder(work: Path) -> None:
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make work folder {work}: {error.strerror}; give another --work") from None
