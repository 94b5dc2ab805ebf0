"""The command report: what the page says, that it is one safe file, and that it looks right in a browser."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
import SimpleITK
from annotated_site import BINARY, add_image, add_label
from monailabel.interfaces.exception import MONAILabelException

from monailabel_xnat import XNATDatastore
from monailabel_xnat.cli.main import main
from monailabel_xnat.cli.report import page
from monailabel_xnat.cli.report.pictures import draw
from monailabel_xnat.errors import LabelNotUploadedError
from monailabel_xnat.sandbox import Sandbox

AFFINE = np.diag([-2.0, -1.0, 5.0, 1.0])  # a voxel has 10 mm3
SHAPE = (20, 20, 6)
HOSTILE = '<script src="http://evil.example/x.js">alert(1)</script>'
HOSTILE_NAME = "<img src=x onerror=alert(1)>'\"{{ 7*7 }}"
VOXELS = {"a": 40, "b": 42, "c": 44, "d": 46, "e": 48, "f": 50, "g": 400}


def cube(voxels, value=1, start=0):
    array = np.zeros(SHAPE)
    array[..., 2].flat[start : start + voxels] = value
    return array


@pytest.fixture(scope="module")
def site():
    """Project P with final labels of two users, one of them an outlier, one image with a draft and one without."""
    with Sandbox() as sandbox, requests.Session() as admin:
        admin.auth = (sandbox.username, sandbox.password)
        where = admin, sandbox.url
        image = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) % 500 - 200
        sandbox.ids = {
            name: add_image(*where, "P", name, image, AFFINE, modality="CT", series_description=f"Abdomen {name}")
            for name in (*VOXELS, "h")
        }
        for name in ("y", "z"):
            sandbox.ids[name] = add_image(*where, "Q", name, image, AFFINE, series_description=HOSTILE)
        ids = sandbox.ids
        for day, (name, voxels) in enumerate(VOXELS.items(), 5):
            tag = "original" if name == "b" else "final"
            user = "anna" if name < "d" else "ben"
            names = {1: "liver", 2: HOSTILE_NAME}
            add_label(*where, ids[name], tag, user, f"2026-01-{day:02d}", cube(voxels), AFFINE, names)
        draft = {"user": "anna", "day": "2026-01-03", "affine": AFFINE, "names": {1: "liver"}, "model": "deepedit"}
        add_label(*where, ids["a"], "original", array=cube(30), **draft)
        add_label(*where, ids["a"], "final", "ben", "2026-01-08", cube(40, start=20), AFFINE, {1: "liver"})
        broken = {"array": cube(9), "affine": AFFINE, "names": {1: "liver"}, "description": b"{}"}
        add_label(*where, ids["c"], "broken", "ben", "2026-01-09", **broken)
        add_label(*where, ids["h"], "final", "ben", "2026-01-10", cube(9), AFFINE, {1: "liver"}, hidden=True)
        left = nibabel.Nifti1Image(cube(9).astype(np.uint8), AFFINE).to_bytes()
        folder = f"{sandbox.url}/data/experiments/{ids['z'].split('/')[2]}/scans/1/resources/AI/files"
        admin.put(f"{folder}/deepedit.nii.gz", data=gzip.compress(left), headers=BINARY).raise_for_status()
        yield sandbox


@pytest.fixture(scope="module")
def made(site, tmp_path_factory):
    """The page and the JSON of one report, with a label that waits in the outbox."""
    folder = tmp_path_factory.mktemp("report")
    given = {"project": "P,Q", "cache_path": folder / "cache", "data_path": folder / "data", "environ": {}}
    with XNATDatastore(site.url, site.username, site.password, **given) as datastore:
        nibabel.save(nibabel.Nifti1Image(cube(5).astype(np.uint8), AFFINE), folder / "label.nii.gz")
        datastore.list_images()
        site.faults.add("MONAILABEL_final", method="PUT", status=503, times=None)
        with pytest.raises(LabelNotUploadedError):
            datastore.save_label(site.ids["y"], str(folder / "label.nii.gz"), "final", {"model": HOSTILE_NAME})
        site.faults.clear()
        with pytest.raises(MONAILabelException):
            datastore.save_label("MUELLER_HANS", str(folder / "label.nii.gz"), "final", {})
    words = ["--studies", site.url, "--username", site.username, "--project", "P,Q"]
    words += ["--cache-path", str(folder / "cache"), "--conf", "xnat_data_path", str(folder / "data")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONAI_LABEL_XNAT_PASSWORD", site.password)
        command = ["report", "-o", str(folder / "report.html"), "--thumbnails", "4", *words]
        assert main(command) == 0
        with (folder / "facts.json").open("w") as stream:
            patch.setattr("sys.stdout", stream)
            assert main(["report", "--json", *words]) == 0
    return folder / "report.html", json.loads((folder / "facts.json").read_text())


class Page(HTMLParser):
    """The elements of a page, each with its attributes and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "within": [other["tag"] for other in self._open]}
        assert len(attrs) == len(element["attrs"])
        self.elements.append(element)
        if tag not in {"meta", "img", "br", "wbr"}:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, *tags):
        return [element for element in self.elements if element["tag"] in tags]


