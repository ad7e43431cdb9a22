"""`Desk`: what the routes of exports need, made once for an app."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from attnserve.jobs import STATE_FOLDER, locate_database
from attnserve.service.catalogue import Catalogue
from attnserve.service.exports.client import Client, open_database
from attnserve.service.exports.gauges import Gauges
from attnserve.service.exports.pinning import Pinner
from attnserve.service.exports.watch import Watches


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Exports of one service."""

    client: Client
    watches: Watches
    gauges: Gauges
    repository: Path
    pin: Callable[[str], dict[str, str]]
    """sha256 of a checkpoint's files, by its name or path. Of an upload they are known; a folder is read."""
    # Reading files of many gigabytes is for one at a time.
    hashing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))


def make_desk(catalogue: Catalogue) -> Desk:
    """The exports of a service, as its settings say."""
    settings, repository = catalogue.settings, catalogue.repository.folder
    url = locate_database(repository, settings.database_url, settings.database_password_file)
    client = Client(lambda: open_database(url))

    def is_used() -> bool:
        return bool(settings.database_url) or (repository / STATE_FOLDER).is_dir()

    return Desk(
        client=client,
        watches=Watches(client, is_draining=lambda: catalogue.is_draining),
        gauges=Gauges(client, is_used=is_used),
        repository=repository,
        pin=Pinner(repository, settings).pin,
    )
