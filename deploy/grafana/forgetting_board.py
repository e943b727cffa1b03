"""The dashboard *Forgetting*: what the model has forgotten, since when, and what was done about it."""

from __future__ import annotations

from grafana_foundation_sdk.models.common import BigValueTextMode
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.board import AnyPanel, Section, board
from deploy.grafana.colours import ACCURACY, better_from, worse_from
from deploy.grafana.panels import DIFFERENCE_OF_SHARES, SHARE, figure, history, lines, ranking
from deploy.grafana.queries import Query
from deploy.grafana.series import added, age, here, ratio
from deploy.grafana.units import COUNT, NUMBER, RATIO, SECONDS


def forgetting() -> Dashboard:
    """All of it is measured on records held out by a hash of what they show, which nothing is ever trained on."""
    return board(
        uid="palimpsest-forgetting",
        title="Palimpsest / Forgetting",
        description="What the model has forgotten, since when, and what was done about it.",
        since="now-6h",
        sections=[
            Section("Now", _now()),
            Section("Class by class", _classes()),
            Section("All classes together", _together()),
            Section("What was done about it", _done()),
        ],
    )


def _now() -> list[AnyPanel]:
    return [
        figure(
            "Average accuracy",
            "Mean accuracy over the known classes, on their held-out records. Classes with fewer than 20 of these "
            "stay out.",
            RATIO,
            Query(f"max({ratio('palimpsest_average_accuracy_ratio')})"),
            colours=better_from(0.6, 0.8),
            decimals=1,
            between=SHARE,
        ),
        figure(
            "Average forgetting",
            "Mean, over the classes seen before, of the best accuracy each ever had minus the one now. 0: nothing is "
            "forgotten.",
            RATIO,
            Query(f"max({ratio('palimpsest_average_forgetting_ratio')})"),
            colours=worse_from(0.05, 0.15),
            decimals=1,
            between=SHARE,
        ),
        figure(
            "Most forgotten class",
            "The class that has lost most of the best accuracy it ever had, and how much. Where several have lost "
            "the same, one of them.",
            RATIO,
            Query(f"topk(1, max by (class_name) ({here('palimpsest_class_forgetting_ratio')}))", "{{class_name}}"),
            colours=worse_from(0.1, 0.25),
            text=BigValueTextMode.VALUE_AND_NAME,
            decimals=1,
            between=SHARE,
        ),
        figure(
            "Worst class",
            "The class that the model is right about least often, and how often. New classes begin here.",
            RATIO,
            Query(f"bottomk(1, max by (class_name) ({here('palimpsest_class_accuracy_ratio')}))", "{{class_name}}"),
            colours=better_from(0.5, 0.75),
            text=BigValueTextMode.VALUE_AND_NAME,
            decimals=1,
            between=SHARE,
        ),
        figure(
            "Backward transfer",
            "Mean of a class's accuracy now minus the one at the end of its first burst. Below 0: later learning has "
            "cost earlier classes; above 0: it has helped them.",
            RATIO,
            Query(f"max({ratio('palimpsest_backward_transfer_ratio')})"),
            colours=better_from(-0.15, -0.05),
            decimals=1,
            between=DIFFERENCE_OF_SHARES,
        ),
        figure(
            "Early gain",
            "How much better than chance the model is on a class's records 2 to 50, before it learns each. High: "
            "what was learnt before helps with what is new.",
            RATIO,
            Query(f"max({ratio('palimpsest_early_accuracy_gain_ratio')})"),
            decimals=1,
            between=DIFFERENCE_OF_SHARES,
        ),
        figure(
            "Known classes",
            "Classes that have a logit column: all that ever came with a label.",
            COUNT,
            Query(f"max({here('palimpsest_known_classes')})"),
        ),
        figure(
            "Last evaluation",
            "How long ago this process last evaluated the held-out records; all other figures of this row are as "
            "old. Evaluations come every so many records: with no records, there are none.",
            SECONDS,
            Query(f"min({age('palimpsest_evaluation_last_timestamp_seconds')})"),
            decimals=0,
        ),
    ]


