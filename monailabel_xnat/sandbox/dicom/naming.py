"""How XNAT names the objects that it makes of DICOM: types (its library ``dicom-xnat-sop``), scan IDs, labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pydicom import uid

if TYPE_CHECKING:
    from monailabel_xnat.sandbox.dicom.series import SeriesFiles

#: SOP classes with a scan type of their own, strongest first. If a series has several classes, the first one counts.
#: A class that is not here (presentation states, key objects, raw data, ...) is ``otherDicom`` in XNAT.
_SCAN_TYPES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("pet", (uid.PositronEmissionTomographyImageStorage, uid.EnhancedPETImageStorage)),
    ("mr", (uid.MRImageStorage, uid.EnhancedMRImageStorage, uid.EnhancedMRColorImageStorage)),
    ("ct", (uid.CTImageStorage, uid.EnhancedCTImageStorage)),
    ("xa", (uid.XRayAngiographicImageStorage, uid.XRay3DAngiographicImageStorage)),
    ("us", (uid.UltrasoundImageStorage, uid.UltrasoundMultiFrameImageStorage)),
    (
        "rtImage",
        (
            uid.RTImageStorage,
            uid.RTDoseStorage,
            uid.RTStructureSetStorage,
            uid.RTPlanStorage,
            uid.RTBeamsTreatmentRecordStorage,
            uid.RTBrachyTreatmentRecordStorage,
            uid.RTTreatmentSummaryRecordStorage,
            uid.RTIonPlanStorage,
            uid.RTIonBeamsTreatmentRecordStorage,
        ),
    ),
    ("cr", (uid.ComputedRadiographyImageStorage,)),
    ("opt", (uid.OphthalmicTomographyImageStorage,)),
    (
        "mg",
        (
            uid.DigitalMammographyXRayImageStorageForPresentation,
            uid.DigitalMammographyXRayImageStorageForProcessing,
        ),
    ),
    ("dx", (uid.DigitalXRayImageStorageForPresentation, uid.DigitalXRayImageStorageForProcessing)),
    ("dx3DCraniofacial", (uid.XRay3DCraniofacialImageStorage,)),
    (
        "io",
        (
            uid.DigitalIntraOralXRayImageStorageForPresentation,
            uid.DigitalIntraOralXRayImageStorageForProcessing,
        ),
    ),
    ("nm", (uid.NuclearMedicineImageStorage,)),
    ("rf", (uid.XRayRadiofluoroscopicImageStorage,)),
    ("op", (uid.OphthalmicPhotography8BitImageStorage, uid.OphthalmicPhotography16BitImageStorage)),
    ("sm", (uid.VLWholeSlideMicroscopyImageStorage,)),
    ("gm", (uid.VLMicroscopicImageStorage,)),
    ("esv", (uid.VideoEndoscopicImageStorage,)),
    ("gmv", (uid.VideoMicroscopicImageStorage,)),
    ("xcv", (uid.VideoPhotographicImageStorage,)),
    ("ecg", (uid.TwelveLeadECGWaveformStorage, uid.AmbulatoryECGWaveformStorage)),
    ("hd", (uid.HemodynamicWaveformStorage,)),
    ("eps", ("1.2.840.10008.5.1.4.1.1.9.3.1",)),
    ("seg", (uid.SegmentationStorage,)),
    (
        "sr",
        (
            uid.BasicTextSRStorage,
            uid.EnhancedSRStorage,
            uid.ComprehensiveSRStorage,
            uid.MammographyCADSRStorage,
            uid.ChestCADSRStorage,
            uid.ColonCADSRStorage,
            uid.XRayRadiationDoseSRStorage,
            uid.ImplantationPlanSRStorage,
        ),
    ),
    ("sc", (uid.SecondaryCaptureImageStorage,)),
)
_SCAN_TYPE_OF = {sop_class: kind for kind, sop_classes in _SCAN_TYPES for sop_class in sop_classes}
_SCAN_RANK = {kind: rank for rank, (kind, _) in enumerate(_SCAN_TYPES)}

#: Scan types whose SOP classes decide the session type, strongest first.
_SESSION_KINDS = ("pet", "mr", "ct", "xa", "us", "cr", "opt", "mg", "dx", "nm", "sm", "gm", "ecg")

#: Session types by modality, used if no SOP class decides; strongest first (XNAT's lead modalities).
_SESSION_OF_MODALITY = {
    "PT": "pet",
    "MR": "mr",
    "CT": "ct",
    "XA": "xa",
    "US": "us",
    "RT": "rt",
    "RTIMAGE": "rt",
    "RTDOSE": "rt",
    "CR": "cr",
    "OPT": "opt",
    "MG": "mg",
    "DX": "dx",
    "NM": "nm",
    "EEG": "eeg",
    "ECG": "ecg",
    "IVUS": "us",
    "SM": "sm",
    "GM": "gm",
    "RF": "rf",
    "ES": "es",
    "XC": "xc",
    "RG": "rg",
    "OT": "otherDicom",
    "SR": "sr",
}


def scan_rank(sop_class: str) -> int:
    """Return the rank of a SOP class. The class with the lowest rank in a series decides its scan type."""
    return _SCAN_RANK.get(_SCAN_TYPE_OF.get(sop_class, ""), len(_SCAN_RANK))


def session_xsi_type(series: Sequence[SeriesFiles]) -> str:
    """Return the XNAT session type of a study, as XNAT's importer does.

    PET and MR together are ``xnat:petmrSessionData``. Otherwise the strongest SOP class decides (PET, MR, CT, ...), so
    PET/CT is ``xnat:petSessionData``. If no SOP class is known, the modality decides.

    Parameters
    ----------
    series
        All series of one study.

    Returns
    -------
    str
        A type such as ``xnat:mrSessionData``, or ``xnat:otherDicomSessionData`` if nothing else fits.
    """
    kinds = {_SCAN_TYPE_OF.get(item.sop_class_uid, "") for item in series}
    named = {item.modality for item in series}
    if ("pet" in kinds or "PT" in named) and ("mr" in kinds or "MR" in named):
        return "xnat:petmrSessionData"
    by_class = [kind for kind in _SESSION_KINDS if kind in kinds]
    by_modality = [kind for modality, kind in _SESSION_OF_MODALITY.items() if modality in named]
    return f"xnat:{[*by_class, *by_modality, 'otherDicom'][0]}SessionData"


def scan_xsi_type(series: SeriesFiles) -> str:
    """Return the scan type of a series, which XNAT takes from the SOP class: ``xnat:otherDicomScanData`` for others."""
    return f"xnat:{_SCAN_TYPE_OF.get(series.sop_class_uid, 'otherDicom')}ScanData"


def resource_label(scan_type: str) -> str:
    """Return the label of the resource that holds the DICOM files of a scan."""
    return "secondary" if scan_type == "xnat:scScanData" else "DICOM"


def scan_ids(series: Iterable[SeriesFiles]) -> dict[str, str]:
    """Return the XNAT scan ID of each series of one study.

    The ID is the series number. Several series with one number become ``4-MR1``, ``4-MR2``, in the order of their UIDs.
    Without a number, the ID is the UID with underscores (XNAT's DICOMSessionBuilder).

    Parameters
    ----------
    series
        All series of one study.

    Returns
    -------
    dict of str to str
        Scan ID by Series Instance UID.
    """
    by_number: dict[str, list[SeriesFiles]] = {}
    for item in sorted(series, key=lambda each: each.series_uid):
        number = re.sub(r"^\+", "_", item.series_number) or re.sub(r"\W", "_", item.series_uid)
        by_number.setdefault(xnat_label(number), []).append(item)
    ids: dict[str, str] = {}
    for number, items in by_number.items():
        counts: Counter[str] = Counter()
        for item in items:
            modality = xnat_label(item.modality) or "Unknown"
            counts[modality] += 1
            ids[item.series_uid] = number if len(items) == 1 else f"{number}-{modality}{counts[modality]}"
    return ids


def xnat_label(text: str) -> str:
    """Return a text as a valid XNAT label: letters, digits, ``_``, ``.`` and ``-``. All else becomes ``_``.

    Dots are also replaced if the text has nothing else, because it would be a path. An empty text stays empty.
    """
    label = re.sub(r"[^A-Za-z0-9_.-]", "_", text.strip())
    return label if label.strip(".") else "_" * len(label)
