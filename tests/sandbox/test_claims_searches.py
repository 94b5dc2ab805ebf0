"""Searches, as XNAT's own tests expect them: every comparison with every kind of value. Each test names its source."""

from __future__ import annotations

import pytest

SUBJECT, MR, PET, SCAN = "xnat:subjectData", "xnat:mrSessionData", "xnat:petSessionData", "xnat:mrScanData"
GROUPS = {"sym": "Symmetric", "lin": "Special linear", "fro": "Frobenius", "cyc": "Cyclic", "none": ""}
SESSIONS = {
    "m1": {"date": "2020-03-20", "dcmPatientWeight": "130.5", "delay": "10000"},
    "m2": {"date": "2018-07-07", "dcmPatientWeight": "150", "delay": "5000"},
    "m3": {"date": "2021-02-02", "dcmPatientWeight": "200.0", "delay": "1234"},
    "m4": {},
}
TRACERS = {"p1": "2011-01-01 03:00:00.0", "p2": "2011-01-01 03:00:01.0", "p3": "2016-01-02 20:00:00.0", "p4": ""}
TIMES = {"1": "01:23:45", "2": "09:09:09", "3": "10:10:10", "4": "08:08:08", "5": ""}


@pytest.fixture(scope="module")
def archive(request):
    """A project whose objects differ in one value of each kind. One object of each kind has no value."""
    from conftest import Api

    from monailabel_xnat.sandbox import Sandbox

    with Sandbox() as sandbox:
        api = Api(sandbox)
        api.made("/data/projects/P")
        for label, group in GROUPS.items():
            api.made(f"/data/projects/P/subjects/{label}", **({"group": group} if group else {}))
        base = "/data/projects/P/subjects/none/experiments"
        for label, fields in SESSIONS.items():
            api.made(f"{base}/{label}", xsiType=MR, **{f"{MR}/{name}": value for name, value in fields.items()})
        for label, start in TRACERS.items():
            api.made(f"{base}/{label}", xsiType=PET, **({f"{PET}/tracer/startTime": start} if start else {}))
        for number, start in TIMES.items():
            fields = {f"{SCAN}/startTime": start} if start else {}
            api.made(f"{base}/m4/scans/{number}", xsiType=SCAN, type="T1", **fields)
        yield api
        api.close()


def found(api, root: str, *criteria: tuple[str, str, str]) -> list[str]:
    """Return the labels of the objects that a search finds, and the IDs of scans."""
    shown = {SUBJECT: "SUBJECT_LABEL", SCAN: "ID"}.get(root, "LABEL")

    def criterion(field: str, kind: str, value: str) -> str:
        kind = kind.replace("<", "&lt;")
        inner = f"<xdat:schema_field>{field}</xdat:schema_field><xdat:comparison_type>{kind}</xdat:comparison_type>"
        return f"<xdat:criteria>{inner}<xdat:value>{value}</xdat:value></xdat:criteria>"

    field = f"<xdat:element_name>{root}</xdat:element_name><xdat:field_ID>{shown}</xdat:field_ID>"
    document = (
        '<xdat:bundle xmlns:xdat="http://nrg.wustl.edu/security">'
        f"<xdat:root_element_name>{root}</xdat:root_element_name><xdat:search_field>{field}</xdat:search_field>"
        f'<xdat:search_where method="AND">{"".join(criterion(*each) for each in criteria)}</xdat:search_where>'
        "</xdat:bundle>"
    )
    answer = api.post("/data/search", document.encode(), kind="text/xml", format="json")
    assert answer.status_code == 200, answer.text
    return sorted(row[shown.lower()] for row in answer.json()["ResultSet"]["Result"])


