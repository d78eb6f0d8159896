"""mAP lost by an expert's labels compared with exact ones: `python -m benchmarks.label_cost`.

Trains MUVA with the settings of the demo, with each synthetic benchmark domain in turn as the
target and the others as sources, twice: with the exact boxes of `annotated` and with those of the
expert. Prints mean and standard deviation over the seeds, and the paired difference with its
standard error. Models that exist already are not trained again, so an interrupted run can be
resumed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from benchmarks.baseline import Row, Table, benchmark_parser, mean_of, measurement, write_results
from benchmarks.generalisation import (
    add_training_options,
    evaluate_variants,
    over_seeds,
    print_table,
    sources_for,
    values_of,
)
from tracking.names import experiment_name
from workflows.runtime.cluster import ray_cluster
from workflows.session import open_session

EXACT = "annotated"


def main() -> int:
    """Train and evaluate, then print the tables."""
    parser = benchmark_parser("label_cost", __doc__)
    parser.add_argument("--expert", default="tiny")
    add_training_options(parser)
    arguments = parser.parse_args()
    session = open_session(home=arguments.home, experiment=experiment_name("label cost"))
    experts = (EXACT, arguments.expert)
    figures: dict[str, dict[str, dict[str, list[float]]]] = {"mAP": {}, "rank-1": {}}
    with ray_cluster():
        for target in arguments.targets:
            found = {
                expert: evaluate_variants(
                    session,
                    arguments.recipe,
                    sources_for(target),
                    [target],
                    arguments.seeds,
                    {
                        "variants": ["muva"],
                        "grounding.expert": expert,
                        "execution.cpus_per_worker": arguments.cpus_per_worker,
                    },
                )[target]
                for expert in experts
            }
            for name, key in (("mAP", "mean_ap"), ("rank-1", "rank1")):
                figures[name][target] = {
                    expert: values_of(results, key)["muva"] for expert, results in found.items()
                }
    for name, by_target in figures.items():
        print(f"\n{name}, per cent, mean ± deviation over the seeds {arguments.seeds}\n")
        print_table(
            by_target, names={e: e for e in experts}, ours=arguments.expert, reference=EXACT
        )
    content = {"seeds": arguments.seeds, **figures}
    write_results(arguments, content, partial(baseline_tables, expert=arguments.expert))
    return 0


def baseline_tables(content: Mapping[str, Any], *, expert: str) -> dict[str, Table]:
    """`scores`: mAP and rank-1 of each target."""
    rows: list[Row] = []
    for target in content["mAP"]:
        for metric in ("mAP", "rank-1"):
            exact, found = (content[metric][target][labels] for labels in (EXACT, expert))
            gains = [ours - theirs for ours, theirs in zip(found, exact, strict=True)]
            rows.append(
                {
                    "target": target if metric == "mAP" else "",
                    "metric": metric,
                    "exact": measurement(mean_of(exact)),
                    "expert": measurement(mean_of(found)),
                    "difference": measurement(mean_of(gains), standard_error=True),
                }
            )
    return {"scores": Table(rows=rows, statistic=over_seeds(content["seeds"]))}


if __name__ == "__main__":
    sys.exit(main())
