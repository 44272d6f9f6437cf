"""A training job, validated: what is not given is off, a bad value is one line that names it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipeline.config import Bytes, Settings
from pipeline.jobfile import DataPath, NetworkPath


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("give a number, not true or false")
    return value


Whole = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Count = Annotated[Whole, Field(ge=1)]
NotNegative = Annotated[Number, Field(ge=0)]
Factor = Annotated[Number, Field(gt=0)]
PerChannel = Number | tuple[Number, ...] | None


class NewNetwork(Settings):
    """A network to build: its architecture and that one's own arguments, which are checked where it is built."""

    model_config = ConfigDict(extra="allow", frozen=True)

    architecture: str = "unet"
    channels: Count = 3
    classes: Count = 2

    @property
    def arguments(self) -> dict[str, Any]:
        """What a network folder's card calls arguments."""
        return self.model_dump(exclude={"architecture"})


class Pattern(Settings):
    """Images and their labels: two paths, or two patterns in which {name} stands for the same part of a name."""

    image: DataPath
    label: DataPath

    @field_validator("image", "label")
    @classmethod
    def _one_name(cls, path: str) -> str:
        """{name} is the only thing in braces, once."""
        rest = path.replace("{name}", "", 1)
        if "{" in rest or "}" in rest:
            raise ValueError("in braces there may only be {name}, and once")
        return path

    @field_validator("label")
    @classmethod
    def _same_kind(cls, label: str, info: ValidationInfo) -> str:
        image = info.data.get("image", label)
        if ("{name}" in image) != ("{name}" in label):
            raise ValueError(f"{{name}} must be in both or in neither, and image is {image}")
        return label


Patterns = Annotated[tuple[Pattern, ...], Field(min_length=1)]


class Share(Settings):
    """The part of the training data that is held out: of the images, or of each image's rows or columns."""

    fraction: Annotated[Number, Field(gt=0, lt=1)]
    by: Literal["image", "region"] | None = None
    """None: by image where there are several, by region where there is one."""


HeldOut = Annotated[
    Annotated[Patterns, Tag("list")] | Annotated[Share, Tag("share")],
    Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "share"),
]
"""A list like that of what is trained on, or a share of that."""


class Data(Settings):
    """Where images and labels are, and what of them counts."""

    train: Patterns
    validation: HeldOut | None = None
    """What decides which weights result."""
    test: HeldOut | None = None
    """What is scored once, in the end, with the network that results."""
    ignore: Whole | None = None
    """The label of pixels that have no loss and are not scored."""
    binary: bool = False
    """Class 1 where the label is above 0, as for labels that number the objects of an image."""

    def arguments(self) -> dict[str, Any]:
        """What `find_pairs` is given of it."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        shares = {part: (held.fraction, held.by) for part, held in parts.items() if isinstance(held, Share)}
        lists = {part: [(p.image, p.label) for p in held] for part, held in parts.items() if isinstance(held, tuple)}
        return {"ignore": self.ignore, "binary": self.binary, "shares": shares, **lists}


class Sampling(Settings):
    """What one sample is, and which of its outputs have a loss."""

    kind: Literal["whole", "tiles", "patches"] = "tiles"
    core: Count | tuple[Count, Count] = 256
    """(y, x) of a tile's core in input pixels; one number for both."""
    loss_keep: Annotated[Number, Field(gt=0, le=1)] = 1.0
    balanced: bool = False
    """Classes in turn, each time a core that has it, instead of every core once an epoch."""

    @field_validator("loss_keep")
    @classmethod
    def _is_dense(cls, keep: float, info: ValidationInfo) -> float:
        if keep < 1 and info.data.get("kind") == "patches":
            raise ValueError("a patch has a single output: it must be 1 for kind patches")
        return keep

    @field_validator("balanced")
    @classmethod
    def _has_cores(cls, balanced: bool, info: ValidationInfo) -> bool:
        if balanced and info.data.get("kind") == "patches":
            raise ValueError("draws cores by what is in them, so it is for kind tiles or whole, not patches")
        return balanced


class Optimizer(Settings):
    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Factor = 0.01
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    weight_decay: NotNegative = 0.0

    @field_validator("momentum")
    @classmethod
    def _has_momentum(cls, momentum: float, info: ValidationInfo) -> float:
        if momentum and info.data.get("name") in ("adam", "adamw"):
            raise ValueError(f"is for sgd, not {info.data['name']}")
        return momentum


class Schedule(Settings):
    name: Literal["poly", "cosine"] | None = None
    """How the learning rate falls to 0 over the run; None: not at all."""
    warmup: Annotated[Whole, Field(ge=0)] = 0
    """Steps over which it rises first."""


class Normalise(Settings):
    """(value * scale - mean) / std: the new network's first step, and in its card; one number or one a channel."""

    scale: PerChannel = None
    mean: PerChannel = None
    std: PerChannel = None


class Augment(Settings):
    """Views of each sample, drawn by the seed and its number; see `pipeline.training.augmentation`."""

    flip: bool = False
    rotate: bool = False
    brightness: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    contrast: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    noise: NotNegative = 0.0
    stain: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    elastic: NotNegative = 0.0