@pytest.mark.claim(
    "searches",
    "TestSearchFilterStrings.testSearchEngineFilterStringDisplayFieldEquals",
    "TestSearchFilterStrings.testSearchEngineFilterStringDisplayFieldLike",
    "TestSearchFilterStrings.testSearchEngineFilterStringDisplayFieldBetween",
    "TestSearchFilterStrings.testSearchEngineFilterStringDisplayFieldIsNull",
    "TestSearchFilterStrings.testSearchEngineFilterStringDisplayFieldIsNotNull",
    "TestSearchFilterStrings.testSearchEngineFilterStringSchemaFieldEquals",
    "TestSearchFilterStrings.testSearchEngineFilterStringSchemaFieldLike",
    "TestSearchFilterStrings.testSearchEngineFilterStringSchemaFieldBetween",
    "TestSearchFilterStrings.testSearchEngineFilterStringSchemaFieldIsNull",
    "TestSearchFilterStrings.testSearchEngineFilterStringSchemaFieldIsNotNull",
)
@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("=", "Symmetric", "sym"),
        ("LIKE", "S%", "lin sym"),
        ("LIKE", "%s", "fro"),
        ("LIKE", "%met%", "sym"),
        ("BETWEEN", "B AND D", "cyc"),
        ("IS NULL", "", "none"),
        ("IS NOT NULL", "", "cyc fro lin sym"),
    ],
)
@pytest.mark.parametrize("field", [f"{SUBJECT}.SUB_GROUP", f"{SUBJECT}/group"], ids=["display", "schema"])
def test_texts(archive, field, kind, value, expected):
    assert found(archive, SUBJECT, (field, kind, value)) == expected.split()


@pytest.mark.claim(
    "searches",
    "TestSearchFilterDates.testSearchEngineFilterDateDisplayFieldEquals",
    "TestSearchFilterDates.testSearchEngineFilterDateDisplayFieldGreaterThan",
    "TestSearchFilterDates.testSearchEngineFilterDateDisplayFieldGreaterThanOrEquals",
    "TestSearchFilterDates.testSearchEngineFilterDateDisplayFieldLessThan",
    "TestSearchFilterDates.testSearchEngineFilterDateDisplayFieldLessThanOrEquals",
    "TestSearchFilterDates.testSearchEngineFilterDateDisplayFieldBetween",
    "TestSearchFilterDates.testSearchEngineFilterDateDisplayFieldIsNull",
    "TestSearchFilterDates.testSearchEngineFilterDateDisplayFieldIsNotNull",
    "TestSearchFilterDates.testSearchEngineFilterDateSchemaFieldEquals",
    "TestSearchFilterDates.testSearchEngineFilterDateSchemaFieldGreaterThan",
    "TestSearchFilterDates.testSearchEngineFilterDateSchemaFieldGreaterThanOrEquals",
    "TestSearchFilterDates.testSearchEngineFilterDateSchemaFieldLessThan",
    "TestSearchFilterDates.testSearchEngineFilterDateSchemaFieldLessThanOrEquals",
    "TestSearchFilterDates.testSearchEngineFilterDateSchemaFieldBetween",
    "TestSearchFilterDates.testSearchEngineFilterDateSchemaFieldIsNull",
    "TestSearchFilterDates.testSearchEngineFilterDateSchemaFieldIsNotNull",
)
@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("=", "2020-03-20", "m1"),
        (">", "2020-03-20", "m3"),
        (">=", "2020-03-20", "m1 m3"),
        ("<", "2020-03-20", "m2"),
        ("<=", "2020-03-20", "m1 m2"),
        ("BETWEEN", "2018-07-07 AND 2021-02-02", "m1 m2 m3"),
        ("BETWEEN", "2018-07-08 AND 2021-02-01", "m1"),
        ("BETWEEN", "07/08/2018 AND 02/01/2021", "m1"),
        ("IS NULL", "", "m4"),
        ("IS NOT NULL", "", "m1 m2 m3"),
    ],
)
@pytest.mark.parametrize("field", [f"{MR}.DATE", f"{MR}/date"], ids=["display", "schema"])
def test_dates(archive, field, kind, value, expected):
    assert found(archive, MR, (field, kind, value)) == expected.split()


