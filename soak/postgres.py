"""A PostgreSQL server of one's own, of the version that the system has installed, gone when the block ends."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

INSTALLED = Path("/usr/lib/postgresql")
START_S = 60.0
USER, DATABASE = "attnserve", "jobs"


@dataclass
class Postgres:
    """A server that may be stopped and started again, with what it holds."""

    binaries: Path
    folder: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """Of its database of jobs."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{DATABASE}"

    def start(self) -> None:
        """Start it; returns when it answers."""
        where = ["-D", str(self.folder / "data"), "-p", str(self.port), "-k", str(self.folder)]
        # What a machine that loses power would lose is no part of any scenario.
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        with (self.folder / "log").open("ab") as log:
            command = [str(self.binaries / "postgres"), *where, *options]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, user=find_user(), cwd=self.folder)
        end = time.monotonic() + START_S
        while True:
            try:
                psycopg.connect(self.url.replace(f"/{DATABASE}", "/postgres")).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > end or self.process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text("utf-8", "replace")) from None
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop it, and every connection with it."""
        if self.process is not None:
            # Fast shutdown, not smart: it waits for nobody.
            self.process.send_signal(2)
            self.process.wait()
            self.process = None


def find_binaries() -> Path | None:
    """Where initdb and postgres are; None if they are not installed."""
    folders = sorted(INSTALLED.glob("*/bin"), key=lambda folder: int(folder.parent.name))
    found = shutil.which("initdb")
    folders += [] if found is None else [Path(found).parent]
    return next((folder for folder in reversed(folders) if (folder / "postgres").exists()), None)


def find_user() -> str | None:
    """Whom it runs as: it refuses to be root's."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@contextmanager
def serving_postgres() -> Iterator[Postgres]:
    """A server with an empty database.

    Raises:
        RuntimeError: it is not installed, or does not start.
    """
    binaries = find_binaries()
    if binaries is None:
        raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Not in anybody's private folder: another user has to go there.
    with tempfile.TemporaryDirectory(prefix="attnserve-postgres-") as name:
        server = Postgres(binaries=binaries, folder=Path(name), port=port)
        if (user := find_user()) is not None:
            shutil.chown(name, user)
        command = [str(binaries / "initdb"), "-D", f"{name}/data", "-U", USER, "--auth=trust", "--no-sync"]
        done = subprocess.run(command, capture_output=True, text=True, user=user, cwd=name)
        if done.returncode != 0:
            raise RuntimeError(done.stdout + done.stderr)
        try:
            server.start()
            with psycopg.connect(server.url.replace(f"/{DATABASE}", "/postgres"), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {DATABASE}")
            yield server
        finally:
            server.stop()
