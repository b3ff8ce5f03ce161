"""The parser of all commands, and the form of errors."""

import argparse
import sys
from types import ModuleType
from typing import NoReturn

from keras_lowrank.command_line import adapters, convert, export, inspect, merge

_COMMANDS: dict[str, ModuleType] = {
    "inspect": inspect,
    "convert": convert,
    "export": export,
    "adapters": adapters,
    "merge": merge,
}


class _Parser(argparse.ArgumentParser):
    """A parser that prints errors on one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}. See {self.prog} --help\n")


def main(argv: list[str] | None = None) -> None:
    """Runs a command.

    Args:
        argv: list of str, the command and its arguments, or None for `sys.argv[1:]`.

    Raises:
        SystemExit: with status 2 for an error in the arguments, 1 for any other error.
    """
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if arguments.run is None:
        parser.print_help()
        return
    try:
        arguments.run(arguments)
    except Exception as error:  # of any class: a user of the command line needs no traceback
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m keras_lowrank",
        usage="%(prog)s COMMAND ...",
        description="Inspect, convert and export a Keras model, and merge adapters into it.",
        epilog="COMMAND --help lists the arguments of a command.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=None, parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", prog=parser.prog)
    for name, command in _COMMANDS.items():
        one = commands.add_parser(
            name,
            usage=f"%(prog)s {command.USAGE} [options]",
            help=f"{command.SUMMARY}: {name} {command.EXAMPLE}",
            description=command.run.__doc__,
            allow_abbrev=False,
        )
        command.add_arguments(one)
        one.set_defaults(run=command.run, parser=one)
    return parser
