"""``monailabel-xnat cache``: it shows, verifies and prunes the images that are kept on this computer."""

from __future__ import annotations

import click

from monailabel_xnat.cli.common import print_json, with_json, with_settings
from monailabel_xnat.config import Settings

_MEGABYTE = 10**6
EXIT_DAMAGED = 1


@click.group("cache")
def command() -> None:
    """Look after the images that are kept on this computer.

    Everything in the cache can be fetched again. Labels that are not in XNAT yet are not part of it: see
    `monailabel-xnat outbox`.

    Example: monailabel-xnat cache info
    """


@command.command(short_help="Show where the cache is, and how large it is.")
@with_json
@with_settings
def info(settings: Settings, as_json: bool) -> None:
    """Show where the cache is, how large it is, and how much the images of all servers may take together.

    Example: monailabel-xnat cache info --studies https://xnat.example.org
    """
    from monailabel_xnat.images.cache import Cache

    cache = Cache.of(settings)
    entries = cache.entries()
    size = sum(entry.size for entry in entries)
    facts = {
        "folder": str(cache.folder),
        "images": len(entries),
        "bytes": size,
        "bytes_of_all_servers": cache.size_of_all(),
        "budget_gigabytes": settings.cache_budget or None,
    }
    if as_json:
        print_json(facts)
        return
    limit = f" of at most {settings.cache_budget:g} GB" if settings.cache_budget else ""
    all_bytes = cache.size_of_all()
    click.echo(
        f"{cache.folder}\n{len(entries)} images, {size / _MEGABYTE:.1f} MB; "
        f"with those of other servers {all_bytes / _MEGABYTE:.1f} MB{limit}"
    )


@command.command(short_help="Find images that are damaged.")
@click.option("--remove", is_flag=True, help="Remove damaged images; they are fetched again at their next use.")
@with_json
@with_settings
@click.pass_context
def verify(ctx: click.Context, settings: Settings, remove: bool, as_json: bool) -> None:
    """Read every image and compare it with its digest. The exit code is 1 if a damaged image stays.

    Example: monailabel-xnat cache verify --remove
    """
    from monailabel_xnat.images.cache import Cache

    cache = Cache.of(settings)
    damaged = cache.verify(remove_damaged=remove)
    if as_json:
        print_json({"damaged": [entry.image_id for entry in damaged], "removed": remove})
    else:
        for entry in damaged:
            click.echo(f"{entry.image_id}  {'was removed' if remove else 'is damaged'}: {entry.path}")
        click.echo("All images are as they were made." if not damaged else f"{len(damaged)} images are damaged.")
    if damaged and not remove:
        ctx.exit(EXIT_DAMAGED)


@command.command(short_help="Remove what is not needed any more.")
@with_json
@with_settings
def prune(settings: Settings, as_json: bool) -> None:
    """Remove files that ended processes left behind, and the least recently used images beyond the budget.

    Example: monailabel-xnat cache prune
    """
    from monailabel_xnat.images.cache import Cache

    freed = Cache.of(settings).prune()
    if as_json:
        print_json({"freed_bytes": freed})
    else:
        click.echo(f"{freed / _MEGABYTE:.1f} MB were freed.")
