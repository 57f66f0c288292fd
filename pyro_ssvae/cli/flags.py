"""Flags of the training commands: reading them from the command line, a file or an earlier run, and explaining them."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pyro_ssvae._arguments import as_device
from pyro_ssvae._io import read_yaml
from pyro_ssvae.errors import RunFolderError
from pyro_ssvae.training import RunFolder
from pyro_ssvae.training.config import TrainingConfig
from pyro_ssvae.training.run_folder import EXTENDING, FREE, refuse_changes

_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", list: "a list of whole numbers, as [500,500]"}
_METAVARS: dict[Any, str] = {int: "N", list: "[N,...]"}
_NOT_SAVED = ("out", "resume", "config")


@dataclass(frozen=True)
class Flag:
    """A flag of a command; a ``bool`` is switched on by ``--NAME`` and off by ``--no-NAME``."""

    name: str  # in Python: num_labels is --num-labels on the command line
    default: Any
    help: str
    kind: Callable[..., Any] | None = None  # type of the value; that of the default where None
    choices: Sequence[str] = ()
    least: int | None = None
    metavar: str | None = None  # what stands for the value in the help
    rare: bool = False  # whether only --help-all shows the flag

    @property
    def option(self) -> str:
        """The name on the command line."""
        return "--" + (self.name if "." in self.name else self.name.replace("_", "-"))

    def add_to(self, parser: Any, values: Mapping[str, Any], everything: bool) -> None:
        """Add the flag to a parser, whose help shows the values."""
        value, kind = values.get(self.name, self.default), self.kind or type(self.default)
        text = self.help + (f"; one of {', '.join(self.choices)}" if self.choices else "")
        text += "" if value is None or isinstance(value, bool) else f" (default: {value})"
        shown = argparse.SUPPRESS if self.rare and not everything else text.replace("%", "%%")
        if kind is bool:
            parser.add_argument(self.option, action="store_const", const=True, dest=self.name, help=shown)
            off = self.option.replace("--", "--no-")
            parser.add_argument(off, action="store_const", const=False, dest=self.name, help=argparse.SUPPRESS)
        else:
            metavar = self.metavar or ("NAME" if self.choices else _METAVARS.get(kind, "X"))
            parser.add_argument(self.option, type=self._convert, dest=self.name, metavar=metavar, help=shown)

    def _convert(self, text: str) -> Any:
        """Return the value that a text stands for; ``null`` stands for ``None`` where that is the default."""
        kind: Any = self.kind or type(self.default)
        text = os.path.expanduser(text) if text.startswith("~/") else text  # as a shell does, but not in a file
        if text == "null" and self.default is None:
            return None
        if not text.strip():
            raise argparse.ArgumentTypeError("the value is empty; is a variable of the shell unset?")
        try:
            value: Any = json.loads(text) if kind is list else kind(text)
            if kind is list and not (isinstance(value, list) and all(type(part) is int for part in value)):
                raise ValueError
        except (ValueError, TypeError, RecursionError):
            raise argparse.ArgumentTypeError(f"{text[:60]!r} is not {_KINDS.get(kind, kind.__name__)}") from None
        if self.choices and value not in self.choices:
            raise argparse.ArgumentTypeError(f"{text[:60]!r} is not one of {', '.join(self.choices)}")
        if self.least is not None and value < self.least:
            raise argparse.ArgumentTypeError(f"{text} must be at least {self.least}")
        return value


@dataclass(frozen=True)
class Command:
    """A training command, ``pyro-ssvae train NAME``.

    The flags in the sections ``"model"`` and ``"objective"`` are arguments of the model and the objective. Given the
    values of all flags, and those on the command line, ``find_defaults`` returns defaults that follow from others.
    """

    name: str
    description: str  # with example calls of PROGRAM
    sections: Mapping[str, Sequence[Flag]]
    find_defaults: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]

    @property
    def all_sections(self) -> dict[str, Sequence[Flag]]:
        """The sections of the help."""
        return {**self.sections, "run": _RUN, "settings of training": _TRAINING}

    @property
    def flags(self) -> list[Flag]:
        """All flags."""
        return [flag for section in self.all_sections.values() for flag in section]

    @property
    def options(self) -> dict[str, str]:
        """The flags by the names of the arguments that they set."""
        return {flag.name.removeprefix("training."): flag.option for flag in self.flags}


class Flags:
    """Values of the flags of a command, as attributes, and the arguments of the library that they stand for.

    ``model`` and ``objective`` are arguments of model and objective, without those that are left to the data,
    ``training`` the settings, and ``instead_of`` data that could not be downloaded, in place of which ``data`` is used.
    """

    def __init__(self, command: Command, values: dict[str, Any], instead_of: str | None = None) -> None:
        self.command, self.values, self.instead_of = command, values, instead_of
        self.evaluate_again = False  # whether stages that have a result are evaluated again
        self.model, self.objective = (
            {flag.name: values[flag.name] for flag in flags if values[flag.name] is not None}
            for flags in (command.sections.get(name, ()) for name in ("model", "objective"))
        )
        names = [field.name for field in fields(TrainingConfig)]
        settings: dict[str, Any] = {name: values.get(f"training.{name}", values.get(name)) for name in names}
        self.training = TrainingConfig(**settings)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(f"There is no flag {name}.") from None

    @property
    def out(self) -> str:
        """Folder of the run; by default a new one, named after command, data, labels, seed and time."""
        if self.values["out"] is None:
            labels = f"-{self.num_labels}" if "num_labels" in self.values else ""
            stamp = time.strftime("%Y%m%d-%H%M%S")
            name = f"{self.command.name}-{Path(self.data).stem}{labels}-seed{self.seed}-{stamp}"
            paths = (Path("runs") / f"{name}{end}" for end in ("", *(f"-{number}" for number in range(2, 1000))))
            self.values["out"] = str(next(path for path in paths if not path.exists()))
        return str(self.values["out"])

    @property
    def settings(self) -> dict[str, Any]:
        """Entries of ``config.yaml``, from which ``--resume`` restores the flags."""
        undecided = {flag.name for flag in self.command.flags if flag.kind is bool and self.values[flag.name] is None}
        left_out = undecided.union(_NOT_SAVED)  # a file has no null for a switch
        return {
            "command": self.command.name,
            "flags": {name: value for name, value in self.values.items() if name not in left_out},
            **({} if self.instead_of is None else {"instead_of": self.instead_of}),
        }

    @property
    def fit(self) -> dict[str, Any]:
        """Arguments of :func:`pyro_ssvae.fit`."""
        return {"config": self.training, "out": self.out, "resume": True, "settings": self.settings}


_RUN = (
    Flag("seed", 0, "seed of the label split, the initial weights and training"),
    Flag("max_epochs", None, "length of training, in passes over the unlabelled examples", int),
    Flag("max_minutes", None, "stop after this much training time", float, metavar="M"),
    Flag("out", None, "folder of the run; a stopped run continues (default: a new one in runs/)", str, metavar="DIR"),
    Flag(
        "resume", None, "continue the run in this folder, with the flags that it was started with", str, metavar="DIR"
    ),
    Flag("device", "auto", "auto, cpu, cuda or cuda:1; --cuda means --device cuda", metavar="DEV"),
    Flag("precision", "32-true", "32-true, bf16-mixed, 16-mixed or 64-true", metavar="P"),
    Flag("config", None, "YAML file with flags, such as max_epochs: 20, or config.yaml of a run", str, metavar="FILE"),
)


def _training_flags() -> Iterator[Flag]:
    """Yield a flag ``--training.NAME`` for every setting of training that has no shorter one."""
    arguments = r"^    (\w+): (.*(?:\n {6,}.*)*)"  # of the docstring
    texts = dict(re.findall(arguments, inspect.getdoc(TrainingConfig) or "", flags=re.MULTILINE))
    for field in fields(TrainingConfig):
        if field.name not in {flag.name for flag in _RUN}:
            text = re.sub(r":\w+:|[`~]", "", " ".join(texts[field.name].split())).rstrip(".")
            kind = {"int": int, "float": float, "str": str}[str(field.type).split(" ")[0]]
            yield Flag(f"training.{field.name}", field.default, text, kind, rare=True)


_TRAINING = tuple(_training_flags())


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ``ValueError``."""

    def error(self, message: str) -> Any:
        """Raise ``ValueError`` instead of ending the program."""
        raise ValueError(message)


