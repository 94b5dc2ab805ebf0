"""A label removed by a user who may write but not delete is hidden from everybody until it is restored."""

from __future__ import annotations

import numpy as np
import pytest
from label_archive import stored, voxels

from monailabel_xnat.errors import AccessDeniedError, UnknownLabelError
from monailabel_xnat.labels.version import summary_of


@pytest.mark.parametrize("versions", [1, 2, 3])
def test_what_a_member_removes_is_hidden_from_everybody_and_kept(open_labels, draw, versions):
    member = open_labels(username="member")
    for seed in range(versions):
        member.store.save(member.scan, "final", draw(seed), {"seed": seed})
    member.store.remove(member.scan, "final")
    for opened in (member, open_labels("another machine", username="member")):
        assert opened.labels.tags(opened.scan) == []
        assert opened.labels.counts() == {}
        for look in (opened.labels.path, opened.labels.info, opened.labels.current):
            with pytest.raises(UnknownLabelError):
                look(opened.scan, "final")
        history = opened.labels.history(opened.scan, "final")
        assert [summary_of(version).get("hidden") for version in history] == [True] * versions
        oldest = opened.labels.path(opened.scan, "final", history[-1].name)
        np.testing.assert_array_equal(voxels(oldest), voxels(draw(0)))
    member.store.remove(member.scan, "final")  # removing it again is no error, although there is none
    member.store.restore(member.scan, "final", history[-1].name)
    assert member.labels.info(member.scan, "final") == {"seed": 0}
    later = open_labels("a third machine", username="member")
    assert later.labels.tags(later.scan) == ["final"]
    assert later.labels.counts() == {"final": 1}
    np.testing.assert_array_equal(voxels(later.labels.path(later.scan, "final")), voxels(draw(0)))
    owner = open_labels("owner", username="owner")
    owner.store.remove(owner.scan, "final")
    assert stored(member) == []


def test_a_label_that_another_machine_saves_meanwhile_is_not_hidden_with_the_others(open_labels, draw):
    member, other = open_labels(username="member"), open_labels("other", username="member")
    member.store.save(member.scan, "final", draw(0), {})
    other.store.save(other.scan, "final", draw(1), {"seed": 1})
    member.store.remove(member.scan, "final")
    other.store.save(other.scan, "final", draw(2), {"seed": 2})
    again = open_labels("again", username="member")
    assert again.labels.info(again.scan, "final") == {"seed": 2}


def test_a_user_who_may_not_write_cannot_hide_labels(open_labels, draw):
    owner = open_labels("owner", username="owner")
    owner.store.save(owner.scan, "final", draw(), {})
    collaborator = open_labels(username="collaborator")
    with pytest.raises(AccessDeniedError, match=r"'collaborator' may not delete.*an owner of the project can"):
        collaborator.store.remove(collaborator.scan, "final")
    assert collaborator.labels.tags(collaborator.scan) == ["final"]
