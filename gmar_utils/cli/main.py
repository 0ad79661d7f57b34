"""The command line: gmar explain | evaluate | finetune | trust | info."""

import argparse
import importlib
import os
import re
import sys
import warnings

from .. import __version__
from .output import described, printable, say

COMMANDS = {  # name: (the module with its add_arguments and main, help)
    "explain": ("gmar_utils.cli.explain", "explain photos: an overlay, the map and a table"),
    "evaluate": ("gmar_utils.cli.evaluate", "judge methods on a data set, with error bars"),
    "finetune": ("gmar_utils.cli.finetune", "train a classifier to explain"),
    "export": ("gmar_utils.cli.export", "write a model and its gradients as one ONNX graph"),
    "trust": ("gmar_utils.cli.trust", "judge which explanation of a model may be shown, on your photos"),
    "info": ("gmar_utils.cli.info", "versions, bundled models, or what is known of one model"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    """Run a command: 0, or 2 with one line for each problem. GMAR_DEBUG=1 shows the traceback of an error instead."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _Parser(prog="gmar", description="Explain Vision Transformers from their attention.")
    parser.add_argument("--version", action="version", version=f"gmar_utils {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, (place, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in argv[:1]:  # imported only when asked for: evaluate and finetune bring scipy, pandas and datasets
            module = importlib.import_module(place)
            module.add_arguments(command)
            command.set_defaults(run=module.main)
    for word in argv:
        if re.fullmatch(r"--[\w-]+=--", word):  # argparse would hand on an empty list
            parser.error(f"argument {word[:-3]}: expected a value, got '--'")
    args = parser.parse_args(argv)
    _quiet()
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("GMAR_DEBUG"):
            raise
        say(f"gmar {args.command}: {described(error)}", error=True)
        return 2


def _quiet():
    """Warnings in one line each; nothing of transformers' reports and progress bars."""
    import transformers
    from PIL import Image

    warnings.showwarning = lambda message, *_, **__: say(f"gmar: warning: {message}", error=True)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such a picture is refused, and named
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
