"""Labels: stored in XNAT as versions that are never overwritten, and none lost on the way."""

from monailabel_xnat.labels.model import LabelVersion
from monailabel_xnat.labels.store import Labels

__all__ = ["LabelVersion", "Labels"]
