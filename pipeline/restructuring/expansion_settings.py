"""The settings of an expansion. They may differ from job to job: what a job made is recorded, never made again."""

from __future__ import annotations

from typing import Literal

from pipeline.restructuring.pruning import Ranking
from pipeline.settings import AugmentationSettings
from pipeline.settings_section import Section, changeable

Initialisation = Literal["newest", "fresh"]
HeadBeginsAs = Literal["sub_module", "both"]
MixMatchLoss = Literal["cross_entropy", "squared_error"]


class ExpansionSettings(Section):
    """The defaults are those of a trial on Split-CIFAR-10 (`docs/experiments.md`)."""

    epochs: int = changeable(10, ge=1, why="passes of the temporary network over the new classes' records")
    distillation_epochs: int = changeable(
        6,
        ge=0,
        why="passes of the pruned network, taught by the temporary one, over the unlabelled rows, or where there are "
        "fewer of these than records and than `most_unlabelled`, over the records",
    )
    distillation_batch_size: int = changeable(48, ge=1, why="unlabelled rows of one step of that")
    batch_size: int = changeable(16, ge=1, why="records of one step; as many rehearsal samples come to it")
    learning_rate: float = changeable(2e-3, gt=0, why="largest step size of AdamW; it falls on half a cosine")
    weight_decay: float = changeable(5e-4, ge=0, why="decoupled weight decay")
    augmentation: AugmentationSettings | None = changeable(
        None, why="how a job changes images; none: as the learner does (learner.augmentation)"
    )
    initialisation: Initialisation = changeable(
        "newest",
        why="what the temporary network begins as; newest: the newest sub-module, whose channels are its first ones; "
        "fresh: drawn anew",
    )
    prune: float | None = changeable(
        0.5, gt=0, lt=1, why="share of the channels that the sub-module loses; none: it keeps them all"
    )
    ranking: Ranking = changeable("scale", why="which channels go; random: any, to compare with")
    scale_penalty: float = changeable(0.0, ge=0, why="weight of the sum of |gamma| of the batch norms, before pruning")
    temperature: float = changeable(2.0, gt=0, why="T of what the pruned network takes over from the temporary one")
    mixmatch_weight: float = changeable(
        1.0,
        ge=0,
        why="weight of the unlabelled rows' loss in the temporary network (MixMatch); 0: it does not hear them; texts "
        "without labels it never hears, since they cannot be mixed up",
    )
    mixmatch_loss: MixMatchLoss = changeable(
        "cross_entropy", why="of the unlabelled rows; squared_error: the paper's, which forgives wrong guesses more"
    )
    mixmatch_views: int = changeable(2, ge=1, why="K: augmented views of an unlabelled row, whose guesses are averaged")
    mixmatch_alpha: float = changeable(0.75, gt=0, why="of the Beta distribution that rows are mixed up with")
    mixmatch_ramp: float = changeable(
        0.1,
        gt=0,
        le=1,
        why="share of the steps over which the weight rises from 0; short, since old classes are guessed well at once",
    )
    sharpening: float = changeable(0.5, gt=0, le=1, why="T of guessed labels: the smaller, the surer")
    unlabelled_per_step: int = changeable(
        36, ge=1, why="unlabelled rows of one step of the temporary network, each in `mixmatch_views` views"
    )
    pseudo_weight: float = changeable(
        1.0, ge=0, why="weight of the guessed labels of unlabelled rows where the head is tuned; 0: they are not heard"
    )
    align_guesses: bool = changeable(
        False,
        why="the guessed labels where the head is tuned are shared out evenly among all classes, before they are "
        "sharpened (distribution alignment): for many unlabelled rows, of all classes about as often, not of those "
        "alone that come just now",
    )
    head_epochs: int = changeable(75, ge=1, why="passes of the joint head over the class-balanced rehearsal set")
    head_batch_size: int = changeable(64, ge=1, why="rehearsal samples of one step of it")
    head_learning_rate: float = changeable(1e-3, gt=0, why="largest step size")
    head_begins_as: HeadBeginsAs = changeable(
        "sub_module", why="sub_module: its own head, of all classes; both: that and the present network's together"
    )
    head_mixes: bool = changeable(True, why="the features of its rows are mixed up with each other (manifold mixup)")
    head_anchor: float = changeable(0.01, ge=0, why="weight of the squared distance of the head from where it began")
    sub_modules_share: float | None = changeable(
        None,
        gt=0,
        le=1,
        why="of the head's learning rate, for the sub-modules under it, which then go on learning in the stream, but "
        "those that an earlier job froze; none: the head alone is tuned, and the old ones are frozen",
    )
    # a job's time goes with them: five thousand steps or more of the temporary network
    most_records: int = changeable(
        10_000, ge=1, why="of more records of the new classes so many are kept, of the rarer classes all"
    )
    most_unlabelled: int = changeable(
        5_000, ge=1, why="of more unlabelled rows so many are kept, each as likely; all networks are asked about each"
    )
