"""Arguments, with what may have been meant where they are wrong."""

import argparse
from collections.abc import Sequence
from typing import Any

from ..errors import did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser that names what is nearest to an unknown flag or value."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"allow_abbrev": False})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See :class:`argparse.ArgumentParser`."""
        self._check_flags(args or ())
        return super().parse_known_args(args, namespace)

    def _check_flags(self, words: Sequence[str]) -> None:
        """Refuse unknown flags first: what else is wrong may follow from them."""
        for word in words:
            if word == "--" or (self._subparsers and not word.startswith("-")):
                break  # What follows is another parser's, or no flag.
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                self.error(
                    f"unrecognized arguments: {flag}"
                    f"{did_you_mean(flag, self._option_string_actions)}; see {self.prog} --help"
                )

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            known = [str(choice) for choice in action.choices or ()]
            error.message += did_you_mean(str(value), known)
            raise


def leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return a command's parser, or those of its subcommands if it has some."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return [leaf for part in action.choices.values() for leaf in leaves(part)]
    return [parser]


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Add ``-q`` and ``-v``."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "-q", "--quiet", action="store_true", help="print results and errors, nothing else"
    )
    group.add_argument(
        "-v", "--verbose", action="store_true", help="say more, and where errors come from"
    )
