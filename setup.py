"""Kept for tools that call it; everything is declared in setup.cfg."""

from setuptools import setup

setup()