@pytest.fixture(scope="module")
def shown(made):
    return Page(made[0].read_text())


def test_progress_is_counted_for_each_project_and_day(site, made):
    first, second = made[1]["projects"]
    assert (first["project"], first["images"], first["final"], first["draft"], first["unlabelled"]) == ("P", 8, 6, 1, 1)
    assert (second["project"], second["final"], second["draft"], second["unlabelled"]) == ("Q", 1, 1, 0)
    days = {day["date"]: (day["draft"], day["final"]) for day in first["days"]}
    assert days["2026-01-03"] == (1, 0)
    assert days["2026-01-05"] == (0, 1)  # the draft became final
    assert days["2026-01-06"] == (1, 1)
    assert days["2026-01-11"] == (1, 6)
    assert list(days.values())[-1] == (1, 6)


def test_people_are_listed_with_what_they_saved(made):
    people = {person["user"]: person for person in made[1]["people"]}
    assert (people["anna"]["versions"], people["anna"]["finals"], people["anna"]["with_model"]) == (4, 2, 1)
    assert (people["ben"]["finals"], people["ben"]["images"], people["ben"]["last"][:10]) == (5, 5, "2026-01-11")


def test_users_who_labelled_one_image_are_compared(site, made):
    (found,) = made[1]["agreement"]
    assert (found["users"], found["structure"], found["lowest_image"]) == (["anna", "ben"], "liver", site.ids["a"])
    assert found["mean_dice"] == pytest.approx(0.5)


def test_an_outlier_is_named(site, made, shown):
    (liver,) = [item for item in made[1]["volumes"] if (item["project"], item["structure"]) == ("P", "liver")]
    assert [value["volume"] for value in liver["volumes"]] == pytest.approx([0.4, 0.42, 0.44, 0.46, 0.48, 0.5, 4.0])
    assert [value["image"] for value in liver["volumes"] if value["side"] == "large"] == [site.ids["g"]]
    (said,) = [item["text"] for item in shown.all("li") if "liver: unusually large" in item["text"]]
    assert site.ids["g"] in said


def test_the_report_says_what_waits_and_what_cannot_be_read(site, made, shown):
    waiting, unknown = made[1]["outbox"]
    assert (unknown["image"], unknown["state"]) == ("", "unassigned")
    assert (waiting["image"], waiting["tag"], waiting["attempts"]) == (site.ids["y"], "final", 1)
    assert waiting["waits_for"] in " ".join(cell["text"] for cell in shown.all("td"))
    broken = [item for item in made[1]["left_out"] if item["kind"] == "label that cannot be read"]
    assert [item["what"].startswith(site.ids["c"]) for item in broken] == [True]


def test_the_report_says_that_a_label_was_removed(made):
    removed = [item["what"] for item in made[1]["left_out"] if item["kind"] == "removed label"]
    assert removed == ["1 versions"]


def test_a_label_that_another_program_left_counts_but_says_neither_when_nor_how_large(site, made):
    assert made[1]["projects"][1]["undated"] == 1
    (left,) = [item for item in made[1]["labels"] if item["image"] == site.ids["z"]]
    assert (left["saved_at"], left["saved_by"], left["problem"]) == ("", "", "")
    unmeasured = [item["what"] for item in made[1]["left_out"] if item["kind"] == "label without volumes"]
    assert unmeasured == [f"{site.ids['z']} original"]