def parse(command: Command, argv: Sequence[str] | None = None, program: str | None = None) -> Flags:
    """Return the values of all flags.

    Values on the command line take precedence over those of ``--config``, these over those of the run to resume, and
    these over the defaults. A length in steps on the command line replaces one in passes over the data.

    The same command line continues the run in ``--out``, because schedulers start commands again; other settings than
    those of the run are refused. ``--resume`` may change what extends the run, how it is evaluated, and the device.
    """
    given = _parse(command, sys.argv[1:] if argv is None else argv)
    wanted = given.pop("help", None)
    if "config" in given:
        given = _parse(command, _as_argv(read_yaml(Path(given["config"])), command)) | given
    out, resumed = given.get("out"), given.get("resume")
    if out is not None and resumed is not None and Path(out).resolve() != Path(resumed).resolve():
        raise ValueError(f"--resume {resumed} goes on in that folder, and --out {out} has no effect; leave one out.")
    chosen, instead_of = given, None
    if resumed is not None:
        stored, instead_of = _read_flags(command, Path(resumed))
        settings = {name: value for name, value in given.items() if name not in _NOT_SAVED}
        allowed = (*EXTENDING, *FREE, *(flag.name for flag in command.sections.get("evaluation", ())))
        refuse_changes(Path(resumed), {name: stored.get(name) for name in settings}, settings, allowed)
        chosen = stored | given
    values = {flag.name: flag.default for flag in command.flags} | chosen
    values |= command.find_defaults(values, given) | chosen
    if given.get("training.max_steps") is not None and "max_epochs" not in given:
        values["max_epochs"] = None
    if resumed is not None:
        values["out"] = resumed
    elif out is not None and RunFolder(out).config.is_file() and RunFolder(out).has_progress:
        before, instead_of = _read_flags(command, Path(out))
        before |= {"data": instead_of or before["data"]}
        refuse_changes(Path(out), before, {name: value for name, value in values.items() if name in before}, FREE)
    if wanted is not None:
        print(_new_parser(command, program, values, everything=wanted == "all").format_help(), end="")
        raise SystemExit(0)
    as_device(values["device"])
    return Flags(command, values, instead_of)