def _classes() -> list[AnyPanel]:
    return [
        history(
            "Accuracy of each class over time",
            "A row a class, a column a moment: blue is right, red is wrong, nothing is a class that has not come "
            "yet. A row that turns from blue to red is being forgotten; a row that begins red and turns blue is "
            "being learnt; a column in which many rows turn at once is an event, and the vertical lines say which. "
            "At most 50 classes have rows of their own, the worst ones; the others share the row `other`, as their "
            "mean.",
            RATIO,
            Query(f"max by (class_name) ({here('palimpsest_class_accuracy_ratio')})", "{{class_name}}"),
            colours=ACCURACY,
            height=14,
            between=SHARE,
        ),
        lines(
            "Forgetting of each class",
            "The best accuracy that a class ever had minus the one now. Sort the table by its last column to see who "
            "lost most; click a class to see it alone.",
            RATIO,
            Query(f"max by (class_name) ({here('palimpsest_class_forgetting_ratio')})", "{{class_name}}"),
            between=SHARE,
            height=10,
        ),
        ranking(
            "Samples in the reservoir",
            "How many samples of each class can be replayed. A class with few of them is the next to be forgotten; "
            "with the class-balanced reservoir the bars are of about one length, once it is full.",
            COUNT,
            Query(f"sort_desc(max by (class_name) ({here('palimpsest_replay_samples')}))", "{{class_name}}"),
            width=6,
            height=10,
        ),
        ranking(
            "Held-out samples",
            "Of how many samples the accuracy of each class is. Below 20 a class stays out of the averages, and one "
            "sample more or less moves its accuracy by 5 % and more: do not read much into its row.",
            COUNT,
            Query(f"sort(max by (class_name) ({here('palimpsest_class_held_out_samples')}))", "{{class_name}}"),
            colours=better_from(10, 20),
            width=6,
            height=10,
        ),
    ]


def _together() -> list[AnyPanel]:
    return [
        lines(
            "Accuracy",
            "held out: mean over the known classes, on records never trained on. before learning: on the newest "
            "records of the stream, each before it is learnt. Where the second falls and the first does not, the "
            "stream has changed.",
            RATIO,
            Query(f"max({ratio('palimpsest_average_accuracy_ratio')})", "held out"),
            Query(f"max({ratio('palimpsest_prequential_accuracy_ratio')})", "before learning"),
            between=SHARE,
        ),
        lines(
            "Forgetting and transfer",
            "forgetting: what classes lost of their best accuracy. backward transfer: what later learning did to "
            "earlier classes, below 0 where it cost them. early gain: how much what was known helps with new classes.",
            RATIO,
            Query(f"max({ratio('palimpsest_average_forgetting_ratio')})", "forgetting"),
            Query(f"max({ratio('palimpsest_backward_transfer_ratio')})", "backward transfer"),
            Query(f"max({ratio('palimpsest_early_accuracy_gain_ratio')})", "early gain"),
            between=DIFFERENCE_OF_SHARES,
        ),
        lines(
            "Known classes",
            "Classes that have a logit column. Each step is a class that came for the first time.",
            COUNT,
            Query(f"max({here('palimpsest_known_classes')})", "classes"),
            width=8,
            steps=True,
        ),
        lines(
            "Sub-modules of the network",
            "Grows by one with each expansion that is adopted, and falls back to 1 with a consolidation.",
            NUMBER,
            Query(f"max({here('palimpsest_sub_modules')})", "sub-modules"),
            width=8,
            steps=True,
        ),
        lines(
            "Parameters of the network",
            "All sub-modules and the head. What grows here, memory and time of an update grow with.",
            COUNT,
            Query(f"max({here('palimpsest_network_parameters')})", "parameters"),
            width=8,
            steps=True,
        ),
    ]


def _done() -> list[AnyPanel]:
    return [
        lines(
            "Restructurings asked for",
            "By what was asked for, and why: new classes have settled, a period is over, drift, forgetting, or a "
            "network of too many sub-modules. The worker does them.",
            COUNT,
            Query(
                f"sum by (kind, reason) ({added('palimpsest_restructurings_requested_total')}) > 0",
                "{{kind}}: {{reason}}",
            ),
            bars=True,
            width=6,
        ),
        lines(
            "Restructurings not answered yet",
            "1: asked for, and the worker has not offered anything yet. For long: no worker runs, or its job is long.",
            COUNT,
            Query(f"max by (kind) ({here('palimpsest_restructuring_waiting')})", "{{kind}}"),
            between=SHARE,
            steps=True,
            width=6,
        ),
        lines(
            "Restructurings adopted and refused",
            "What the learner made of the worker's offers. An offer is refused where it would be worse than what "
            "learns now.",
            COUNT,
            Query(f"sum by (outcome) ({added('palimpsest_consolidations_total')})", "consolidation {{outcome}}"),
            Query(f"sum by (outcome) ({added('palimpsest_expansions_total')})", "expansion {{outcome}}"),
            bars=True,
            width=6,
        ),
        lines(
            "Records to learn once more",
            "After an adoption the learner goes back to where the job began, and learns again what came since. Above "
            "0 it is still at it, and its figures are of an earlier place in the log.",
            COUNT,
            Query(f"max({here('palimpsest_relearning_records')})", "records"),
            width=6,
        ),
    ]
