"""The command line, `muva VERB`: one file per verb, listed in order of use."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import traceback
from itertools import pairwise
from pathlib import Path

import click

from muva.errors import MuvaError, SettingsError
from tracking.redaction import redact
from workflows.exit_codes import INTERRUPTED
from workflows.progress import console, say
from workflows.runtime.lost_processes import lost_process
from workflows.verbs import VERBS


class LazyGroup(click.Group):
    """Imports a verb's module only when the verb is used, so that `muva --help` is fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in order of use."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, or None if there is no such verb."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"workflows.verbs.{cmd_name}")
        return getattr(module, f"{cmd_name}_verb")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the verbs with their descriptions."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="muva")
def muva() -> None:
    """Domain-generalised person re-identification on Ray and MLflow.

    \b
    muva demo                    run the whole workflow on synthetic people, in minutes
    muva data import NAME ...    import your own images
    muva run RECIPE              import, ground, train and evaluate with one command
    """


def main(argv: list[str] | None = None) -> None:
    """Runs a verb and exits: 0 on success, 1 on failure, 2 on wrong usage or settings, 130 if
    interrupted.
    """
    _replace_closed_streams()
    # Stopping a job sends SIGTERM. Open runs must then be closed, as they are on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _check_arguments(sys.argv[1:] if argv is None else argv)
        _check_folders()
        code = muva.main(args=argv, prog_name="muva", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except SettingsError as error:
        code = _print_error(error, code=2)
    except MuvaError as error:
        code = _print_error(error, code=1)
    except (KeyboardInterrupt, click.Abort):
        console.print("Interrupted. Finished work is kept: run the same command again to resume.")
        code = INTERRUPTED
    except Exception as error:
        code = 1
        if isinstance(error, OSError) and _is_of_output(error):
            _print_error(OutputError(error.strerror or str(error)), code=code)
        elif lost := lost_process(error):
            _print_error(lost, code=code)
        else:  # a bug: print the traceback as Python does, without secrets
            say(redact(traceback.format_exc()))
    sys.exit(code if isinstance(code, int) else 0)


def _replace_closed_streams() -> None:
    """Discard what is written to a standard stream that the caller has closed (`>&-`).

    Python has no object for it then, and a file that is opened later could get its descriptor.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        null = Path(os.devnull).open("r" if number == 0 else "w")  # noqa: SIM115
        # Processes that are started here are to inherit it: they have the same problem.
        if null.fileno() == number:
            os.set_inheritable(number, True)
        elif not _is_open(number):
            os.dup2(null.fileno(), number)
        setattr(sys, name, null)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _check_arguments(argv: list[str]) -> None:
    """An empty argument, such as an unset variable of the shell, would be the current folder."""
    for before, word in pairwise(("muva", *argv)):
        if not word or re.fullmatch(r"--[a-z-]+=", word):
            place = word or f"after {redact(before)}"
            raise click.UsageError(
                f"An argument is empty, {place}. Is a variable of the shell not set?"
            )


def _check_folders() -> None:
    """Much needs a current folder, and a home folder, which a user id without a name may not have.

    Without the first, torch says that its own files cannot be loaded.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise MuvaError(
            f"The current folder cannot be opened ({error.strerror}): it may have been deleted. "
            "Change to another folder, for example with `cd`"
        ) from error
    try:
        Path.home()
    except RuntimeError as error:
        raise MuvaError(
            f"User id {os.getuid()} has no home folder: set HOME to a folder that this account can "
            "write to"
        ) from error


class OutputError(MuvaError):
    """Standard output takes nothing more."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The result cannot be written to standard output: {reason}. Expected a terminal, a "
            "pipe or a file on a disk with free space. Finished work is kept: run the same command "
            "again."
        )


def _is_of_output(error: OSError) -> bool:
    """Whether the error is that standard output takes nothing more, as on a full disk.

    What could not be written is discarded: Python would try again at its end, and complain.
    """
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    try:
        sys.stdout.flush()  # fails again, unless the text was too long to be buffered
        if raised_in != click.echo.__code__.co_filename:
            return False
    except OSError:
        pass
    discarded = os.open(os.devnull, os.O_WRONLY)
    os.dup2(discarded, sys.stdout.fileno())
    os.close(discarded)
    return True


def _print_error(error: MuvaError, *, code: int) -> int:
    console.print("Error:", style="bold red", end=" ")
    say(str(error))
    return code


if __name__ == "__main__":
    main()
