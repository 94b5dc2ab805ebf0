"""Fetch and convert all images of a project with the workers of a Dask cluster.

    pip install 'monailabel-xnat[dask]'
    export MONAI_LABEL_XNAT_SERVER=https://xnat.example.org
    export MONAI_LABEL_XNAT_USERNAME=me MONAI_LABEL_XNAT_PASSWORD=...
    python prefetch_dask.py --project LIVER                             # a cluster on this machine
    python prefetch_dask.py --project LIVER --scheduler tcp://head:8786

A task holds the id of one image and the settings, but no password: each worker logs in with its own environment or its
``~/.netrc``, once. All workers write to one cache folder, so on several machines it must be on a disk that all of them
have. A task whose worker dies is given to another one by Dask.
"""

from __future__ import annotations

import argparse

from distributed import Client, LocalCluster

from monailabel_xnat import Progress, XNATDatastore


def show(progress: Progress) -> None:
    """Print one line for each image."""
    outcome = f"failed: {progress.error}" if progress.error else "is here"
    print(f"{progress.done} of {progress.total}  {progress.image_id}  {outcome}", flush=True)


def main() -> int:
    """Fetch the missing images, and return 1 if an image could not be fetched, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", required=True, help="project ID")
    parser.add_argument("--scheduler", help="address of a cluster; default: two workers on this machine")
    args = parser.parse_args()

    cluster = args.scheduler or LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with Client(cluster) as client, XNATDatastore(project=args.project) as datastore:
        report = datastore.prefetch(datastore.list_images(), executor=client, progress=show)
    if not args.scheduler:
        cluster.close()
    print(f"{len(report.fetched)} fetched, {len(report.already_here)} were here, {len(report.failed)} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
