"""The Markdown descriptions of runs in MLflow: summary, results and how to reproduce them."""

from __future__ import annotations

from collections.abc import Mapping

from tracking.redaction import redact
from tracking.source import job_in_markdown


def describe(
    summary: str,
    *,
    results: Mapping[str, Mapping[str, float]] | None = None,
    facts: Mapping[str, str] | None = None,
    command: str | None = None,
) -> str:
    """A run's description.

    Args:
        results: row (a method) -> column (a metric's key) -> fraction.
        facts: name -> value, shown as a list.
        command: the command that reproduces the run.

    If the process runs in a Ray job, the description names the job.
    """
    paragraphs = [summary]
    if results:
        paragraphs.append(results_table(results))
    if facts:
        paragraphs.append("\n".join(f"- **{name}**: {value}" for name, value in facts.items()))
    if command:
        paragraphs.append(f"Reproduce with\n\n```bash\n{command}\n```")
    if job := job_in_markdown():
        paragraphs.append(f"Ray job: {job}")
    return redact("\n\n".join(paragraphs))


def pipeline_description(
    results: Mapping[str, Mapping[str, tuple[float, float]]],
    *,
    valid_queries: Mapping[str, str],
    command: str,
) -> str:
    """A pipeline's description.

    Args:
        results: target -> method -> mAP and rank-1, as fractions.
        valid_queries: target -> how many of its queries are valid, `24 of 24`.
        command: the command that reproduces the run.
    """
    methods: dict[str, dict[str, float]] = {}
    for target, found in results.items():
        for method, (mean_ap, rank1) in found.items():
            row = methods.setdefault(method, {})
            row |= {f"{target}/mAP": mean_ap, f"{target}/rank-1": rank1}
    return describe(
        "Re-identification in camera networks not seen in training, in per cent.",
        results=methods,
        facts={f"valid queries of {target}": text for target, text in valid_queries.items()},
        command=command,
    )


def results_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table in per cent: the best of each column is bold, a missing value is a dash."""
    columns = list(dict.fromkeys(column for row in results.values() for column in row))
    best = {
        column: max(row[column] for row in results.values() if column in row) for column in columns
    }
    lines = [
        "| | " + " | ".join(column.replace("/", " ") for column in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, row in results.items():
        cells = [_cell(row.get(column), best[column], rows=len(results)) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float | None, best: float, *, rows: int) -> str:
    if value is None:
        return "–"
    text = f"{100 * value:.1f}"
    return f"**{text}**" if rows > 1 and value == best else text
