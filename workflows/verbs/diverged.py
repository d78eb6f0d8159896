"""`python -m workflows.verbs.diverged ARTIFACT`: the step at which a training diverged, repeated.

A training whose loss is not finite keeps the state before that step under its artifact. This builds
the same model from the same data, does the step again in one process, and tells each loss and, of
stage 2, which images' features are not finite. Nothing is written.
"""

from __future__ import annotations

import sys

import click

from muva.data.artifacts import open_artifact
from muva.errors import MuvaError
from workflows.verb import json_option, override_option, print_result


@click.command()
@click.argument("artifact")
@override_option
@json_option
def main(artifact: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Repeat the step at which a training of ARTIFACT (STORE/models/NAME-FINGERPRINT) diverged.

    \b
    python -m workflows.verbs.diverged runs/store/models/muva-0123456789abcdef
    python -m workflows.verbs.diverged ... --set stage2.precision=fp32
    """
    from workflows.steps.diverged import repeat_diverged

    try:
        found = repeat_diverged(open_artifact(artifact), overrides=overrides)
    except MuvaError as mistake:
        sys.exit(f"Error: {mistake}")
    print_result(found, as_json=as_json, text="\n".join(f"{k}: {v}" for k, v in found.items()))


if __name__ == "__main__":
    main()
