"""Every setting that the learning core reads, typed and checked at the start.

The composition root (deploy/settings.py) adds those of Kafka, MLflow and Prometheus and reads YAML and environment.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from pipeline.restructuring.trigger import RestructuringSettings
from pipeline.settings_section import Section, changeable, fixed

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class InputSettings(Section):
    """What a payload may be. Without `shape` it is taken from the first good record and fixed from then on."""

    shape: tuple[int, ...] | None = fixed(
        None, why="(C, H, W) of images (converted to C = 1 or 3 channels, resized to H x W) or the shape of arrays"
    )
    max_tokens: int = fixed(
        48, ge=1, le=4096, why="length of a text in tokens; longer ones are cut, shorter ones padded"
    )
    vocabulary_size: int = fixed(8192, ge=256, why="token ids of texts: characters are hashed into this many buckets")
    checkpoint: str | None = fixed(
        None, why="a local folder with a transformers tokenizer (and text encoder); nothing is ever downloaded"
    )
    json_payload_field: str = fixed("payload", why="dotted path of the payload in application/json records")
    json_label_field: str = fixed("label", why="dotted path of the label in application/json records without ce_label")
    max_payload_bytes: int = fixed(4 * 1024 * 1024, ge=1, why="larger payloads go to dead letters")
    max_image_pixels: int = fixed(4096 * 4096, ge=1, why="images that would unpack to more pixels go to dead letters")
    max_label_bytes: int = fixed(256, ge=1, why="longer labels go to dead letters")


class NetworkSettings(Section):
    """Body and head."""

    backbone: str = fixed(
        "auto",
        why="a file of pipeline/backbones; auto: text_encoder for text, resnet18 for images of 32x32 or more, mlp for "
        "arrays and images with a side below 32",
    )
    options: dict[str, Any] = fixed({}, why="options of the backbone, checked by its Config")
    initial_columns: int = fixed(
        16, ge=1, why="logit columns allocated at the start; the number doubles when all are taken"
    )
    max_classes: int = fixed(1000, ge=1, why="a record with a label past this many goes to dead letters")


class OptimizerSettings(Section):
    """SGD, as in the papers."""

    learning_rate: float = fixed(0.1, gt=0, why="step size")
    momentum: float = fixed(0.0, ge=0, lt=1, why="classical momentum")
    weight_decay: float = fixed(0.0, ge=0, why="L2 penalty")
    max_gradient_norm: float | None = fixed(
        15.0,
        gt=0,
        why="clip the gradient's norm to this, far above what is usual, so that no single record of huge numbers ends "
        "the learning; none: do not clip",
    )


class ReplaySettings(Section):
    """The reservoir, shared by all retention terms."""

    capacity: int = fixed(500, ge=1, why="samples kept")
    sampling: str = fixed(
        "class_balanced",
        formerly="uniform",
        why="a file of pipeline/sampling, which chooses them: class_balanced keeps as many of each class, uniform as "
        "many as the stream has",
    )
    draw_size: int = fixed(128, ge=1, why="samples in one draw, without replacement, of min(size, filled)")
    fused: bool = fixed(True, why="one forward for incoming and replayed rows; false: one each, as in the papers")

    @field_validator("sampling")
    @classmethod
    def _check_sampling(cls, value: str) -> str:
        from pipeline.sampling import samplings

        if value not in samplings():
            raise ValueError(f"unknown sampling {value!r}; there are {', '.join(sorted(samplings()))}")
        return value


class AugmentationSettings(Section):
    """Of images; the reservoir keeps the un-augmented sample."""

    crop_padding: int = fixed(0, ge=0, why="random crop of the image padded by this many pixels (0: none)")
    horizontal_flip: bool = fixed(False, why="mirror left-right with probability one half")
    rotation_degrees: float = fixed(0.0, ge=0, le=180, formerly=0.0, why="turn by up to this, either way (0: not)")
    scale: float = fixed(
        0.0, ge=0, lt=1, formerly=0.0, why="make larger or smaller by up to this share of the size (0: not)"
    )
    rows: Literal["all", "replayed"] = fixed(
        "all", formerly="all", why="all: incoming and replayed rows; replayed: incoming ones stay as they are"
    )


class AveragingSettings(Section):
    """Averaged weights for serving (weight_average.py); training never sees them."""

    rate: float | None = fixed(
        None,
        formerly=None,
        gt=0,
        le=1,
        why="a of the average: an update's share in it (0.02: it reaches back some 50 updates, and a new "
        "class is not predicted before it has had as many); null: the weights themselves are evaluated and served",
    )


class HoldOutSettings(Section):
    """Which records are never trained on."""

    share: Share = fixed(0.15, why="share of subjects (else of records) that are held out")
    salt: str = fixed("palimpsest", why="goes into the hash that chooses them")
    per_class: int = fixed(200, ge=1, why="each class keeps this many: those with the smallest hashes")


class EvaluationSettings(Section):
    """When the hold-outs are evaluated, and what counts."""

    every_records: int = fixed(
        500,
        ge=1,
        why="records consumed between two evaluations; of more than 2,000 held-out samples each looks at 4 for every "
        "record, the classes in turn",
    )
    min_class_samples: int = fixed(20, ge=1, why="classes with fewer held-out samples stay out of averages")
    prequential_window: int = fixed(500, ge=1, why="newest records that the prequential accuracy is taken over")
    burst_records: int = fixed(200, ge=1, why="a class's first burst ends with this many records at the latest")


class DriftSettings(Section):
    """ADWIN on the prequential error."""

    detector: Literal["adwin"] | None = fixed("adwin", why="none: no drift detection")
    delta: float = fixed(0.002, gt=0, lt=1, why="ADWIN's confidence: smaller is fewer false alarms")


class LearnerSettings(Section):
    """The learning core."""

    seed: int = fixed(0, ge=0, lt=2**32, why="all draws are keyed by it")
    device: str = changeable("auto", why="auto, cpu, cuda or cuda:N")
    precision: Literal["auto", "float32", "bfloat16"] = changeable(
        "auto", why="auto: bfloat16 for convolutional and text backbones on CUDA, else float32"
    )
    deterministic: bool = changeable(True, why="bit-for-bit repeatable kernels; false may choose faster ones")
    threads: int | None = changeable(
        1,
        ge=1,
        why="CPU threads of the arithmetic; sums are split over them, so the bits depend on it. More pay for "
        "convolutional and text networks on the CPU, not for small ones. none: torch's choice",
    )
    batch_size: int = fixed(10, ge=1, why="trainable records in one update")
    incoming_loss: Literal["auto", "er_ace", "cross_entropy"] = fixed(
        "auto",
        formerly="cross_entropy",
        why="of the incoming rows: er_ace runs over the batch's own classes and the columns not yet seen, so that new "
        "classes do not push old ones away; cross_entropy over all columns; auto: er_ace where a retention term "
        "replays labels (er, der_pp), which tells old and new apart, else cross_entropy",
    )
    max_records_per_batch: int = fixed(
        640, ge=1, why="an update's span ends after this many records even if too few were trainable"
    )
    deduplication_window: int = fixed(100_000, ge=0, why="newest ce_source + ce_id pairs remembered to drop repeats")
    input: InputSettings = InputSettings()
    network: NetworkSettings = NetworkSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    replay: ReplaySettings = ReplaySettings()
    retention: dict[str, SerializeAsAny[Section]] = fixed(
        {"der_pp": {}, "ewc_pp": {}}, why="retention terms by name, each with its own settings; {} is plain fine-tuning"
    )
    augmentation: AugmentationSettings = AugmentationSettings()
    averaging: AveragingSettings = AveragingSettings()
    hold_out: HoldOutSettings = HoldOutSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    drift: DriftSettings = DriftSettings()
    restructuring: RestructuringSettings = RestructuringSettings()

    @model_validator(mode="after")
    def _check_incoming_loss(self) -> Self:
        if self.incoming_loss == "er_ace" and self.chosen_incoming_loss != "er_ace":
            raise ValueError(
                "incoming_loss er_ace never compares the classes of different batches, so it wants a retention term "
                "that replays labels: add er or der_pp, or take auto"
            )
        return self

    @property
    def chosen_incoming_loss(self) -> Literal["er_ace", "cross_entropy"]:
        """What `auto` means with these retention terms; `er_ace` too where nothing replays labels."""
        from pipeline.retention import retention_terms

        terms = retention_terms()
        replays_labels = any(terms[name].replays_labels for name in self.retention)
        return "er_ace" if self.incoming_loss != "cross_entropy" and replays_labels else "cross_entropy"

    @field_validator("retention", mode="before")
    @classmethod
    def _check_terms(cls, value: Any) -> Any:
        """Each term's settings are checked by the `Config` of its file."""
        from pipeline.retention import retention_terms

        if not isinstance(value, dict):
            raise ValueError(
                "retention is a mapping from a term's name to its settings, such as {der_pp: {alpha: 0.2}}"
            )
        terms = retention_terms()
        unknown = sorted(set(value) - set(terms))
        if unknown:
            raise ValueError(f"unknown retention term {unknown[0]!r}; there are {', '.join(sorted(terms))}")
        configs: dict[str, Section] = {}
        for name, config in value.items():
            try:
                configs[name] = (
                    config if isinstance(config, Section) else terms[name].Config.model_validate(config or {})
                )
            except ValidationError as error:
                problem = error.errors(include_input=False)[0]
                where = ".".join(str(part) for part in (name, *problem["loc"]))
                known = ", ".join(terms[name].Config.model_fields)
                raise ValueError(f"{where}: {problem['msg']}; {name} has {known}") from None
        return configs
