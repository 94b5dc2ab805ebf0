"""Folders with patients' data are private. A folder that others made or could have filled is refused."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
import requests

sys.path.insert(0, str(Path(__file__).parents[1] / "labels"))

from label_archive import fill

from monailabel_xnat.cli.main import main
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import CacheError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows keeps who may read a folder elsewhere")


@pytest.fixture
def folder(xnat_sandbox, tmp_path):
    """The folder for this server, below a cache_path that everybody may read, as existing folders often are."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o755)
    with requests.Session() as admin:
        admin.auth = (xnat_sandbox.username, xnat_sandbox.password)
        fill(xnat_sandbox.url, "P", admin)
    return Settings.load({"server": xnat_sandbox.url, "cache_path": tmp_path / "cache"}, environ={}).server_folder


@pytest.fixture
def use(open_xnat_datastore, tmp_path):
    def use():
        datastore = open_xnat_datastore(project="P", cache_path=tmp_path / "cache", roi_write="", prefetch=0)
        return datastore.get_image_uri(datastore.list_images()[0])

    return use


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_below_a_cache_path_that_is_open_to_others_our_own_folder_is_not(use, folder):
    assert use()
    assert mode(folder) == 0o700
    assert mode(folder.parent) == 0o755


def test_a_folder_of_ours_that_others_may_read_is_closed_to_them(use, folder):
    folder.mkdir()
    folder.chmod(0o755)
    assert use()
    assert mode(folder) == 0o700


@pytest.mark.parametrize("bits", [0o770, 0o707, 0o777, 0o720])
def test_a_folder_that_others_may_write_is_refused_with_the_remedy(use, folder, bits):
    folder.mkdir()
    folder.chmod(bits)
    with pytest.raises(CacheError, match=f"chmod 700 {folder}"):
        use()
    folder.chmod(0o700)
    assert use()


@pytest.fixture
def volume(folder):
    """Change the folders as Kubernetes does with a volume with fsGroup each time that it is mounted."""

    def mount(group=4242):
        for path in (folder.parent, *folder.parent.rglob("*")):
            os.chown(path, -1, group)
            path.chmod(path.stat().st_mode | (0o2770 if path.is_dir() else 0o660))

    groups = os.getgroups()
    os.setgroups([*groups, 4242])
    folder.parent.chmod(0o770)
    yield mount
    os.setgroups(groups)


as_root = pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can join a group")


@as_root
def test_a_volume_of_kubernetes_with_fsgroup_can_be_used_also_after_the_pod_has_restarted(use, folder, volume):
    volume()
    image = use()
    assert mode(folder) & 0o777 == 0o700
    volume()
    assert mode(folder) == 0o2770
    assert use() == image
    assert mode(folder) == 0o700
    assert mode(folder.parent) == 0o2770


@as_root
def test_a_folder_in_a_volume_of_another_group_is_refused(use, folder, volume):
    use()
    volume(group=4343)
    with pytest.raises(CacheError, match=f"chmod 700 {folder}"):
        use()


@as_root
@pytest.mark.parametrize("bits", [0o770, 0o2777])
def test_a_folder_in_a_volume_that_kubernetes_would_leave_otherwise_is_refused(use, folder, volume, bits):
    use()
    volume()
    folder.chmod(bits)
    with pytest.raises(CacheError, match=f"chmod 700 {folder}"):
        use()


def test_where_everybody_may_replace_our_folder_it_is_refused_with_the_remedy(use, folder):
    folder.parent.chmod(0o777)
    with pytest.raises(CacheError, match=r"everybody may write to .*chmod \+t"):
        use()
    folder.parent.chmod(0o1777)
    assert use()


def test_a_folder_that_is_a_symbolic_link_is_refused(use, folder, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="symbolic link"):
        use()
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_that_another_user_has_made_is_refused(use, folder):
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(CacheError, match="belongs to another user"):
        use()


def test_an_outbox_that_is_a_symbolic_link_is_refused_and_the_label_is_not_accepted(
    use, folder, open_xnat_datastore, tmp_path
):
    image = use()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (folder / "outbox").symlink_to(tmp_path / "elsewhere")
    datastore = open_xnat_datastore(project="P", cache_path=tmp_path / "cache", roi_write="")
    with pytest.raises(CacheError, match="symbolic link"):
        datastore.save_label(datastore.list_images()[0], image, "final", {})
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_command_says_so_too(folder, xnat_sandbox, tmp_path, capsys, monkeypatch):
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", xnat_sandbox.password)
    words = ["--studies", xnat_sandbox.url, "--username", "admin", "--cache-path", str(tmp_path / "cache")]
    assert main(["outbox", *words]) != 0
    assert "chmod 700" in capsys.readouterr().err
