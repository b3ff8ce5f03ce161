"""The parser of all commands, and what becomes of an error."""

import argparse
import sys

from keras_lowrank.command_line import adapters, convert, export, inspect

_COMMANDS = {"inspect": inspect, "convert": convert, "export": export, "adapters": adapters}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message):
        self.exit(2, f"error: {message}. See {self.prog} --help\n")


def main(argv=None):
    """Runs the command that `argv` names, `sys.argv[1:]` by default."""
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if arguments.run is None:
        parser.print_help()
        return
    try:
        arguments.run(arguments)
    except Exception as error:  # whatever it is, of Keras, of a file or of an argument: one line
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(1)


def _parser():
    parser = _Parser(
        prog="python -m keras_lowrank",
        usage="%(prog)s COMMAND ...",
        description="Look into a Keras model, convert it to low-rank layers, and export it.",
        epilog="COMMAND --help has the arguments of a command.",
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
