"""Re-identification of people never seen: `python -m benchmarks.zero_shot`.

Evaluates the projected class token of the tiny CLIP, of any other that `model.clip` accepts, or a
trained model, on people of all named domains across cameras. No shipped one has seen these domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from benchmarks.baseline import Table, benchmark_parser, write_results
from muva.model.clip import load_clip
from muva.models import load
from muva.pretraining.clip import HEIGHT, WIDTH, Embed, class_tokens, unseen
from muva.synthetic import DOMAINS


def main() -> None:
    """Print one row per domain."""
    parser = benchmark_parser("zero_shot", __doc__)
    parser.add_argument("--clip", default="tiny", help="as the setting model.clip")
    parser.add_argument("--stride", type=int, default=8, help="as the setting model.stride")
    parser.add_argument("--model", help="a trained model instead, as `muva.load` opens it")
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS), choices=list(DOMAINS))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.model:
        embed = _features(arguments.model)
    else:
        size = (HEIGHT, WIDTH)
        embed = class_tokens(load_clip(arguments.clip, image_size=size, stride=arguments.stride))

    figures = {}
    print("per cent\n\n| domain | rank-1 | mAP |\n|---|---|---|")
    for domain in arguments.domains:
        result = unseen(embed, domain)
        figures[domain] = {"rank1": result.cmc[1], "mean_ap": result.mean_ap}
        print(f"| {domain} | {100 * result.cmc[1]:.1f} | {100 * result.mean_ap:.1f} |", flush=True)
    name = arguments.model or arguments.clip
    write_results(arguments, figures, partial(baseline_tables, name=name))


def baseline_tables(figures: Mapping[str, Mapping[str, float]], *, name: str) -> dict[str, Table]:
    """The name of the CLIP or the model: a row per domain."""
    return {name: Table(rows=[{"domain": domain, **of} for domain, of in figures.items()])}


def _features(model: str) -> Embed:
    bundle = load(model)
    return lambda images: torch.from_numpy(bundle.embed(list(images)))


if __name__ == "__main__":
    main()
