"""What is known of a data set before its files are touched: the facts that a recipe states."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from xlstm_unet_lab.data.colours import label_colours
from xlstm_unet_lab.data.targets import Targets, check_label_values
from xlstm_unet_lab.ops.checks import UNITS, checked_spatial_dims, one_of, whole_number
from xlstm_unet_lab.ops.files import as_path, plain_name

DESCRIBED = "dataset.json"  # what makes a folder one in nnU-Net's raw format
ENDINGS = (".png", ".nii.gz", ".nii", ".bmp", ".tif", ".tiff")  # of files that hold images and labels without loss
Root = str | Path | None  # where data lie: see `data_root`
Track = Callable[[Iterable], Iterable]  # wraps what a recipe loops over, to draw a progress bar


@dataclass(frozen=True)
class RemoteFile:
    """A file to download. `sha256=None` says that no checksum is published: what arrives is recorded and warned about.

    Raises ValueError for an address that is not https (plain http is accepted from this machine only).
    """

    address: str
    sha256: str | None
    size: int  # bytes, about, for the table of data sets; a tenth more is not accepted
    name: str  # the file name to store it under

    def __post_init__(self) -> None:
        parts = urlsplit(self.address)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")):
            raise ValueError(f"address {self.address!r} must start with https://")
        plain_name("the name of a file to download", self.name)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The facts of one data set, and `convert`, which turns its original files into nnU-Net's raw format.

    `convert(source, out, track)` reads the folder `source` (None for what is made here), writes every case with
    `write_case` or `write_volume` (data_recipes/shared/writing.py), loops through `track(...)` so that progress shows,
    and returns facts to record. `convert_cases`, beside them, does so and goes on where it was interrupted.
    """

    name: str  # as its module is called
    dataset_id: int  # nnU-Net's number
    title: str
    modality: str
    spatial_dims: int
    channel_names: tuple[str, ...]
    labels: Mapping[str, int]  # "background" is 0, the others count on from 1
    colours: Mapping[str, str]  # "#RRGGBB" for each label but the background
    metrics: tuple[str, ...]
    tolerances: Mapping[str, float]  # for the surface Dice of each label or region, in `spacing_unit`
    spacing_unit: str  # "mm" or "pixel"
    file_ending: str  # what `prepare` writes has ".png" or ".nii.gz"
    licence: str
    citation: str
    homepage: str
    convert: Callable[[Path | None, Path, Track], Mapping] = field(repr=False)
    files: tuple[RemoteFile, ...] = ()  # what is public to download
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # unions of labels to learn instead of labels
    painted: tuple[int, ...] = ()  # the label each region paints, later regions over earlier ones
    labelled_slices_only: tuple[str, ...] = ()  # labels that are scored in the slices the truth labels, and no others
    flip_axes: tuple[int, ...] | None = None  # axes along which a mirrored image is as likely; None: all of them
    registration: str | None = None  # where to register, for data that must not be downloaded without
    group: Callable[[str], str] = str  # case name -> what no fold may split, a patient or a video; str: each by itself
    # For a user's own files: reads the facts off a folder, or returns the known recipe that still fits it.
    from_source: Callable[[Path, Mapping[str, Recipe]], Recipe] | None = None
    read_by: str | None = None  # the recipe whose from_source read these facts
    # Of a folder that is used as it stands and never written to: gives its folds, as `nnunet_raw.read_splits` does.
    splits: Callable[[Path], list[dict[str, list[str]]]] | None = field(default=None, repr=False)
    label_numbers: Mapping[str, int] = field(default_factory=dict)  # of labels in those files, where they are others
    version: int = 1  # count up when what convert writes changes

    def __post_init__(self) -> None:
        plain_name("the name of a data set", self.name)
        scored = set(self.targets.foreground)
        if list(self.labels.values()) != list(range(len(self.labels))) or next(iter(self.labels), "") != "background":
            raise ValueError(f"labels {dict(self.labels)} must start with background 0 and count on by one")
        for what, expected in (("colours", set(self.labels) - {"background"}), ("tolerances", scored)):
            if (named := set(getattr(self, what))) != expected:
                raise ValueError(f"{what} name {sorted(named)}; expected one for each of {sorted(expected)}")
        check_label_values("label_numbers", self.label_numbers.values())
        if unknown := {value for values in self.regions.values() for value in values} - set(self.labels.values()):
            raise ValueError(f"regions {dict(self.regions)} cover {sorted(unknown)}, which no label has")
        checked_spatial_dims(self.spatial_dims)
        whole_number("dataset_id", self.dataset_id, 1, 999)
        one_of("spacing_unit", self.spacing_unit, UNITS)
        one_of("file_ending", self.file_ending, ENDINGS)

    @property
    def targets(self) -> Targets:
        """What a network learns here: the regions where there are some, else the labels."""
        if not self.regions:
            return Targets.classes(self.labels)
        return Targets(tuple(self.regions), tuple(map(tuple, self.regions.values())), self.painted)

    @property
    def num_classes(self) -> int:
        """Channels of a network's output: the labels with background, or the regions without."""
        return len(self.targets.names)

    @property
    def shown_colours(self) -> dict[int, str]:
        """Label value -> "#RRGGBB", in the order of the values, background left out."""
        return label_colours(self.labels, self.colours)

    @property
    def credit(self) -> str:
        """What to print beside a picture of the data: whose it is, and its licence."""
        return f"Data: {self.title}. {self.citation}. Licence: {self.licence}."

    @property
    def made_here(self) -> bool:
        """Whether the data set is generated from a seed and needs no files."""
        return not self.files and self.registration is None and not self.of_own_files

    @property
    def of_own_files(self) -> bool:
        """Whether the data set is made of a user's own files."""
        return self.from_source is not None or self.read_by is not None

    def calls(self, source: str | None = None) -> str:
        """How to prepare it, in words; source: what to give it, where it needs a folder or an archive."""
        python, shell = ("", "") if source is None else (f", source={source}", " --source PATH")
        return f"call prepare({self.name!r}{python}) in Python or xlstm-unet-lab prepare {self.name}{shell} in a shell"

    def folder(self, root: str | Path | None = None) -> Path:
        """Where the data set lies under `root`: in DatasetNNN_name, or where it stands as it is."""
        return data_root(root) / (self.name if self.splits else f"Dataset{self.dataset_id:03d}_{self.name}")


def data_root(root: str | Path | None = None) -> Path:
    """Where prepared data lives: `root`, else the environment variable LAB_DATA, else a folder in the user's cache."""
    import pooch

    usual = os.environ.get("LAB_DATA") or pooch.os_cache("xlstm-unet-lab")
    return as_path("root", usual if root is None or (isinstance(root, str) and not root) else root).absolute()
