"""What a person reads of a job that has made something: the worker's lines, and those of the commands by hand."""

from __future__ import annotations

from consumers.restructuring_job import JobReport


def job_lines(report: JobReport) -> list[str]:
    """How it was judged, what became of the network's size, and what it had to do without."""
    before, after = report.before, report.after
    lines = [
        *report.judgement.reasons,
        f"sub-modules: {before.sub_modules} before, {after.sub_modules} now; parameters: {before.parameters:,} before, "
        f"{after.parameters:,} now",
    ]
    if report.from_reservoir:
        lines.append("the log no longer holds the new classes' first records: the reservoir's samples were taken")
    if not report.unlabelled_rows:
        lines.append("without unlabelled records: there are none, or the settings hear none")
    lines += report.did_without
    return lines
