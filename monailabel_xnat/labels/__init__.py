"""Labels: they are stored in XNAT as versions that are never overwritten, and no label is lost on the way."""

from monailabel_xnat.labels.labels import Labels
from monailabel_xnat.labels.store import LabelStore
from monailabel_xnat.labels.version import LabelVersion

__all__ = ["LabelStore", "LabelVersion", "Labels"]
