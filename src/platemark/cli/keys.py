"""`platemark keys`: the keys that sign and mark."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from platemark.cli.output import emit, json_option, say

if TYPE_CHECKING:
    from platemark.provenance.certificates import Algorithm

ALGORITHMS = ("es256", "es384", "es512", "ps256", "ed25519")
passphrase_option = click.option(
    "--passphrase", is_flag=True, help="Ask for the passphrase of the file (without a terminal: the first line of stdin)."
)


@click.group("keys")
def command() -> None:
    """Make, show and move the keys that sign and mark pictures."""


@command.command("init")
@click.option("--name", default="Platemark user", show_default=True, help="The signer's name in the certificate.")
@click.option("--algorithm", type=click.Choice(ALGORITHMS), default="es256", show_default=True, help="Of the signing key.")
@click.option("--force", is_flag=True, help="Renew the certificate where keys exist; the watermark key is kept.")
@json_option
def init(name: str, algorithm: Algorithm, force: bool, as_json: bool) -> int:
    """Make a private CA, a signing certificate and a watermark key of your own.

    Algorithms: P-256, P-384 and P-521 curves, RSA of 3072 bits, Ed25519.
    """
    from platemark.provenance.home import home
    from platemark.provenance.identity import init_keys, show_keys

    init_keys(home(), name=name, algorithm=algorithm, force=force)
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
@click.option("--key", type=click.Path(path_type=Path), help="The private key (PEM) of a certificate in FILE.")
@click.option("--signer-command", metavar="COMMAND", help="Program that signs for the certificate in FILE: data in, signature out.")
@click.option("--force", is_flag=True, help="Replace the signing certificate that is here.")
@passphrase_option
@json_option
def import_(file: Path, key: Path | None, signer_command: str | None, force: bool, passphrase: bool, as_json: bool) -> int:
    """Take in a signing certificate, or add watermark keys for reading.

    FILE is what `keys export` wrote, or a certificate for signing: PEM (leaf first, then its CAs; the private key in it or in --key) or
    PKCS#12. Where an HSM or key service holds the key, --signer-command names a program that reads the bytes to sign from its standard
    input and writes the signature to its standard output.
    """
    import shlex

    from platemark.imaging import read_bytes
    from platemark.provenance.home import home
    from platemark.provenance.identity import show_keys
    from platemark.provenance.keyring import import_keys
    from platemark.provenance.signing_keys import SignerFiles, import_signer, is_certificate

    secret = _ask(passphrase, confirm=False)
    if not (key or signer_command or is_certificate(read_bytes(file, max_bytes=1 << 20))):
        return _moved("imported", import_keys(file, home(), passphrase=secret), as_json)
    import_signer(SignerFiles(file, key, tuple(shlex.split(signer_command or "")), secret), home(), force=force)
    return _show(show_keys(home()), as_json)


def _ask(wanted: bool, *, confirm: bool) -> str | None:
    """The passphrase: asked for on a terminal, else the first line of standard input."""
    if not wanted:
        return None
    if not sys.stdin.isatty():
        secret = sys.stdin.readline().rstrip("\r\n")
        if not secret:
            raise click.UsageError("--passphrase without a terminal reads it from standard input, which is empty")
        return secret
    return str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True))


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
    if signing:
        say(f"with     {signing['algorithm']}, key {signing['key']}")
    if signing and signing["warning"]:
        say(f"warning  {signing['warning']}")
    for key in shown["watermark_keys"]:
        say(f"key      {key['key_id']}  {key['purpose']}  issuer {key['issuer']}" + ("  development" if key["development"] else ""))
    return 0
