"""A datastore within a torch Dataset, and its errors, in the processes of data loaders and pools."""

from __future__ import annotations

import inspect
import multiprocessing
import pickle
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor

import pytest
from fastapi import HTTPException

from monailabel_xnat import errors
from monailabel_xnat.datastore.client_errors import errors_for_clients

pytest.importorskip("torch")  # the matrix has none
import torch.utils.data
from volumes import Volumes, refuse

PROJECT = "P"
PASSWORD = "hunter2-of-the-test"
KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.XNATDatastoreError)]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def site(xnat_sandbox, demo_dicom):
    xnat_sandbox.archive.create_project(PROJECT)
    for case in demo_dicom.cases[:2]:
        xnat_sandbox.import_dicom(case.dicom, PROJECT)
    return xnat_sandbox


@pytest.fixture
def datastore(site, open_xnat_datastore, monkeypatch):
    # Objects that are sent to another process hold no password: there it comes from the environment.
    monkeypatch.setenv("MONAI_LABEL_XNAT_USERNAME", site.username)
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", site.password)
    return open_xnat_datastore(project=PROJECT, prefetch=0, series_description="!*localizer*")


def loader_of(library):
    if library == "torch":
        return torch.utils.data.DataLoader
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import monai.data
    return monai.data.DataLoader


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("library", ["torch", "monai"])
def test_a_datastore_in_a_dataset_works_in_the_workers_of_a_data_loader(site, datastore, library, start):
    loader = loader_of(library)
    images = datastore.list_images()
    batches = loader(Volumes(datastore, images), batch_size=1, num_workers=2, multiprocessing_context=start)
    means = [float(batch) for batch in batches]
    assert means == pytest.approx([Volumes(datastore, images)[index] for index in range(len(images))], rel=1e-5)
    site.requests.clear()
    datastore.refresh()
    assert "/data/services/auth" not in [served.path for served in site.requests]


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_an_error_of_a_worker_comes_back_whole(datastore, start):
    volumes = Volumes(datastore, ["P/x/y/1"])
    batches = torch.utils.data.DataLoader(volumes, num_workers=1, multiprocessing_context=start)
    with pytest.raises(errors.UnknownImageError, match="no image 'P/x/y/1'"):
        list(batches)


def test_an_error_of_a_process_pool_comes_back_whole(datastore):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        refused = pool.submit(refuse, datastore, "P/x/y/1")
    with pytest.raises(errors.UnknownImageError, match="no image 'P/x/y/1'") as caught:
        refused.result()
    assert caught.value.hint
    assert caught.value.status_code == 404


def use_in_child(datastore, image, queue):
    datastore.update_image_info(image, {"child": True})
    label = datastore.get_label_uri(image, "final")
    queue.put((datastore.image_id(datastore.scan(image)), bool(label), len(datastore.list_images())))


@pytest.mark.slow
def test_a_forked_worker_does_not_wait_for_threads_that_only_its_parent_has(datastore, demo_dicom):
    """A thread of the parent may hold any lock at the moment of the fork; nobody releases it in the child."""
    image, other = sorted(datastore.list_images())
    datastore.save_label(image, demo_dicom.cases[0].truth, "final", {})
    datastore.scan(image)  # the data model is loaded now
    context, stopped = multiprocessing.get_context("fork"), threading.Event()

    def work(step):
        while not stopped.is_set():
            step()
            time.sleep(0.002)  # the sandbox runs in this process, too

    steps = (
        lambda: datastore.update_image_info(image, {"parent": time.time()}),
        lambda: datastore.get_label_info(image, "final"),
        lambda: datastore.image_id(datastore.scan(other)),
        datastore.refresh,
    )
    threads = [threading.Thread(target=work, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    try:
        for _ in range(8):
            queue = context.Queue()
            child = context.Process(target=use_in_child, args=(datastore, image, queue))
            child.start()
            try:
                assert queue.get(timeout=120) == (image, True, 2)
                child.join(120)
                assert child.exitcode == 0
            finally:
                child.kill()
                child.join()
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def test_what_is_pickled_holds_no_secret_and_opens_itself_at_its_first_use(site, datastore):
    content = pickle.dumps(datastore)
    assert site.password.encode() not in content
    site.requests.clear()
    handed_over = pickle.loads(content)
    assert repr(handed_over) == repr(datastore)
    handed_over.close()
    assert len(site.requests) == 0
    assert handed_over.list_images() == datastore.list_images()
    handed_over.close()
    assert [served.path for served in site.requests][-1] == "/data/JSESSION"


def test_without_a_password_in_its_environment_a_worker_says_what_to_do(site, datastore, monkeypatch):
    content = pickle.dumps(datastore)
    monkeypatch.delenv("MONAI_LABEL_XNAT_PASSWORD")
    monkeypatch.setenv("NETRC", "/dev/null")
    with pytest.raises(errors.SettingsError, match=r"no password for user 'admin'.*MONAI_LABEL_XNAT_PASSWORD"):
        pickle.loads(content).list_images()


def test_nothing_of_its_inside_can_be_walked(datastore):
    assert vars(datastore) == {}
    with pytest.raises(AttributeError, match="no_such_thing"):
        datastore.no_such_thing  # noqa: B018 - that it is not there


def facts(error):
    return {**vars(error), "text": str(error), "args": error.args}


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_can_be_pickled_and_comes_back_whole(kind):
    more = {"url": "/data/x", "status": 404} if issubclass(kind, errors.ServerError) else {}
    plain = kind("what was wrong", hint="what to do", **more)
    with pytest.raises(kind) as caught, errors_for_clients():
        raise plain
    for error in (plain, caught.value):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert facts(again) == facts(error)
    assert isinstance(again, HTTPException)
    assert pickle.loads(pickle.dumps(type(caught.value))) is type(caught.value)
    made = type(caught.value)("what was wrong", hint="what to do", **more)
    assert facts(made) == facts(caught.value)
