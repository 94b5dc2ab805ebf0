"""The options that say which XNAT a command works on, the settings they make, and the labels there."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from monailabel_xnat.config import Settings

if TYPE_CHECKING:
    from monailabel_xnat.catalog import Catalog
    from monailabel_xnat.labels import Labels


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; what is not given comes from the environment or ``~/.netrc``, a password always does."""
    group = parser.add_argument_group("connection", "What is not given comes from the environment or ~/.netrc.")
    group.add_argument("--studies", metavar="URL", help="address of the XNAT site, as for MONAI Label")
    group.add_argument("--username", metavar="NAME", help="user name")
    group.add_argument("--project", metavar="IDS", help="project IDs, comma-separated")
    group.add_argument("--cache-path", metavar="FOLDER", help="folder for images, labels and the outbox")
    group.add_argument(
        "--conf",
        nargs=2,
        action="append",
        default=[],
        metavar=("xnat_NAME", "VALUE"),
        help="any other setting, as for MONAI Label",
    )


def settings_of(args: argparse.Namespace) -> Settings:
    """Gather the settings.

    Raises
    ------
    SettingsError
        If one is missing or wrong.
    """
    given = {
        "server": args.studies,
        "username": args.username,
        "project": args.project,
        "cache_path": args.cache_path,
    }
    return Settings.load(given, conf=dict(args.conf))


@contextmanager
def opened_labels(settings: Settings) -> Iterator[tuple[Catalog, Labels]]:
    """Open the labels of an XNAT, without MONAI Label, which takes seconds to import.

    Parameters
    ----------
    settings : Settings
        Which XNAT, and which projects of it.
    """
    from monailabel_xnat.catalog import Catalog
    from monailabel_xnat.client.session import Session
    from monailabel_xnat.images import Images
    from monailabel_xnat.labels import Labels

    session = Session(settings)
    catalog = Catalog(session)
    images = Images(session, settings, catalog.memory)
    labels = Labels(session, catalog, images, settings)
    try:
        yield catalog, labels
    finally:
        labels.close()
        images.close()
        catalog.close()
        session.close()
