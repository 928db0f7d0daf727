"""From a configuration dataclass to a command: flags, presets, --dry-run, exit codes."""

import dataclasses
import errno
import json
import math
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeVar, get_type_hints

import docstring_parser
import tyro

from runtime import distributed
from runtime.config import plain_config
from runtime.errors import InputError, InputWarning

Config = TypeVar("Config")
SIZES = {"smoke": "seconds, to try the command", "demo": "minutes on a CPU", "paper": "the full size, on a GPU"}
"""What presets are for, whatever the script."""


def parse(
    config: type[Config] | dict[str, Config], argv: Sequence[str] | None = None, description: str | None = None
) -> Config:
    """Reads the command line into a configuration; unknown flags and mistyped values end the program with status 2.
    Numbers that are not finite, nan or inf, are an InputError: no setting means anything by them.

    `config` is the dataclass itself, or a table of presets; then the first argument names the preset, and flags change
    single fields of it. `argv` is without the program's name; by default the process's.
    """
    prog = _typed_name()
    for kind in {type(preset) for preset in config.values()} if isinstance(config, dict) else {config}:
        _unwrap_help(kind)
    if isinstance(config, dict):
        presets = {name: (_about(name), preset) for name, preset in config.items()}
        chosen = tyro.extras.overridable_config_cli(presets, prog=prog, args=argv, description=description)
    else:
        chosen = tyro.cli(config, prog=prog, args=argv, description=description)
    if problems := list(_not_finite(chosen)):
        raise InputError.of("expected finite numbers", problems)
    return chosen


def _typed_name() -> str | None:
    """How a script is called as a module; None, and so the name of its file, where it runs as one."""
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.name}" if spec else None


def _unwrap_help(config: type) -> None:
    """Hands tyro the docstrings of fields that have several lines as one line, so that it wraps them where a terminal
    ends: it takes a line that is indented for the begin of a paragraph.
    """
    for owner in filter(dataclasses.is_dataclass, config.__mro__):
        documented = {field.arg_name: field.description for field in docstring_parser.parse_from_object(owner).params}
        hints = get_type_hints(owner, include_extras=True)
        for name in vars(owner).get("__annotations__", {}):
            if dataclasses.is_dataclass(hints[name]):
                _unwrap_help(hints[name])
            elif "\n" in (text := documented.get(name) or ""):
                owner.__annotations__[name] = Annotated[hints[name], tyro.conf.arg(help=" ".join(text.split()))]


def _about(preset: str) -> str:
    """What a list of presets says of one."""
    size = f" ({SIZES[preset]})" if preset in SIZES else ""
    return f"The {preset} preset{size}; its options and their values: {preset} --help"


def _not_finite(value: Any, name: str = "") -> Iterator[str]:
    """Flag and value of every number in a configuration that is nan or infinite."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            flag = field.name.replace("_", "-")
            yield from _not_finite(getattr(value, field.name), f"{name}.{flag}" if name else f"--{flag}")
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _not_finite(part, name)
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{name} {value}"


def run_script(
    main: Callable[[Config], None],
    config: type[Config] | dict[str, Config],
    *,
    description: str | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Runs a script from its command line.

    ``--dry-run`` prints the resolved configuration as JSON and stops. Refused input and a full disk end with a message
    on standard error and status 2, an interrupt with status 130; anything else is a defect and keeps its traceback.
    """
    warnings.formatwarning = _format_warning
    try:
        chosen = parse(config, argv, description)
        if chosen.dry_run:
            print(json.dumps(plain_config(chosen), indent=2), flush=True)
            return
        distributed.init()
        main(chosen)
    except InputError as error:
        _end(f"error: {error}", 2)
    except BrokenPipeError:  # the reader of a pipe, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes when it ends
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f"{error.filename}: " if error.filename else ""
        _end(f"error: {where}{error.strerror}; files are whole or as before, the same command continues", 2)
    except KeyboardInterrupt as interrupt:
        kept = str(interrupt) or "what was finished is kept"
        _end(f"interrupted: {kept}; run the same command again, and it goes on from there", 130)
    finally:
        distributed.shutdown()


def run_module(module: str, *words: object) -> None:
    """Runs ``python -m module words`` as a process of its own, where this one runs, so that paths mean the same;
    InputError where it ended with an error, which it has printed.

    Interrupted (Ctrl-C, SIGTERM), it asks the process to stop, once, and waits until that has saved.
    """
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A session of its own: Ctrl-C in a terminal would reach it too, and a second signal stops a training at once.
    process = subprocess.Popen([sys.executable, "-m", module, *map(str, words)], start_new_session=True)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    if status:
        raise InputError(f"python -m {module} ended with status {status}; the reason stands above")


_STANDARD_FORMAT = warnings.formatwarning


def _format_warning(message: Warning | str, category: type[Warning], *where: object, **line: object) -> str:
    """A warning about input without the place in our code, which tells a user nothing."""
    is_ours = issubclass(category, InputWarning)
    return f"warning: {message}\n" if is_ours else _STANDARD_FORMAT(message, category, *where, **line)


def _end(message: str, status: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(status)


def describe(module_doc: str | None) -> str:
    """The first paragraph of a script's docstring, for ``--help``."""
    return (module_doc or "").strip().split("\n\n")[0]
