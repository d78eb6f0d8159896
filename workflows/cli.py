"""The command line, `muva VERB`: one verb a file, in the order in which people use them."""

from __future__ import annotations

import importlib
import signal
import sys
import traceback

import click

from muva.errors import MuvaError, SettingsError
from tracking.redaction import redact
from workflows.exit_codes import INTERRUPTED
from workflows.progress import console
from workflows.verbs import VERBS


class LazyGroup(click.Group):
    """Imports a verb's module only when the verb is used: `muva --help` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order of use."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, or None for an unknown one."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"workflows.verbs.{cmd_name}")
        return getattr(module, f"{cmd_name}_verb")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs and what they do."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="muva")
def muva() -> None:
    """Domain-generalised person re-identification on Ray and MLflow.

    \b
    muva demo                    everything on synthetic people, in minutes
    muva data import NAME ...    your own images
    muva run RECIPE              data, masks, training, evaluation in one go
    """


def main(argv: list[str] | None = None) -> None:
    """Runs a verb. Exit code 0: done; 1: failed; 2: wrong usage or settings; 130: interrupted."""
    # What stops a job sends this, and an open run shall be closed then as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = muva.main(args=argv, prog_name="muva", standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as mistake:
        mistake.show()
        code = mistake.exit_code
    except SettingsError as mistake:
        code = _explain(mistake, code=2)
    except MuvaError as mistake:
        code = _explain(mistake, code=1)
    except (KeyboardInterrupt, click.Abort):
        console.print(
            "Interrupted. What was finished is kept; the same command goes on from there."
        )
        code = INTERRUPTED
    except Exception:  # a fault of ours: as Python would tell it, but for secrets
        console.print(redact(traceback.format_exc()), markup=False, highlight=False, soft_wrap=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _explain(mistake: MuvaError, *, code: int) -> int:
    console.print("Error:", style="bold red", end=" ")
    console.print(str(mistake), markup=False, soft_wrap=True)
    return code


if __name__ == "__main__":
    main()
