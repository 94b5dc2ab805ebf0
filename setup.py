"""What setup.cfg cannot say: the long description of the package. All else is declared there."""

import re
from pathlib import Path

from setuptools import setup

README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
# Relative links and the picture lead nowhere outside of the repository.
ONLY_IN_THE_REPOSITORY = re.compile(r"<!-- repository:.*?<!-- end of repository -->\n", re.DOTALL)

setup(long_description=ONLY_IN_THE_REPOSITORY.sub("", README))
