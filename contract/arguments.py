"""Parameters as options of a command line."""

import argparse
from pathlib import Path

from contract.media import MEDIA
from contract.parameters import PARAMETERS


def add_media(parser: argparse.ArgumentParser) -> None:
    """`--image FILE` and so on for every picture and clip; None where left out."""
    for medium in MEDIA:
        option = f"--{medium.name.replace('_', '-')}"
        parser.add_argument(option, type=Path, metavar="FILE", help=f"{medium.help} A file.")


def given_media(arguments: argparse.Namespace) -> dict[str, Path]:
    """The pictures and clips that the command line named."""
    files = {medium.name: getattr(arguments, medium.name) for medium in MEDIA}
    return {name: path for name, path in files.items() if path is not None}


def add(parser: argparse.ArgumentParser, without: tuple[str, ...] = (), required: tuple[str, ...] = ()) -> None:
    """`--guidance-scale` and so on for every parameter but those `without`; what is left out is None."""
    for p in PARAMETERS:
        if p.name not in without:
            about = f"{p.help or p.label + '.'} {p.rule.words()}".replace("%", "%%")
            option = f"--{p.name.replace('_', '-')}"
            parser.add_argument(option, type=p.rule.python, required=p.name in required, help=about)


def given(arguments: argparse.Namespace) -> dict:
    """The parameters that the command line said."""
    values = {p.name: getattr(arguments, p.name, None) for p in PARAMETERS}
    return {name: value for name, value in values.items() if value is not None}
