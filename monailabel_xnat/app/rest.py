"""MONAI Label's REST API, with additions for its clients on XNAT.

Three things differ from MONAI Label 0.8.5. The DICOMweb proxy uses our login and keeps the query. An inference can
answer with a DICOM SEG. Errors of MONAI Label reach the client as a status with a sentence, and not as status 500
without a reason.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import FileResponse, JSONResponse, Response
from monailabel.app import app as monai_label
from monailabel.config import settings
from monailabel.endpoints import infer, proxy
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import remove_file
from starlette.concurrency import run_in_threadpool

from monailabel_xnat.app.mixin import values_of
from monailabel_xnat.datastore import XNATDatastore

logger = logging.getLogger(__name__)

router = APIRouter()
_no_file = File(None)
_reader = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
# The errors that MONAI Label raises for a model, strategy or method that it does not have.
_NOT_THERE = (MONAILabelError.INVALID_INPUT, MONAILabelError.APP_INIT_ERROR)


@router.post("/infer/{model}", include_in_schema=False)
async def run_inference(
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: str = Form("{}"),
    file: UploadFile = _no_file,
    label: UploadFile = _no_file,
    output: infer.ResultType | None = None,
    user: User = _reader,
) -> Any:
    """Run a model. With ``output=dicom_seg`` and an image in XNAT, the answer is a DICOM SEG that refers to it."""
    instance = app_instance()
    datastore = instance.datastore()
    arguments = (background_tasks, model, image, session_id, params, file, label)
    if output != infer.ResultType.dicom_seg or not isinstance(datastore, XNATDatastore):
        return infer.run_inference(*arguments, output)
    if not image or file or session_id:
        raise HTTPException(400, "a DICOM SEG refers to the series of an image in XNAT: give the id of an image")
    # Check this before the inference, which may take long: a request that cannot be answered is refused at once.
    datastore.require_dicom(image)
    result = infer.run_inference(*arguments, infer.ResultType.image)
    handle, target = tempfile.mkstemp(suffix=".dcm")
    os.close(handle)
    background_tasks.add_task(remove_file, target)
    datastore.write_dicom_seg(image, str(result.path), _names(instance, model, params), target)
    return FileResponse(target, media_type="application/dicom", filename=Path(target).name)


@router.api_route("/proxy/dicom/{path:path}", methods=["GET", "POST"], include_in_schema=False)
async def read_dicomweb(request: Request, path: str, user: User = _reader) -> Any:
    """Answer a DICOMweb request of MONAI Label's OHIF viewer: XNAT's plugin is asked with the login of the server."""
    service, _, rest = path.partition("/")
    service, path = (service, rest) if service in ("qido", "wado", "stow") else ("", path)
    datastore = app_instance().datastore()
    if not isinstance(datastore, XNATDatastore):
        return await proxy.proxy_dicom(request, service, path)
    if request.method != "GET" or service == "stow":
        raise HTTPException(405, "XNAT takes no objects by DICOMweb: labels are saved by PUT /datastore/label")
    # Some viewers ask for metadata at the address for queries. MONAI Label makes the same distinction.
    is_query = service == "qido" and not path.endswith("metadata")
    root = settings.MONAI_LABEL_QIDO_PREFIX if is_query else settings.MONAI_LABEL_WADO_PREFIX
    answer = await run_in_threadpool(
        datastore.dicomweb, path, request.url.query, request.headers.get("accept", ""), root or ""
    )
    return Response(answer.content, answer.status, media_type=answer.media_type or None)


def _names(instance: Any, model: str, params: str) -> dict[str, Any]:
    """Return a label info with names of structures: those that the client sends, otherwise those of the model."""
    given = json.loads(params or "{}").get("label_info")
    info: dict[str, Any] = {"model": model}
    if given:
        return {**info, "label_info": given}
    return {**info, "params": {"label_names": values_of(getattr(instance._infers.get(model), "labels", None))}}


async def _on_monailabel_error(request: Request, error: Exception) -> Response:
    """Return the answer for an error of MONAI Label: a status, and the sentence of the error."""
    if isinstance(error, HTTPException):
        return await http_exception_handler(request, error)
    kind, sentence = getattr(error, "error", ""), str(getattr(error, "msg", error))
    return JSONResponse({"detail": sentence}, 404 if kind in _NOT_THERE else 500)


async def _on_bad_json(request: Request, error: Exception) -> Response:
    """Return the answer for a form field (params, info) that is not JSON."""
    return JSONResponse({"detail": f"a field of the request should be JSON, and is not: {error}"}, 400)


async def _on_any_error(request: Request, error: Exception) -> Response:
    """Return the answer for an unexpected error. Its text is only in the log, because it may name patients."""
    return JSONResponse({"detail": f"the server failed ({type(error).__name__}): its log says why"}, 500)


def _with_ours_first(api: FastAPI, ours: APIRouter) -> FastAPI:
    """Put our routes before MONAI Label's routes for the same paths, add error handlers, and return the application."""
    theirs = list(api.router.routes)
    api.include_router(ours, prefix=settings.MONAI_LABEL_API_STR)
    added = [route for route in api.router.routes if not any(route is other for other in theirs)]
    api.router.routes[:] = [*added, *theirs]
    api.add_exception_handler(MONAILabelException, _on_monailabel_error)
    api.add_exception_handler(json.JSONDecodeError, _on_bad_json)
    api.add_exception_handler(Exception, _on_any_error)
    return api


app = _with_ours_first(monai_label, router)
