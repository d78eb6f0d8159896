"""Zero-shot re-identification of synthetic people by CLIP: `python -m benchmarks.zero_shot`.

Evaluates the projected class token of the tiny CLIP, or of any CLIP that `model.clip` accepts,
across cameras, on people that the tiny CLIP has not seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from benchmarks.baseline import Table, benchmark_parser, write_results
from muva.model.clip import load_clip
from muva.pretraining.clip import HEIGHT, PEOPLE, WIDTH, unseen_people, zero_shot
from muva.synthetic import DOMAINS, PRETRAINING


def main() -> None:
    """Print one row per domain."""
    parser = benchmark_parser("zero_shot", __doc__)
    parser.add_argument("--clip", default="tiny", help="as the setting model.clip")
    parser.add_argument("--stride", type=int, default=8, help="as the setting model.stride")
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS), choices=list(DOMAINS))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clip = load_clip(arguments.clip, image_size=(HEIGHT, WIDTH), stride=arguments.stride)

    figures = {}
    print("per cent\n\n| domain | rank-1 | mAP |\n|---|---|---|")
    for domain in arguments.domains:
        result = zero_shot(
            clip, domain, pids=unseen_people(domain, pretrained_on=PEOPLE // len(PRETRAINING))
        )
        figures[domain] = {"rank1": result.cmc[1], "mean_ap": result.mean_ap}
        print(f"| {domain} | {100 * result.cmc[1]:.1f} | {100 * result.mean_ap:.1f} |", flush=True)
    write_results(arguments, figures, partial(baseline_tables, clip=arguments.clip))


def baseline_tables(figures: Mapping[str, Mapping[str, float]], *, clip: str) -> dict[str, Table]:
    """The CLIP's name: a row per domain."""
    note = "new people of a domain it was trained on"
    rows = [
        {"domain": domain, **of} | ({"note": note} if domain in PRETRAINING else {})
        for domain, of in sorted(figures.items(), key=lambda item: item[0] in PRETRAINING)
    ]
    return {clip: Table(rows=rows)}


if __name__ == "__main__":
    main()
