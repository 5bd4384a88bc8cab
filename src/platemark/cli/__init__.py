"""The command line: click commands, a module a group, no logic. Every error is one line with its remedy."""

from __future__ import annotations

import atexit
import gc
import importlib
import sys
from typing import Any

import click

from platemark import __version__
from platemark.cli.output import fail
from platemark.errors import PlatemarkError

_COMMANDS = {
    "generate": "platemark.cli.generate",
    "upscale": "platemark.cli.upscale",
    "build": "platemark.cli.build",
    "inspect": "platemark.cli.inspect",
    "sign": "platemark.cli.sign",
    "verify": "platemark.cli.verify",
    "check": "platemark.cli.check",
    "keys": "platemark.cli.keys",
    "watermark": "platemark.cli.watermark",
    "registry": "platemark.cli.registry",
    "safety": "platemark.cli.safety",
    "bench": "platemark.cli.bench",
    "doctor": "platemark.cli.doctor",
}


class _Lazy(click.Group):
    """Imports a command's module when it is called, so that `--help` and light commands start fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        return getattr(importlib.import_module(module), "command") if module else None  # noqa: B009 - typed as Any on purpose

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As click's own, but every failure leaves through `fail`: one line (or the JSON error), and the error's exit code."""
        arguments = list(kwargs.pop("args", None) or (args[0] if args else None) or sys.argv[1:])
        as_json = "--json" in arguments
        try:
            code = super().main(args=arguments, standalone_mode=False, **kwargs)
        except PlatemarkError as error:
            sys.exit(fail(error.as_dict(), error.exit_code, as_json))
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(0)
        except click.ClickException as error:
            hint = (
                f"see `{error.ctx.command_path} --help`" if isinstance(error, click.UsageError) and error.ctx else "see `platemark --help`"
            )
            message = " ".join(error.format_message().split())
            sys.exit(fail({"code": "usage", "message": message, "remedy": hint}, 2, as_json))
        except click.Abort:
            sys.exit(fail({"code": "interrupted", "message": "interrupted", "remedy": "nothing was left half written"}, 130, as_json))
        except BrokenPipeError:
            sys.stderr.close()  # the reader went away (`| head`): no traceback while the interpreter flushes
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="platemark")
def main() -> None:
    """Compile image models into verified engines, and print pictures that are checked, marked and signed."""


def entry() -> None:
    """The process's own door: `main` with a collector tuned for a short life, which saves about a tenth of `generate`'s time."""
    gc.set_threshold(50_000, 20, 20)  # imports make many objects and no garbage
    atexit.register(gc.freeze)  # nothing to collect in what the system takes back anyway
    main()
