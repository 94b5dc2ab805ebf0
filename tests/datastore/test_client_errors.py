"""Errors reach viewers with their status and their reason, not as a bare 500."""

from __future__ import annotations

import inspect

import pytest
from fastapi import HTTPException

from monailabel_xnat import errors
from monailabel_xnat.datastore.client_errors import errors_for_clients

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.XNATDatastoreError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_arrives_with_status_and_reason(kind):
    with pytest.raises(kind, match="what was wrong") as caught, errors_for_clients():
        raise kind("what was wrong", hint="what to do")
    assert isinstance(caught.value, HTTPException)
    assert 400 <= caught.value.status_code < 600
    assert caught.value.detail == str(caught.value) == "what was wrong (what to do)"
    assert caught.value.hint == "what to do"
    assert isinstance(caught.value.__cause__, kind)


def test_errors_of_others_pass_as_they_are():
    with pytest.raises(ZeroDivisionError) as caught, errors_for_clients():
        raise ZeroDivisionError
    assert not isinstance(caught.value, HTTPException)


def test_a_scan_whose_files_are_gone_arrives_as_404_with_the_reason(xnat_sandbox, open_xnat_datastore):
    xnat_sandbox.archive.create_project("P")
    xnat_sandbox.archive.seed_sessions("P", sessions=1, scans=1)  # the listed scan has no files
    datastore = open_xnat_datastore(project="P")
    with pytest.raises(errors.NoImageError, match="holds no files") as caught:
        datastore.get_image_uri(datastore.list_images()[0])
    assert isinstance(caught.value, HTTPException)
    assert caught.value.status_code == 404