def _read_flags(command: Command, folder: Path) -> tuple[dict[str, Any], str | None]:
    """Return the flags of a run, and the data in place of which it took others."""
    config = RunFolder(folder).read_config()
    if config.get("command") != command.name:
        started = config.get("command", "a Python program")
        raise RunFolderError(f"{folder} was started by {started}, and not by {command.name}.")
    try:
        return _parse(command, _as_argv(config, command)), config.get("instead_of")
    except ValueError as error:
        raise RunFolderError(f"{RunFolder(folder).config} is damaged: {error}") from error


def _new_parser(command: Command, program: str | None, values: Mapping[str, Any], *, everything: bool) -> Parser:
    """Return a parser that leaves out what is not on the command line, and whose help shows the values."""
    program = program or f"python {sys.argv[0]}"
    more = "--no-NAME switches NAME off." if everything else "--help-all explains all flags."
    parser = Parser(
        prog=program,
        usage="%(prog)s [--flag value ...]",
        description=command.description.replace("PROGRAM", program),
        epilog=f"FILE.npz holds x_train and, optionally, y_train, x_test and y_test. {more}",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=100),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    for title, flags in command.all_sections.items():
        group: Any = parser.add_argument_group(title)
        for flag in flags:
            flag.add_to(group, values, everything)
    group.add_argument("--cuda", action="store_const", const="cuda", dest="device", help=argparse.SUPPRESS)
    for options, which in ((("-h", "--help"), "common"), (("--help-all",), "all")):
        text = f"show {which} flags and their values"
        parser.add_argument(*options, action="store_const", const=which, dest="help", help=text)
    return parser


def _parse(command: Command, argv: Sequence[str]) -> dict[str, Any]:
    """Return the values that a command line gives, by name."""
    found, unknown = _new_parser(command, None, {}, everything=True).parse_known_args(list(argv))
    if unknown:
        word = next((word for word in unknown if word.startswith("-")), unknown[0]).split("=")[0]
        options = {name.replace("_", "-"): option for name, option in command.options.items()}
        near = difflib.get_close_matches(word.lstrip("-").replace("_", "-"), options, n=1)
        raise ValueError(f"There is no flag {word}." + (f" Did you mean {options[near[0]]}?" if near else ""))
    return vars(found)


def _as_argv(values: Any, command: Command, prefix: str = "") -> list[str]:
    """Return values by name, as a YAML file or the ``config.yaml`` of a run holds them, as a command line."""
    no_switches = {flag.option for flag in command.flags if (flag.kind or type(flag.default)) is not bool}
    values = values.get("flags", values) if isinstance(values, dict) else values
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError("A file of flags must hold values by name, for example max_epochs: 20.")
    argv: list[str] = []
    for key, value in values.items():
        option = f"--{prefix}{key}" if prefix or "." in key else f"--{key.replace('_', '-')}"
        if isinstance(value, dict):
            argv += _as_argv(value, command, f"{key}.")
        elif isinstance(value, bool) and option in no_switches:
            raise ValueError(
                f"{key}: {str(value).lower()} is a truth value in YAML, as are yes, no, on and off, and {option} takes "
                f'none. Put a word into quotation marks, {key}: "no".'
            )
        elif isinstance(value, bool):
            argv.append(option if value else option.replace("--", "--no-", 1))
        else:
            argv.append(f"{option}={'null' if value is None else value}")
    return argv
