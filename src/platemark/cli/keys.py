"""`platemark keys`: the keys that sign and mark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from platemark.cli.output import emit, json_option, say

passphrase_option = click.option("--passphrase", is_flag=True, help="Ask for a passphrase that encrypts the export (or opens it).")


@click.group("keys")
def command() -> None:
    """Make, show and move the keys that sign and mark pictures."""


@command.command("init")
@click.option("--name", default="Platemark user", show_default=True, help="The signer's name in the certificate.")
@click.option("--force", is_flag=True, help="Renew the certificate where keys exist; the watermark key is kept.")
@json_option
def init(name: str, force: bool, as_json: bool) -> int:
    """Make a private CA, a signing certificate and a watermark key of your own."""
    from platemark.provenance.home import home
    from platemark.provenance.identity import init_keys, show_keys

    init_keys(home(), name=name, force=force)
    return _show(show_keys(home()), as_json)


@command.command("show")
@json_option
def show(as_json: bool) -> int:
    """Show which keys are held here; never a secret."""
    from platemark.provenance.home import home
    from platemark.provenance.identity import show_keys

    return _show(show_keys(home()), as_json)


@command.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE where it exists.")
@passphrase_option
@json_option
def export(file: Path, force: bool, passphrase: bool, as_json: bool) -> int:
    """Write the watermark keys to FILE, for machines that verify.

    With them another machine reads this one's marks. The file's mode is 0600.
    """
    from platemark.provenance.home import home
    from platemark.provenance.keyring import export_keys

    return _moved("exported", export_keys(file, home(), passphrase=_ask(passphrase, confirm=True), force=force), as_json)


@command.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@passphrase_option
@json_option
def import_(file: Path, passphrase: bool, as_json: bool) -> int:
    """Add the watermark keys of FILE, for reading marks."""
    from platemark.provenance.home import home
    from platemark.provenance.keyring import import_keys

    return _moved("imported", import_keys(file, home(), passphrase=_ask(passphrase, confirm=False)), as_json)


def _ask(wanted: bool, *, confirm: bool) -> str | None:
    return str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True)) if wanted else None


def _moved(verb: str, key_ids: list[str], as_json: bool) -> int:
    if as_json:
        emit({verb: key_ids})
    else:
        say(f"{verb} {len(key_ids)} watermark key(s)" + (f": {', '.join(key_ids)}" if key_ids else ""))
    return 0


def _show(shown: dict[str, Any], as_json: bool) -> int:
    if as_json:
        emit(shown)
        return 0
    signing = shown["signing"]
    say(f"state    {shown['home']}")
    say(
        f"signs as {signing['subject']} until {signing['expires'][:10]}, issuer {signing['issuer']}"
        if signing
        else "no keys yet: run `platemark keys init`"
    )
    if signing and signing["warning"]:
        say(f"warning  {signing['warning']}")
    for key in shown["watermark_keys"]:
        say(f"key      {key['key_id']}  {key['purpose']}  issuer {key['issuer']}" + ("  development" if key["development"] else ""))
    return 0
