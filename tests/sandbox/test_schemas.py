"""The sandbox's XSDs, read by the parser of the SDK and compared with XNAT's own files."""

from __future__ import annotations

import importlib.util
import logging
from importlib.machinery import ModuleSpec
from io import StringIO
from itertools import permutations
from pathlib import Path
from types import ModuleType

import pytest
from lxml import etree
from xnat import StringLoader
from xnat.convert_xsd import SchemaParser

import monailabel_xnat

OURS = Path(monailabel_xnat.__file__).parent / "sandbox" / "schemas"
REAL = Path(__file__).parents[2].parent / "shared" / "xnat-schemas"
NAMES = ("xdat", "xnat", "roi")

SESSIONS = """
cr ct dx dx3DCraniofacial ecg eeg eps es esv gm gmv hd io meg mg mr nm op opt otherDicom pet petmr rf rg
rt sm sr us xa xa3D xc xcv
"""
SCANS = """
cr ct dx dx3DCraniofacial ecg eeg eps es esv gm gmv hd io meg mg mr mrs nm op opt otherDicom pet rf rg
rtImage sc seg sm sr us voiceAudio xa xa3D xc xcv
"""
OTHERS = """
xnat:projectData xnat:subjectData xnat:experimentData xnat:subjectAssessorData xnat:imageSessionData
xnat:imageScanData xnat:imageAssessorData xnat:reconstructedImageData xnat:qcAssessmentData
xnat:qcManualAssessorData xnat:abstractResource xnat:resource xnat:resourceCatalog xnat:resourceSeries
xnat:dicomSeries xnat:demographicData xnat:investigatorData xnat:projectParticipant xnat:validationData
xnat:addField icr:roiCollectionData
"""


class Logger(logging.Logger):
    """A logger with the additional level of xnatpy's logger."""

    def verbose(self, message: str, *args: object) -> None:
        self.debug(message, *args)


def parse(folder: Path, order: tuple[str, ...] = NAMES) -> SchemaParser:
    parser = SchemaParser(debug=False, logger=Logger("schemas"))
    for name in order:
        found = [path for path in folder.rglob(f"{name}.xsd") if path.parent.name in (name, "schemas")]
        parser.parse_schema_xmlstring(found[0].read_bytes().decode("utf-8"), schema_uri=name)
    return parser


def build(parser: SchemaParser) -> ModuleType:
    """Execute the model and register its classes, as `xnat.connect()` does after parsing."""
    code = StringIO()
    parser.write(code_file=code)
    loader = StringLoader(code.getvalue())
    module = importlib.util.module_from_spec(ModuleSpec("xnat.generated.model_test", loader))
    loader.exec_module(module)
    for cls in parser.class_list.values():
        if cls.name is None or (cls.base_class or "").startswith("xs:"):
            continue
        getattr(module, cls.writer.python_name).__register__(module.XNAT_CLASS_LOOKUP)
    return module


@pytest.fixture(
    scope="module",
    params=[OURS, pytest.param(REAL, marks=pytest.mark.skipif(not REAL.is_dir(), reason="not here"))],
    ids=["ours", "XNAT's"],
)
def model(request):
    return build(parse(request.param))


@pytest.mark.parametrize("kind", SESSIONS.split())
def test_session_type_is_a_class(model, kind):
    cls = model.XNAT_CLASS_LOOKUP[f"xnat:{kind}SessionData"]
    assert issubclass(cls, model.XNAT_CLASS_LOOKUP["xnat:imageSessionData"])
    assert issubclass(cls, model.XNAT_CLASS_LOOKUP["xnat:subjectAssessorData"])


@pytest.mark.parametrize("kind", SCANS.split())
def test_scan_type_is_a_class_with_free_parameters(model, kind):
    cls = model.XNAT_CLASS_LOOKUP[f"xnat:{kind}ScanData"]
    assert issubclass(cls, model.XNAT_CLASS_LOOKUP["xnat:imageScanData"])
    assert hasattr(cls, "parameters")


@pytest.mark.parametrize("xsi_type", OTHERS.split())
def test_type_is_a_class(model, xsi_type):
    assert xsi_type == model.XNAT_CLASS_LOOKUP[xsi_type]._XSI_TYPE


@pytest.mark.parametrize(
    ("xsi_type", "names"),
    [
        ("xnat:projectData", "name description keywords secondary_id pi aliases fields custom_fields"),
        ("xnat:subjectData", "label group demographics experiments sharing resources fields project"),
        ("xnat:mrSessionData", "date time note scanner scans assessors reconstructions fields resources uid"),
        ("xnat:ctScanData", "type quality note frames uid series_description modality scanner parameters"),
        ("xnat:resourceCatalog", "uri format content description file_count file_size label tags"),
        ("icr:roiCollectionData", "uid collection_type references name image_session_id in_ out date"),
        ("xnat:qcManualAssessorData", "rater comments scans pass_ image_session_id"),
    ],
)
def test_type_has_the_fields_that_clients_use(model, xsi_type, names):
    cls = model.XNAT_CLASS_LOOKUP[xsi_type]
    assert [name for name in names.split() if not hasattr(cls, name)] == []


def test_objects_are_found_by_label_or_type(model):
    assert model.XNAT_CLASS_LOOKUP["xnat:subjectData"]._DISPLAY_IDENTIFIER == "label"
    assert model.XNAT_CLASS_LOOKUP["xnat:experimentData"]._DISPLAY_IDENTIFIER == "label"
    assert model.XNAT_CLASS_LOOKUP["xnat:abstractResource"]._DISPLAY_IDENTIFIER == "label"
    assert model.XNAT_CLASS_LOOKUP["xnat:experimentData"]._HAS_FIELDS


@pytest.mark.parametrize("order", list(permutations(NAMES)))
def test_order_of_the_schemas_does_not_matter(order):
    assert sorted(build(parse(OURS, order)).XNAT_CLASS_LOOKUP) == sorted(build(parse(OURS)).XNAT_CLASS_LOOKUP)


def test_two_schemas_without_extension_types_are_enough():
    assert "xnat:mrSessionData" in build(parse(OURS, ("xdat", "xnat"))).XNAT_CLASS_LOOKUP


def test_schemas_are_valid_xml_schemas():
    etree.XMLSchema(etree.parse(str(OURS / "roi.xsd")))


@pytest.mark.skipif(not REAL.is_dir(), reason="XNAT's own schemas are not here")
def test_every_type_and_field_of_ours_is_xnats_too():
    ours, real = ({cls.name: cls for cls in parse(folder).class_list.values()} for folder in (OURS, REAL))
    assert sorted(set(ours) - set(real)) == []
    for name, cls in ours.items():
        assert cls.base_class == real[name].base_class, name
        for field, prototype in cls.attributes.items():
            twin = real[name].attributes[field]
            assert prototype.property_type == twin.property_type, f"{name}/{field}"
            assert prototype.display_identifier == twin.display_identifier, f"{name}/{field}"
            assert prototype.type == twin.type, f"{name}/{field}"
