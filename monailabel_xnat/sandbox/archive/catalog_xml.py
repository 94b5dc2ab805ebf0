"""The catalog document of a resource (catalog.xsd)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from xml.sax.saxutils import escape, quoteattr

from monailabel_xnat.sandbox.archive.model import FileEntry, Resource

_NAMESPACES = 'xmlns:cat="http://nrg.wustl.edu/catalog" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'


def catalog_xml(resource: Resource, entries: Iterable[FileEntry], root: str = "") -> str:
    """Write a catalog; that of a DICOM resource has the series UID and, for imported files, their SOP instance UIDs.

    Parameters
    ----------
    resource, entries
        The resource and its files.
    root
        Folder of the resource on the server, told as a metaField; empty: not told.
    """
    kind = "cat:DCMCatalog" if resource.series_uid else "cat:Catalog"
    head = {"ID": str(resource.id), "name": resource.label, "UID": resource.series_uid}
    # xnatpy recognises the document by how it begins: the declaration, a line end, the element.
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<{kind}{_attributes(head)} {_NAMESPACES}>'
        f"{_meta_fields(root)}{_tags(resource.tags)}"
        f"<cat:entries>{''.join(map(_entry, entries))}</cat:entries></{kind}>"
    )


def _entry(entry: FileEntry) -> str:
    values = {
        "URI": entry.path,
        "ID": entry.path,
        "name": entry.name,
        "description": entry.description,
        "format": entry.format,
        "content": entry.content,
        "createdTime": entry.created.replace(" ", "T"),
        "createdBy": entry.created_by,
        "createdEventId": str(entry.id),
        "digest": entry.digest,
    }
    if entry.sop_uid:
        values.update({"UID": entry.sop_uid, "instanceNumber": entry.instance_number, "xsi:type": "cat:dcmEntry"})
    tags = _tags(entry.tags)
    return f"<cat:entry{_attributes(values)}>{tags}</cat:entry>" if tags else f"<cat:entry{_attributes(values)}/>"


def _meta_fields(root: str) -> str:
    if not root:
        return ""
    return f'<cat:metaFields><cat:metaField name="AbsolutePath">{escape(root)}</cat:metaField></cat:metaFields>'


def _tags(tags: str) -> str:
    if not tags:
        return ""
    return f"<cat:tags>{''.join(f'<cat:tag>{escape(tag)}</cat:tag>' for tag in tags.split(','))}</cat:tags>"


def _attributes(values: Mapping[str, str]) -> str:
    return "".join(f" {name}={quoteattr(value)}" for name, value in values.items() if value)