def test_no_more_pictures_are_drawn_than_asked_for_and_outliers_come_first(site, shown):
    pictures = shown.all("img")
    assert len(pictures) == 4
    assert site.ids["g"] in pictures[0]["attrs"]["alt"]


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PLI", "ARS"])
def test_a_picture_shows_the_patient_as_radiologists_look_at_them(axes, tmp_path):
    """The right of the patient is on the left and the front at the top, in whatever order the voxels are."""
    marks = np.zeros((20, 30, 5))
    marks[:4, :6, 3] = 1  # right and front, because the axes go to the left, to the back and to the head
    orient = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("LPS"), nibabel.orientations.axcodes2ornt(axes)
    )
    for name, array in (("image", np.zeros(marks.shape)), ("label", marks)):
        stored = nibabel.Nifti1Image(array.astype(np.uint8), np.diag([-2.0, -1.0, 4.0, 1.0])).as_reoriented(orient)
        nibabel.save(stored, tmp_path / f"{name}.nii")
    png, present = draw(tmp_path / "image.nii", tmp_path / "label.nii", {1: 0}, {1}, is_ct=True)
    (tmp_path / "seen.png").write_bytes(png)
    seen = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "seen.png"))).astype(int)
    assert present == {1}
    assert seen.shape == (192, 256, 3)  # 30 mm by 40 mm
    is_marked = seen[..., 0] > seen[..., 2] + 30  # orange on grey
    rows, columns = np.nonzero(is_marked)
    assert (rows.min(), columns.min()) == (0, 0)
    assert (rows.max() + 1, columns.max() + 1) == pytest.approx((192 * 6 / 30, 256 * 4 / 20), abs=1.5)


def test_hostile_texts_stay_texts(shown):
    assert not shown.all("script", "iframe", "object", "embed", "link", "form", "base")
    assert HOSTILE_NAME in " ".join(cell["text"] for cell in shown.all("td"))
    for element in shown.elements:
        assert not [name for name in element["attrs"] if name.startswith("on") or name == "style"]


def test_a_hostile_series_description_stays_text(site, shown):
    texts = [cell["text"] for cell in shown.all("td")]
    assert any("alert(1)" in text and "script" in text for text in texts)


def test_the_page_needs_nothing_from_elsewhere_and_forbids_it(made, shown):
    assert all(image["attrs"]["src"].startswith("data:image/png;base64,") for image in shown.all("img"))
    ids = [element["attrs"]["id"] for element in shown.elements if "id" in element["attrs"]]
    assert len(ids) == len(set(ids))
    assert all(link["attrs"]["href"][1:] in ids and link["attrs"]["href"][0] == "#" for link in shown.all("a"))
    (policy,) = [meta["attrs"] for meta in shown.all("meta") if "http-equiv" in meta["attrs"]]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    style = Path(page.__file__).with_name("page.css").read_text()
    assert "url(" not in style
    assert "@import" not in style


def test_neither_secrets_nor_names_of_patients_are_in_it(site, made):
    for text in (made[0].read_text(), json.dumps(made[1])):
        assert site.password not in text
        assert "DOE_JANE" not in text
        assert "MUELLER" not in text


def test_the_file_is_for_this_user_only(made):
    assert made[0].stat().st_mode & 0o777 == 0o600


