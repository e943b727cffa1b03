"""Every file here opens one kind of data set; a new one is found without being listed anywhere."""

from __future__ import annotations

from functools import cache

from pipeline.discovery import subclasses_in
from pipeline.user_error import UserError
from producers.dataset_source import DatasetOptions, DatasetSource
from producers.labelled_dataset import LabelledDataset, check_not_empty


@cache
def dataset_sources() -> dict[str, tuple[str, DatasetSource]]:
    """{what stands before the colon: (form, source)} of every source in this folder."""
    sources: dict[str, tuple[str, DatasetSource]] = {}
    for _, source in subclasses_in(__name__, DatasetSource):  # type: ignore[type-abstract]
        for form in source.forms:
            head = form.partition(":")[0]
            assert head not in sources, f"{source.__name__}: {head!r} is opened by another source already"
            sources[head] = (form, source())
    return sources


def dataset_forms() -> list[str]:
    """All that may stand after --dataset."""
    return [form for form, _ in dataset_sources().values()]


def open_dataset(spec: str, options: DatasetOptions | None = None) -> LabelledDataset:
    """`digits`, `mnist`, `folder:DIR`, ... as a data set with at least one item, or `UserError`."""
    head, colon, argument = spec.partition(":")
    if head not in dataset_sources():
        raise UserError(f"unknown data set {spec!r}; known are {', '.join(sorted(dataset_forms()))}")
    form, source = dataset_sources()[head]
    if ":" in form and not argument:
        raise UserError(f"data set {spec!r} is not complete; write {form}")
    if ":" not in form and colon:
        raise UserError(f"data set {head!r} takes nothing after its name; got {spec!r}")
    options = options or DatasetOptions()
    dataset = source.open(head, argument, options)
    check_not_empty(dataset, spec)
    dataset.opened_as = options.canonical
    return dataset
