"""Train a segmentation network with plain MONAI on the labels in an XNAT, and save its predictions there as drafts.

    export MONAI_LABEL_XNAT_SERVER=https://xnat.example.org
    export MONAI_LABEL_XNAT_USERNAME=ann MONAI_LABEL_XNAT_PASSWORD=...
    python examples/train_segmentation.py --project LIVER --labels liver=1,tumour=2 --output runs/liver

The same on two GPUs, or with two processes on a CPU::

    torchrun --standalone --nproc-per-node 2 examples/train_segmentation.py --project LIVER ...

A run that was killed continues when you run the same command again. ``tensorboard --logdir runs`` shows its progress.
All settings of the datastore can be given as environment variables; docs/settings.md lists them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from monai.data import CacheDataset, DataLoader, DistributedSampler, MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.networks.utils import one_hot
from monai.transforms import (
    AsDiscrete,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    MapTransform,
    NormalizeIntensityd,
    Orientationd,
    RandCropByPosNegLabeld,
    RandScaleIntensityd,
    RandShiftIntensityd,
    SaveImage,
    Spacingd,
    SpatialPadd,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

from monailabel_xnat import ImageError, LabelNotUploadedError, Settings, XNATDatastore

HALVINGS = 3
"""How often the network halves its input. Sides of a patch are multiples of 2 to this power."""

Case = Mapping[str, str]


@dataclass(frozen=True)
class Process:
    """The number of this process among all processes, and the device that it uses."""

    rank: int
    count: int
    device: torch.device


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a segmentation network on the labels in an XNAT.")
    parser.add_argument("--project", required=True, help="ID of the project in XNAT")
    parser.add_argument("--labels", default="", help="voxel value of each structure: liver=1,tumour=2")
    parser.add_argument("--output", type=Path, required=True, help="folder of this run; it goes on with what is there")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=2, help="images in a batch; each gives two patches")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--validation", type=float, default=0.2, help="share of the patients that is held out")
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.5, 1.5, 2.0), help="voxel size in mm, RAS axes")
    parser.add_argument("--patch", type=int, nargs=3, default=(96, 96, 64), help="voxels that the network sees at once")
    parser.add_argument("--cache-rate", type=float, default=1.0, help="share of the cases that is kept in memory")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare patches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--predict",
        choices=["unlabelled", "validation", "nothing"],
        default="unlabelled",
        help="which images get the prediction of the best network as label 'original'",
    )
    args = parser.parse_args()
    if any(side % 2**HALVINGS for side in args.patch):
        parser.error(f"--patch: each number must be a multiple of {2**HALVINGS}")
    # The option, else the environment variable MONAI_LABEL_XNAT_LABELS. Without names, a value 1 could be the liver in
    # one label and the spleen in the next; with them, the datastore gives each structure the same value everywhere.
    args.labels = Settings.load({"labels": args.labels}).label_values
    if not args.labels:
        parser.error("--labels: say which voxel value each structure shall have, such as liver=1,tumour=2")
    return args


def join_processes() -> Process:
    """Meet the other processes that torchrun started; without torchrun there is one."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ:
        return Process(0, 1, device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Process(dist.get_rank(), dist.get_world_size(), device)


def fetch_cases(args: argparse.Namespace, process: Process) -> list[Case]:
    """Fetch all images with a label ``final``, in the first process only, and send the list to the others.

    Only one process asks XNAT. If each process asked by itself, and a label was saved between two answers, they would
    have different lists. A patient could be trained on in one process and validated in another, and processes with
    different numbers of batches would wait for each other for ever. The others read the files in the same cache folder.

    Returns
    -------
    list of dict
        See :class:`monailabel_xnat.TrainingSet`: paths of ``image`` and ``label``, ``image_id``, ``subject``,
        ``label_version`` and more.
    """
    shared: list[Any] = [None]
    group = None
    if process.count > 1:
        # The first download of a large project takes longer than the few minutes that processes wait by default.
        group = dist.new_group(backend="gloo", timeout=timedelta(hours=12))
    if process.rank == 0:
        with XNATDatastore(project=args.project, labels=args.labels) as datastore:
            cases = datastore.training_set()
        print(f"{len(cases)} cases, written down in {cases.manifest}", flush=True)
        for image_id, reason in cases.left_out.items():
            print(f"left out: {image_id}: {reason}", flush=True)
        shared = [list(cases)]
    if group is not None:
        dist.broadcast_object_list(shared, src=0, group=group)
    for case in shared[0]:
        if not Path(case["image"]).exists():
            raise SystemExit("all machines need one cache folder that they share: set MONAI_LABEL_XNAT_CACHE_PATH")
    return list(shared[0])


def split_by_patient(cases: Sequence[Case], share: float, seed: int) -> dict[str, dict[str, str]]:
    """Hold out some patients, with all of their images: two scans of one person are not independent cases.

    Returns
    -------
    dict
        ``training`` and ``validation``, each with the label version by image id.
    """
    subjects = sorted({case["subject"] for case in cases})
    if len(subjects) < 2:
        raise SystemExit(f"there are labels of {len(subjects)} patients: at least two are needed")
    random.Random(seed).shuffle(subjects)
    count = min(max(1, round(share * len(subjects))), len(subjects) - 1)
    held_out = set(subjects[:count])
    split: dict[str, dict[str, str]] = {"training": {}, "validation": {}}
    for case in cases:
        side = "validation" if case["subject"] in held_out else "training"
        split[side][case["image_id"]] = case["label_version"]
    return split


def changes_since(split: Mapping[str, Mapping[str, str]], cases: Sequence[Case]) -> str:
    """Return what has happened in XNAT since a split was made; "" if nothing has."""
    before = {**split["training"], **split["validation"]}
    now = {case["image_id"]: case["label_version"] for case in cases}
    if before == now:
        return ""
    changed = sum(before[image_id] != now[image_id] for image_id in before.keys() & now.keys())
    gone, new = len(before.keys() - now.keys()), len(now.keys() - before.keys())
    return f"since this run began, {changed} labels have changed and {gone} are gone; {new} are new and not used in it"


class RequireKnownValuesd(MapTransform):
    """Refuse label maps with values that the network has no channel for, by the id of the image."""

    def __init__(self, keys: Sequence[Hashable], values: Sequence[int]) -> None:
        super().__init__(keys)
        self.values = {0, *values}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case as it is."""
        for key in self.key_iterator(data):
            unknown = {int(value) for value in torch.unique(data[key])} - self.values
            if unknown:
                raise ValueError(f"{data['image_id']}: the label has the values {sorted(unknown)}, which have no name")
        return dict(data)


def preparing(keys: Sequence[str], spacing: Sequence[float]) -> list[Callable]:
    """Return the transforms that put volumes on the grid of the network: RAS axes and one voxel size.

    The same ones prepare images for training, validation and prediction. The intensities of each image get mean 0 and
    standard deviation 1, which suits most MR images; for CT, a window of Hounsfield units with ScaleIntensityRanged is
    the better choice.
    """
    modes = ["bilinear" if key == "image" else "nearest" for key in keys]
    return [
        LoadImaged(keys),
        EnsureChannelFirstd(keys),
        Orientationd(keys, axcodes="RAS", labels=None),
        Spacingd(keys, pixdim=spacing, mode=modes),
        NormalizeIntensityd("image"),
    ]


def make_loaders(
    args: argparse.Namespace, training: Sequence[Case], validation: Sequence[Case], process: Process
) -> tuple[DataLoader, DataLoader]:
    """Return the loader of random patches for training, and the loader of whole images for validation."""
    keys = ["image", "label"]
    fixed = [*preparing(keys, args.spacing), RequireKnownValuesd(["label"], list(args.labels.values()))]
    varied = [
        SpatialPadd(keys, spatial_size=args.patch),
        # Every other patch has a labelled voxel in its centre; small structures would hardly ever be seen otherwise.
        RandCropByPosNegLabeld(keys, label_key="label", spatial_size=args.patch, pos=1, neg=1, num_samples=2),
        RandScaleIntensityd("image", factors=0.1, prob=0.5),
        RandShiftIntensityd("image", offsets=0.1, prob=0.5),
    ]
    # All transforms before the first random one are done once, and the results are kept in memory. Each process keeps
    # all cases, because the sampler chooses others for it in each epoch; --cache-rate limits the memory for that.
    dataset = CacheDataset(list(training), Compose([*fixed, *varied]), cache_rate=args.cache_rate, progress=False)
    sampler = DistributedSampler(
        dataset, num_replicas=process.count, rank=process.rank, shuffle=True, seed=args.seed, even_divisible=True
    )
    train_loader = DataLoader(dataset, batch_size=args.batch_size, sampler=sampler, num_workers=args.workers)
    # Each process validates its own share. A sampler would repeat cases until all shares have the same size, and
    # these cases would count twice.
    own = list(validation)[process.rank :: process.count]
    own_dataset = CacheDataset(own, Compose(fixed), cache_rate=args.cache_rate, progress=False)
    return train_loader, DataLoader(own_dataset, batch_size=1, num_workers=args.workers)


def make_network(labels: Mapping[str, int], seed: int) -> UNet:
    """Return the untrained network: one channel in, one channel out for the background and for each value."""
    torch.manual_seed(seed)
    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=max(labels.values()) + 1,
        channels=(16, 32, 64, 128),
        strides=(2,) * HALVINGS,
        num_res_units=2,
    )


def train_epoch(
    network: torch.nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    device: torch.device,
) -> float:
    """Go through the training cases once, and return the mean loss of this process."""
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    network.train()
    total = 0.0
    for batch in loader:
        image, label = batch["image"].as_tensor().to(device), batch["label"].as_tensor().to(device)
        optimizer.zero_grad(set_to_none=True)
        # Automatic mixed precision, on a GPU: most of the network is computed in 16 bits, and the scaler keeps small
        # gradients from becoming zero in them. Without a GPU both do nothing.
        with torch.autocast(device.type, enabled=scaler.is_enabled()):
            loss = loss_function(network(image), label)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        total += loss.item()
    return total / len(loader)


def make_inferer(args: argparse.Namespace) -> SlidingWindowInferer:
    """Return the inferer that applies the network to a whole image, patch by patch, in validation and prediction."""
    return SlidingWindowInferer(roi_size=args.patch, sw_batch_size=2, overlap=0.25, mode="gaussian")


@torch.no_grad()
def validate(
    network: torch.nn.Module, loader: DataLoader, inferer: SlidingWindowInferer, classes: int, process: Process
) -> torch.Tensor:
    """Return the mean Dice of each value from 1 on over the validation cases of all processes.

    A case counts for the values that its label has. A value that no case has gets NaN.
    """
    network.eval()
    metric = DiceMetric(include_background=False, reduction="none")
    sums = torch.zeros(2, classes - 1, device=process.device)
    for case in loader:
        image, label = case["image"].as_tensor().to(process.device), case["label"].as_tensor().to(process.device)
        with torch.autocast(process.device.type, enabled=process.device.type == "cuda"):
            predicted = inferer(image, network).argmax(dim=1, keepdim=True)
        dice = metric(one_hot(predicted, num_classes=classes), one_hot(label, num_classes=classes))[0]
        sums += torch.stack([dice.nan_to_num(0.0), (~dice.isnan()).float()])
    if process.count > 1:
        dist.all_reduce(sums)
    return sums[0] / sums[1]


def save_whole(content: Any, path: Path) -> None:
    """Write a file of torch. If the run is killed during that, the file before it stays."""
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.replace(path)


def train(args: argparse.Namespace, process: Process) -> None:
    """Train up to the last epoch, from the last one that is on disk."""
    file = args.output / "checkpoint.pt"
    checkpoint = torch.load(file, map_location="cpu", weights_only=True) if file.exists() else None
    cases = fetch_cases(args, process)
    split = checkpoint["split"] if checkpoint else split_by_patient(cases, args.validation, args.seed)
    if checkpoint and checkpoint["labels"] != args.labels:
        raise SystemExit(f"{args.output} is a run with other labels: {checkpoint['labels']}; use another --output")
    # A run that continues keeps its split, even if more was labelled since: no patient may change sides.
    training = [case for case in cases if case["image_id"] in split["training"]]
    validation = [case for case in cases if case["image_id"] in split["validation"]]
    train_loader, validation_loader = make_loaders(args, training, validation, process)

    network = make_network(args.labels, args.seed).to(process.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.learning_rate)
    scaler = torch.amp.GradScaler(process.device.type, enabled=process.device.type == "cuda")
    done, best = 0, -1.0
    if checkpoint:
        network.load_state_dict(checkpoint["network"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        scaler.load_state_dict(checkpoint["scaler"])
        done, best = checkpoint["epoch"], checkpoint["best"]
    parallel = DistributedDataParallel(network) if process.count > 1 else network
    if process.rank == 0:
        print(f"{len(training)} cases to train on, {len(validation)} to validate, after epoch {done}", flush=True)
        if changes := changes_since(split, cases):
            print(changes, flush=True)
        (args.output / "split.json").write_text(json.dumps(split, indent=1), encoding="utf-8")
    # Epochs after the last checkpoint are computed again, so their points are drawn again.
    writer = SummaryWriter(args.output, purge_step=done + 1) if process.rank == 0 else None

    for epoch in range(done + 1, args.epochs + 1):
        # Random numbers depend only on the epoch, so a run that was killed continues as it would have without that.
        seed = args.seed + epoch * process.count + process.rank
        torch.manual_seed(seed)
        train_loader.dataset.transform.set_random_state(seed)
        train_loader.sampler.set_epoch(epoch)
        loss = train_epoch(parallel, train_loader, optimizer, scaler, process.device)
        # This is not the parallel network, which would wait for processes that have fewer images to validate.
        classes = max(args.labels.values()) + 1
        dice = validate(network, validation_loader, make_inferer(args), classes, process)
        if writer is None:
            continue
        by_name = {name: float(dice[value - 1]) for name, value in args.labels.items()}
        mean = float(np.nanmean(list(by_name.values()))) if not dice.isnan().all() else 0.0
        writer.add_scalar("loss", loss, epoch)
        writer.add_scalar("dice/mean", mean, epoch)
        for name, value in by_name.items():
            writer.add_scalar(f"dice/{name}", value, epoch)
        writer.flush()
        if mean > best:
            best = mean
            save_whole(network.state_dict(), args.output / "best.pt")
        state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
        known = {"epoch": epoch, "best": best, "split": split, "labels": args.labels}
        save_whole({**state, **known}, file)
        print(f"epoch {epoch}/{args.epochs}: loss {loss:.4f}, Dice {mean:.4f}, best {best:.4f}", flush=True)
    if writer is not None:
        writer.close()


def images_to_predict(datastore: XNATDatastore, args: argparse.Namespace) -> list[str]:
    """Return the ids of the images that get a draft; those that have one already keep it."""
    without_draft = datastore.get_unlabeled_images("original")
    if args.predict == "unlabelled":
        chosen = set(datastore.get_unlabeled_images())
    else:
        chosen = set(json.loads((args.output / "split.json").read_text(encoding="utf-8"))["validation"])
    return [image_id for image_id in without_draft if image_id in chosen]


@torch.no_grad()
def save_predictions(args: argparse.Namespace, device: torch.device) -> None:
    """Save the predictions of the best network as label ``original``, for people to correct."""
    network = make_network(args.labels, args.seed).to(device)
    network.load_state_dict(torch.load(args.output / "best.pt", map_location=device, weights_only=True))
    network.eval()
    prepare = Compose(preparing(["image"], args.spacing))
    # A label must lie on the grid of its image. Invertd undoes voxel size and orientation; it does so with the scores
    # of the network, and which one is the largest is decided after that, on the voxels of the image.
    undo = Invertd("prediction", transform=prepare, orig_keys="image", nearest_interp=False)
    decide = AsDiscrete(argmax=True)
    info = {"model": args.output.name, "params": {"label_names": args.labels}}
    with XNATDatastore(project=args.project, labels=args.labels) as datastore, tempfile.TemporaryDirectory() as folder:
        write = SaveImage(folder, output_dtype=np.uint16, print_log=False)
        for image_id in images_to_predict(datastore, args):
            try:
                case = prepare({"image": datastore.get_image_uri(image_id)})
                with torch.autocast(device.type, enabled=device.type == "cuda"):
                    scores = make_inferer(args)(case["image"].as_tensor()[None].to(device), network)
                # Invertd finds nothing to undo in a plain tensor, and leaves it as it is.
                case["prediction"] = MetaTensor(scores[0].float().cpu())
                write(decide(undo(case)["prediction"]), filename=f"{folder}/prediction")
                datastore.save_label(image_id, f"{folder}/prediction.nii.gz", "original", info)
                print(f"saved a draft for {image_id}", flush=True)
            except (ImageError, LabelNotUploadedError) as error:
                # The scan is not a volume, or the label waits on this machine until XNAT accepts it.
                print(f"{image_id}: {error}", flush=True)


def main() -> None:
    """Train, then predict."""
    args = parse_arguments()
    # The folder holds ids of images, and what a network has learned from patients.
    args.output.mkdir(mode=0o700, parents=True, exist_ok=True)
    process = join_processes()
    train(args, process)
    if process.count > 1:
        dist.destroy_process_group()
    if process.rank == 0 and args.predict != "nothing":
        save_predictions(args, process.device)


if __name__ == "__main__":
    main()
