"""Accounts for the SLURM of `cluster`, so that sacct answers: a slurmdbd and a database of its own.

Needs Debian's slurmdbd, mariadb-server-core and mariadb-client-core besides. The database goes with the
folder.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
from pathlib import Path

from tests.loopback import await_port
from tests.slurm.cluster import Cluster, daemon, free_ports, path

PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "my_print_defaults", "sacct")

#: of slurm.conf; squeue forgets at once, so that sacct is asked
CONFIGURATION = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/socket/munge
MinJobAge=2
"""
#: of slurmdbd.conf
DAEMON_CONFIGURATION = """\
AuthType=auth/munge
AuthInfo=socket={folder}/socket/munge
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/log/slurmdbd
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass={password}
"""


def missing() -> str:
    """Why there can be no accounts here, in words; empty where there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=path()) is None]
    if not absent:
        return ""
    return (
        f"no accounts of SLURM's here ({', '.join(absent)} not found): "
        "install slurmdbd, mariadb-server-core and mariadb-client-core"
    )


class Accounts:
    """A `cluster.Accounting` that is real."""

    def __init__(self) -> None:
        self.port, self.database_port = free_ports(2)

    def settings(self, folder: Path) -> str:
        return CONFIGURATION.format(folder=folder, port=self.port)

    def start(self, cluster: Cluster) -> None:
        folder, password = cluster.folder, secrets.token_hex(16)
        self._start_database(cluster, password)
        settings = folder / "slurmdbd.conf"
        settings.touch(mode=0o600)  # slurmdbd refuses a password that others can read
        settings.write_text(
            DAEMON_CONFIGURATION.format(
                folder=folder, port=self.port, database_port=self.database_port, password=password
            )
        )
        daemon(cluster, folder / "slurmdbd.pid", "slurmdbd")
        await_port(self.port, "slurmdbd")

    def _start_database(self, cluster: Cluster, password: str) -> None:
        folder = cluster.folder / "database"
        folder.mkdir(mode=0o700)
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={folder}", "--skip-test-db"],
            check=True, timeout=120, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        first = folder / "first.sql"  # one statement a line
        first.write_text(
            f"CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
            "GRANT ALL ON *.* TO 'slurm'@'127.0.0.1';\n"
        )
        daemon(
            cluster,
            folder / "pid",
            # it cannot go into the background by itself
            *("sh", "-c", 'log=$1; shift; "$@" > "$log" 2>&1 &', "sh", f"{cluster.folder}/log/database"),
            *("mariadbd", "--no-defaults", "--user=root", f"--datadir={folder}", f"--init-file={first}"),
            *("--bind-address=127.0.0.1", f"--port={self.database_port}", "--skip-name-resolve"),
            *(f"--socket={folder}/socket", f"--pid-file={folder}/pid", "--innodb-buffer-pool-size=32M"),
        )
        await_port(self.database_port, "the database")