@pytest.mark.claim(
    "searches",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeDisplayFieldEquals",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeDisplayFieldGreaterThan",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeDisplayFieldGreaterThanOrEquals",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeDisplayFieldLessThan",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeDisplayFieldLessThanOrEquals",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeDisplayFieldBetween",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeDisplayFieldIsNull",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeDisplayFieldIsNotNull",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeDisplayFieldIn",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeSchemaFieldEquals",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeSchemaFieldGreaterThan",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeSchemaFieldGreaterThanOrEquals",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeSchemaFieldLessThan",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeSchemaFieldLessThanOrEquals",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeSchemaFieldBetween",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeSchemaFieldIsNull",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeSchemaFieldIsNotNull",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeSchemaFieldIn",
)
@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("=", "2011-01-01 03:00:00.0", "p1"),
        (">", "2011-01-01 03:00:01.0", "p3"),
        (">=", "2011-01-01 03:00:01.0", "p2 p3"),
        ("<", "2011-01-01 03:00:01.0", "p1"),
        ("<=", "2011-01-01 03:00:01.0", "p1 p2"),
        ("IN", "2011-01-01 03:00:00.0, 2011-01-01 03:00:01.0", "p1 p2"),
        ("BETWEEN", "2011-01-01 03:00:01.0 AND 2012-02-02 13:00:01.0", "p2"),
        ("IS NULL", "", "p4"),
        ("IS NOT NULL", "", "p1 p2 p3"),
    ],
)
@pytest.mark.parametrize("field", [f"{PET}.TRACER_STARTTIME", f"{PET}/tracer/startTime"], ids=["display", "schema"])
def test_moments(archive, field, kind, value, expected):
    assert found(archive, PET, (field, kind, value)) == expected.split()


@pytest.mark.claim(
    "searches",
    "TestSearchFilterTimes.testSearchEngineFilterTimeDisplayFieldEquals",
    "TestSearchFilterTimes.testSearchEngineFilterTimeDisplayFieldGreaterThan",
    "TestSearchFilterTimes.testSearchEngineFilterTimeDisplayFieldGreaterThanOrEquals",
    "TestSearchFilterTimes.testSearchEngineFilterTimeDisplayFieldLessThan",
    "TestSearchFilterTimes.testSearchEngineFilterTimeDisplayFieldLessThanOrEquals",
    "TestSearchFilterTimes.testSearchEngineFilterTimeDisplayFieldBetween",
    "TestSearchFilterTimes.testSearchEngineFilterTimeDisplayFieldIsNull",
    "TestSearchFilterTimes.testSearchEngineFilterTimeDisplayFieldIsNotNull",
    "TestSearchFilterTimes.testSearchEngineFilterTimeSchemaFieldEquals",
    "TestSearchFilterTimes.testSearchEngineFilterTimeSchemaFieldGreaterThan",
    "TestSearchFilterTimes.testSearchEngineFilterTimeSchemaFieldGreaterThanOrEquals",
    "TestSearchFilterTimes.testSearchEngineFilterTimeSchemaFieldLessThan",
    "TestSearchFilterTimes.testSearchEngineFilterTimeSchemaFieldLessThanOrEquals",
    "TestSearchFilterTimes.testSearchEngineFilterTimeSchemaFieldBetween",
    "TestSearchFilterTimes.testSearchEngineFilterTimeSchemaFieldIsNull",
    "TestSearchFilterTimes.testSearchEngineFilterTimeSchemaFieldIsNotNull",
)
@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("=", "10:10:10", "3"),
        (">", "08:08:08", "2 3"),
        (">", "08:08:07.999", "2 3 4"),
        (">=", "08:08:08", "2 3 4"),
        ("<", "09:09:09", "1 4"),
        ("<", "09:09:09.5", "1 2 4"),
        ("<=", "09:09:09", "1 2 4"),
        ("BETWEEN", "08:08:08 AND 10:10:10", "2 3 4"),
        ("IS NULL", "", "5"),
        ("IS NOT NULL", "", "1 2 3 4"),
    ],
)
@pytest.mark.parametrize("field", [f"{SCAN}.STARTTIME", f"{SCAN}/startTime"], ids=["display", "schema"])
def test_times(archive, field, kind, value, expected):
    assert found(archive, SCAN, (field, kind, value)) == expected.split()


