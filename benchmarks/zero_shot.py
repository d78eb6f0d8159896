"""Zero-shot re-identification of synthetic people by CLIP: `python -m benchmarks.zero_shot`.

Evaluates the projected class token of the tiny CLIP, or of any CLIP that `model.clip` accepts,
across cameras, on people that the tiny CLIP has not seen.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from muva.model.clip import load_clip
from muva.pretraining.clip import HEIGHT, PEOPLE, WIDTH, unseen_people, zero_shot
from muva.synthetic import DOMAINS, PRETRAINING


def main() -> None:
    """Print one row per domain."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clip", default="tiny", help="as the setting model.clip")
    parser.add_argument("--stride", type=int, default=8, help="as the setting model.stride")
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS), choices=list(DOMAINS))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
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
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
