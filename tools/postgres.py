"""A real PostgreSQL server for tests and benchmarks: throwaway, on a free port of 127.0.0.1, with a password.

    python -m tools.postgres install            installs Debian's package where it can (apt, as root); says why where it cannot
    python -m tools.postgres run -- COMMAND     runs COMMAND with PLATEMARK_REGISTRY naming a fresh database, then throws the server away

Uses the newest server programs on this machine (PATH, /usr/lib/postgresql/*/bin). PostgreSQL does not run as root, so root starts it as the
user `postgres` or `nobody`.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

USER = "platemark"
_START_SECONDS = 60


class UnavailableError(RuntimeError):
    """There is no server to be had; the text says why, in one line."""


def programs() -> Path:
    """The folder of the newest server programs. Raises `UnavailableError`."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    if found := shutil.which("initdb"):
        places.append(Path(found).resolve().parent)
    for place in places:
        if (place / "initdb").is_file() and (place / "pg_ctl").is_file():
            return place
    raise UnavailableError("no PostgreSQL server programs: as root, run `python -m tools.postgres install` (Debian's package 'postgresql')")


def install() -> str:
    """Installs Debian's package where it is missing; returns what was done. Raises `UnavailableError` where it cannot be."""
    with contextlib.suppress(UnavailableError):
        return f"PostgreSQL is here: {programs()}"
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        raise UnavailableError("PostgreSQL is missing, and only root on Debian or Ubuntu can install it: apt-get install postgresql")
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "postgresql"]):
        done = subprocess.run([apt, *arguments], env=quiet, capture_output=True, text=True)
        if done.returncode != 0:
            why = next(iter(done.stderr.strip().splitlines()[-1:]), f"apt-get {arguments[0]} failed")
            raise UnavailableError(f"PostgreSQL is missing, and apt-get {arguments[0]} failed: {why[:200]}")
    return f"PostgreSQL was installed: {programs()}"


class Server:
    """One server with its own data folder. `start` and `stop` as often as wanted; `remove` at the end."""

    def __init__(self, *, options: tuple[str, ...] = ()) -> None:
        self._programs = programs()
        self._account = _account()
        self.password = secrets.token_urlsafe(12)
        self.port = _free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="platemark-postgres-", dir="/tmp"))  # a path that another user can reach
        self._options = " ".join((f"-p {self.port}", "-c listen_addresses=127.0.0.1", f"-k {self.folder}", *options))
        self._initialise()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        self._call("pg_ctl", "start", "-w", "-t", str(_START_SECONDS), "-D", "data", "-l", "log", "-o", self._options)

    def stop(self, *, mode: str = "immediate") -> None:
        """`immediate` is a crash of the server: no checkpoint, clients cut off."""
        self._call("pg_ctl", "stop", "-w", "-D", "data", "-m", mode)

    def create_database(self) -> str:
        """A fresh database; returns its URL."""
        import psycopg

        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type, unused-ignore] - a name of our own making
        return self.url(name)

    def remove(self) -> None:
        with contextlib.suppress(UnavailableError):
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _initialise(self) -> None:
        secret = self.folder / "password"
        secret.touch(mode=0o600)
        secret.write_text(self.password)
        if self._account:
            for path in (self.folder, secret):
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
        who = ("-U", USER, "-A", "scram-sha-256", "--pwfile", "password")
        self._call("initdb", "-D", "data", *who, "-E", "UTF8", "--locale=C", "--no-sync")
        secret.unlink()

    def _call(self, program: str, *arguments: str) -> None:
        """Runs a server program in the folder, as a user that may. Its output goes to a file: a server inherits and keeps a pipe."""
        who = {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []} if self._account else {}
        with tempfile.TemporaryFile() as output:
            command = [str(self._programs / program), *arguments]
            environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
            done = subprocess.run(command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **who)
            output.seek(0)
            if done.returncode != 0:
                said = " ".join(output.read().decode("utf-8", "replace").split())
                raise UnavailableError(f"{program} failed: {said[-300:]}")


@contextlib.contextmanager
def server(*, options: tuple[str, ...] = ()) -> Iterator[Server]:
    """A running server for as long as the block lasts. Raises `UnavailableError`."""
    made = Server(options=options)
    try:
        made.start()
        yield made
    finally:
        made.remove()


def _account() -> pwd.struct_passwd | None:
    """Whom root lets run the server; None where this process may itself."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise UnavailableError("PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody'")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(arguments: list[str]) -> int:
    try:
        if arguments == ["install"]:
            sys.stdout.write(f"{install()}\n")
            return 0
        if arguments[:2] == ["run", "--"] and len(arguments) > 2:
            with server() as running:
                environment = os.environ | {"PLATEMARK_REGISTRY": running.create_database()}
                return subprocess.run(arguments[2:], env=environment).returncode
    except UnavailableError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stderr.write(f"{__doc__}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