@pytest.mark.claim(
    "searches",
    "TestSearchFilterFloats.*",
    "TestSearchFilterIntegers.testSearchEngineFilterIntegerSchemaFieldEquals",
    "TestSearchFilterIntegers.testSearchEngineFilterIntegerSchemaFieldGreaterThan",
    "TestSearchFilterIntegers.testSearchEngineFilterIntegerSchemaFieldGreaterThanOrEquals",
    "TestSearchFilterIntegers.testSearchEngineFilterIntegerSchemaFieldLessThan",
    "TestSearchFilterIntegers.testSearchEngineFilterIntegerSchemaFieldLessThanOrEquals",
    "TestSearchFilterIntegers.testSearchEngineFilterIntegerSchemaFieldBetween",
    "TestSearchFilterIntegers.testSearchEngineFilterIntegerSchemaFieldIsNull",
    "TestSearchFilterIntegers.testSearchEngineFilterIntegerSchemaFieldIsNotNull",
    "TestSearchFilterIntegers.testSearchEngineFilterIntegerSchemaFieldNotEquals",
)
@pytest.mark.parametrize(
    ("name", "kind", "value", "expected"),
    [
        ("dcmPatientWeight", "=", "130.5", "m1"),
        ("dcmPatientWeight", "=", "150", "m2"),
        ("dcmPatientWeight", "!=", "130.5", "m2 m3"),
        ("dcmPatientWeight", ">=", "150", "m2 m3"),
        ("dcmPatientWeight", "<", "150", "m1"),
        ("dcmPatientWeight", "<=", "150", "m1 m2"),
        ("dcmPatientWeight", "IN", "130.5, 150.0", "m1 m2"),
        ("dcmPatientWeight", "BETWEEN", "130.5 AND 200", "m1 m2 m3"),
        ("dcmPatientWeight", "BETWEEN", "140 AND 190", "m2"),
        ("dcmPatientWeight", "IS NULL", "", "m4"),
        ("dcmPatientWeight", "IS NOT NULL", "", "m1 m2 m3"),
        ("delay", "=", "10000", "m1"),
        ("delay", "!=", "10000", "m2 m3"),
        ("delay", ">", "5000", "m1"),
        ("delay", ">=", "5000", "m1 m2"),
        ("delay", "<", "5000", "m3"),
        ("delay", "<=", "5000", "m2 m3"),
        ("delay", "BETWEEN", "1234 AND 5000", "m2 m3"),
        ("delay", "IS NULL", "", "m4"),
        ("delay", "IS NOT NULL", "", "m1 m2 m3"),
    ],
)
def test_numbers(archive, name, kind, value, expected):
    assert found(archive, MR, (f"{MR}/{name}", kind, value)) == expected.split()


@pytest.mark.claim(
    "searches",
    "TestSearchFilterStrings.testSearchEngineFilterStringDisplayFieldNotEquals",
    "TestSearchFilterStrings.testSearchEngineFilterStringSchemaFieldNotEquals",
    "TestSearchFilterDates.testSearchEngineFilterDateDisplayFieldNotEquals",
    "TestSearchFilterDates.testSearchEngineFilterDateSchemaFieldNotEquals",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeDisplayFieldNotEquals",
    "TestSearchFilterDatetimes.testSearchEngineFilterDateTimeSchemaFieldNotEquals",
    "TestSearchFilterTimes.testSearchEngineFilterTimeDisplayFieldNotEquals",
    "TestSearchFilterTimes.testSearchEngineFilterTimeSchemaFieldNotEquals",
)
@pytest.mark.parametrize(
    ("root", "display", "schema", "value", "others", "empty"),
    [
        (SUBJECT, "SUB_GROUP", "group", "Symmetric", "cyc fro lin", "none"),
        (MR, "DATE", "date", "2020-03-20", "m2 m3", "m4"),
        (PET, "TRACER_STARTTIME", "tracer/startTime", "2011-01-01 03:00:00.0", "p2 p3", "p4"),
        (SCAN, "STARTTIME", "startTime", "10:10:10", "1 2 4", "5"),
    ],
)
def test_an_object_without_a_value_differs_only_in_display_fields(archive, root, display, schema, value, others, empty):
    """XNAT's own tests call this behaviour weird."""
    assert found(archive, root, (f"{root}/{schema}", "!=", value)) == others.split()
    assert found(archive, root, (f"{root}.{display}", "!=", value)) == sorted([*others.split(), empty])


@pytest.mark.claim("searches", "TestSearchFilterComplex.testSearchEngineFilterFloatIntegerComplex")
def test_several_criteria(archive):
    criteria = (f"{MR}/dcmPatientWeight", ">", "130"), (f"{MR}/delay", "<", "6000")
    assert found(archive, MR, *criteria) == ["m2", "m3"]
