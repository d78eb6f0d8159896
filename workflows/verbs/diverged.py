"""`python -m workflows.verbs.diverged ARTIFACT`: repeats the step at which a training diverged.

A training whose loss is not finite keeps a checkpoint from before that step under its artifact.
This command builds the same model from the same data, repeats the step in one process, and prints
each loss and, in stage 2, the images whose features are not finite. It writes nothing.
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
        result = repeat_diverged(open_artifact(artifact), overrides=overrides)
    except MuvaError as error:
        sys.exit(f"Error: {error}")
    print_result(result, as_json=as_json, text="\n".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
