"""The settings: their fields and sources, the values that texts in them stand for, and the patterns in them."""

from monailabel_xnat.config.names import CONF_PREFIX, ENVIRONMENT_PREFIX, refuse_unknown
from monailabel_xnat.config.settings import Settings, as_conf, origins
from monailabel_xnat.config.values import Secret

__all__ = ["CONF_PREFIX", "ENVIRONMENT_PREFIX", "Secret", "Settings", "as_conf", "origins", "refuse_unknown"]
