"""Every file here is one algorithm against forgetting; a new one is found without being listed anywhere."""

from __future__ import annotations

from functools import cache

from pipeline.discovery import subclasses_in
from pipeline.retention.term import RetentionTerm


@cache
def retention_terms() -> dict[str, type[RetentionTerm]]:
    """{name: class} of every term in this folder."""
    terms: dict[str, type[RetentionTerm]] = {}
    for file, term in subclasses_in(__name__, RetentionTerm):
        assert term.name == file, f"{__name__}.{file} must hold a term named {file!r}"
        terms[file] = term
    return terms