def test_the_page_can_be_read_without_seeing_it(shown):
    tables = shown.all("table")
    assert len(shown.all("caption")) == len(tables) > 5
    assert all(cell["attrs"].get("scope") in {"row", "col"} for cell in shown.all("th"))
    assert all(image["attrs"]["alt"] for image in shown.all("img"))
    drawn = [svg["attrs"] for svg in shown.all("svg")]
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in drawn)
    levels = [int(heading["tag"][1]) for heading in shown.all("h1", "h2", "h3")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_a_second_report_asks_nothing_of_labels_that_it_knows(site, made, tmp_path, monkeypatch):
    """Descriptions and lists of files are remembered. Only the listing is requested again."""
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", site.password)
    cache = made[0].parent / "cache"
    words = ["--studies", site.url, "--username", site.username, "--project", "P,Q", "--cache-path", str(cache)]
    site.requests.clear()
    assert main(["report", "-o", str(tmp_path / "r.html"), "--pairs", "0", "--thumbnails", "0", *words]) == 0
    asked = [request.path for request in site.requests if "MONAILABEL_" in request.path]
    assert [path for path in asked if "MONAILABEL_broken" not in path] == []  # a broken file may have been repaired
    changing = [request.path for request in site.requests if request.method not in {"GET", "HEAD"}]
    assert set(changing) <= {"/data/services/auth", "/data/JSESSION"}  # login and logout


def test_an_empty_project_has_a_report(site, tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", site.password)
    auth = (site.username, site.password)
    requests.put(f"{site.url}/data/projects/EMPTY", auth=auth, timeout=30).raise_for_status()
    words = ["--studies", site.url, "--username", site.username, "--project", "EMPTY"]
    assert main(["report", "-o", str(tmp_path / "r.html"), "--cache-path", str(tmp_path / "cache"), *words]) == 0
    assert "There is no image." in (tmp_path / "r.html").read_text()


def contrast(one, other):
    """Return the contrast of two colours as WCAG 2 defines it, 1 to 21."""

    def luminance(colour):
        channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_texts_and_marks_stand_out_from_what_is_behind_them(theme):
    style = Path(page.__file__).with_name("page.css").read_text()
    block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[theme]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block))
    for behind in ("page", "card"):
        assert all(contrast(colours[name], colours[behind]) >= 4.5 for name in ("text", "soft", "link", "odd"))
        assert all(contrast(colours[name], colours[behind]) >= 3 for name in ("final", "draft", "dot"))


CHROMIUM = shutil.which("chromium")
QUIET = """
    --headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync
    --disable-default-apps --disable-extensions --no-first-run --no-default-browser-check --metrics-recording-only
    --disable-domain-reliability --disable-dev-shm-usage --allow-file-access-from-files --hide-scrollbars
    --virtual-time-budget=5000
"""
FRAME = """<!DOCTYPE html><html style="color-scheme: light dark"><body style="margin: 0">
<iframe src="report.html" style="border: 0; width: {width}px; height: {height}px"></iframe>
<script>onload = () => {{
  const inner = document.querySelector("iframe").contentDocument, root = inner.documentElement;
  const wide = [...inner.querySelectorAll("main *")].filter(element => !element.closest(".scroll, svg")
    && element.getBoundingClientRect().right > {width} + 1).map(element => element.tagName + "." + element.className);
  document.body.dataset.found = JSON.stringify({{scroll: root.scrollWidth, wide,
    page: getComputedStyle(inner.body).backgroundColor}});
}}</script></body></html>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(("theme", "page_colour"), [("dark", "rgb(20, 24, 29)"), ("light", "rgb(255, 255, 255)")])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_overflows_in_a_browser(made, tmp_path, width, theme, page_colour):
    shutil.copy(made[0], tmp_path / "report.html")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width, height=3000))
    scheme = f"--blink-settings=preferredColorScheme={('dark', 'light').index(theme)}"
    options = [
        *QUIET.split(),
        scheme,
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={max(width, 500)},3000",
    ]
    address = (tmp_path / "frame.html").as_uri()
    seen = subprocess.run(
        [CHROMIUM, *options, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(re.search(r"data-found=\"(.*?)\"", seen.stdout)[1].replace("&quot;", '"'))
    assert found == {"scroll": width, "wide": [], "page": page_colour}
    picture = tmp_path / "seen.png"
    subprocess.run(
        [CHROMIUM, *options, f"--screenshot={picture}", address], capture_output=True, timeout=120, check=True
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or not shutil.which("pdftotext"), reason="needs Chromium and poppler")
def test_ids_are_whole_on_paper(site, made, tmp_path):
    """They were broken after each few letters."""
    options = [*QUIET.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={tmp_path / 'seen.pdf'}"]
    subprocess.run([CHROMIUM, *options, made[0].as_uri()], capture_output=True, timeout=120, check=True)
    asked = ["pdftotext", "-raw", str(tmp_path / "seen.pdf"), "-"]
    text = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout
    assert site.ids["a"].split("/")[2] in text
    assert re.findall(r".*XNAT_(?![SE]\d{5}).*", text) == []