HOW_MANY = Discriminator(lambda value: "several" if isinstance(value, dict | Settings) else "one")
"""By which of two kinds a value is judged: one, or several with a name each."""


class Focal(Settings):
    """How little an output counts that is right already, and the factor of this loss in the sum."""

    gamma: NotNegative = 2.0
    weight: Factor = 1.0


class Losses(Settings):
    """A sum of losses, each with its factor; None: not in it."""

    cross_entropy: Factor | None = None
    dice: Factor | None = None
    focal: Annotated[Annotated[Factor, Tag("one")] | Annotated[Focal, Tag("several")], HOW_MANY] | None = None

    @model_validator(mode="after")
    def _has_terms(self) -> Losses:
        if (self.cross_entropy, self.dice, self.focal) == (None, None, None):
            raise ValueError("give a factor to one of cross_entropy, dice and focal at least")
        return self


class TrainJob(Settings):
    """A job of `pipeline.train` and `jobs/train.py`."""

    run: DataPath
    """The network folder that results."""
    network: NewNetwork | NetworkPath = NewNetwork()
    """What to build, or what to start from: a network folder or a built-in's name."""
    data: Data
    normalise: Normalise | None = None
    sampling: Sampling = Sampling()
    augment: Augment | None = None
    batch: Count | Literal["image", "auto"] = 8
    """Samples a step over all workers, before the enlargement by 1 / loss_keep; image: every tile of one image; auto:
    as many as go through the network together in `memory`, times the workers."""
    together: Count | None = None
    """Samples of one shape that share a pass through the network; None: see `passes_of` in `pipeline.training_task`."""
    memory: Bytes = 2_000_000_000
    """What a worker may use on a CPU where `batch` is auto; on a GPU that is all there is."""
    loss: Annotated[
        Annotated[Literal["cross_entropy", "dice", "focal"], Tag("one")] | Annotated[Losses, Tag("several")], HOW_MANY
    ] = "cross_entropy"
    """See `pipeline.training.loss`."""
    class_weights: Annotated[tuple[NotNegative, ...], Field(min_length=2)] | None = None
    """How much an output of each class counts; the loss is divided by what all count for together.

    Of Dice: how much each class counts in the mean over classes.
    """
    optimizer: Optimizer = Optimizer(momentum=0.9)
    schedule: Schedule | None = None
    ema: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """The network that results, and is validated, is the running mean of the weights, which keeps this much in step t,
    but no more than (1 + t) / (10 + t)."""
    clip: Factor | None = None
    """Norm to which a longer gradient, of all parameters together, is shortened."""
    freeze_norm: bool | Count = False
    """Batch norm keeps the statistics that the network came with, or those of so many steps, after which tiles have
    the whole image's gradient."""
    tensorboard: bool = False
    """The log, and pictures in the end, in the folder `tensorboard` of the run too."""
    mlflow: bool | str = False
    """The log, the job and in the end the report at that tracking URI too; true: see `pipeline.reporting.tracking`."""
    steps: Count = 2000
    workers: Annotated[Whole, Field(ge=0)] | tuple[Count, Count] = 2
    """0: in this process; (least, most): as many as there is room for, also when some are lost or nodes are added."""
    checkpoint_every: Count | None = None
    """Steps; None: about a minute."""
    checkpoint_activations: bool = False
    """Of each stage only the input is kept, and the rest computed again on the way back: less memory, more time."""
    precision: Literal["float32", "float64", "bfloat16"] = "float32"
    """bfloat16: the passes of training only; weights, optimiser and validation are in float32."""
    seed: Annotated[Whole, Field(ge=0, le=2**63 - 1)] = 0

    @field_validator("batch", mode="before")
    @classmethod
    def _number_or_word(cls, batch: Any) -> Any:
        if isinstance(batch, str) and batch not in ("image", "auto"):
            raise ValueError("give a number of samples, image or auto")
        return batch

    @field_validator("together")
    @classmethod
    def _is_not_found(cls, together: Any, info: ValidationInfo) -> Any:
        if together is not None and info.data.get("batch") == "auto":
            raise ValueError("batch: auto finds how many go through the network together: give one of the two")
        return together

    @field_validator("freeze_norm", mode="before")
    @classmethod
    def _from_the_first(cls, steps: Any) -> Any:
        return True if type(steps) is int and steps == 0 else steps

    @field_validator("mlflow")
    @classmethod
    def _is_uri(cls, mlflow: bool | str) -> bool | str:
        if isinstance(mlflow, str) and "://" not in mlflow:
            raise ValueError("give true, or a tracking URI such as http://host:5000 or file:///folder")
        return mlflow

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_range(cls, workers: Any) -> Any:
        if isinstance(workers, list | tuple):
            whole = len(workers) == 2 and all(isinstance(n, int) for n in workers)
            if not whole or not 1 <= workers[0] <= workers[1]:
                raise ValueError("give a number, or [least, most] with at least 1")
        return workers

    @field_validator("batch")
    @classmethod
    def _is_drawn(cls, batch: Any, info: ValidationInfo) -> Any:
        if batch == "image" and (sampling := info.data.get("sampling")) and sampling.balanced:
            raise ValueError("sampling.balanced draws cores one by one: give a number of samples")
        return batch
