"""The dashboard *Versions*: which version answers where, how well it answers, and how the challenger compares."""

from __future__ import annotations

from grafana_foundation_sdk.models.common import BigValueTextMode
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.board import AnyPanel, Section, board
from deploy.grafana.colours import ACCURACY, DIFFERENCE, better_from, worse_from
from deploy.grafana.panels import DIFFERENCE_OF_SHARES, FREE, SHARE, figure, history, lines
from deploy.grafana.queries import Query
from deploy.grafana.series import added, age, here, quantile, rate, ratio
from deploy.grafana.tables import Column, joined
from deploy.grafana.units import COUNT, NUMBER, RATIO, REQUESTS_PER_SECOND, SECONDS

_CHAMPION, _CHALLENGER = 'role="champion"', 'role="challenger"'


def versions() -> Dashboard:
    """Versions are those that MLflow numbers; roles are its aliases."""
    return board(
        uid="palimpsest-versions",
        title="Palimpsest / Versions",
        description="Which version answers where, how well it answers, and how the challenger compares.",
        since="now-6h",
        sections=[
            Section("Now", _now()),
            Section("Who serves what", _served()),
            Section("Answers", _answers()),
            Section("Challenger against champion", _compared()),
        ],
    )


def _now() -> list[AnyPanel]:
    return [
        figure(
            "Champion",
            "The version that predictors in the role champion answer by. While they change to another, the newest of "
            "them.",
            NUMBER,
            Query(f"max({here('palimpsest_served_version', _CHAMPION)} > 0)"),
        ),
        figure(
            "Challenger",
            "The version that answers the same requests beside the champion, to be compared.",
            NUMBER,
            Query(f"max({here('palimpsest_served_version', _CHALLENGER)} > 0)"),
        ),
        figure(
            "Newest version",
            "The newest one that the learner has registered since it began: nobody need serve it.",
            NUMBER,
            Query(f"""max by (version) ({here("palimpsest_model_info", 'role="newest"')})""", "{{version}}"),
            text=BigValueTextMode.NAME,
        ),
        figure(
            "Answers a second",
            "Of all predictors of the stream, challengers too.",
            REQUESTS_PER_SECOND,
            Query(f"sum({rate('palimpsest_answers_total')})"),
        ),
        figure(
            "Latency p99",
            "Of the champion: 99 of 100 requests are answered sooner, from their time in the log to the committed "
            "answer.",
            SECONDS,
            Query(quantile(0.99, "palimpsest_answer_latency_seconds", of=(_CHAMPION,))),
            colours=worse_from(1, 10),
        ),
        figure(
            "Requests behind",
            "In the log, and not read yet by the predictors, champions and challengers; of all partitions.",
            COUNT,
            Query(f"sum({here('palimpsest_request_lag_records')})"),
            colours=worse_from(1_000, 10_000),
        ),
        figure(
            "Challenger minus champion",
            "Difference of their accuracies, each on its newest labelled answers. Above 0 the challenger is better.",
            RATIO,
            Query(
                f"max({ratio('palimpsest_shadow_accuracy_ratio', _CHALLENGER)}) - "
                f"max({ratio('palimpsest_shadow_accuracy_ratio', _CHAMPION)})"
            ),
            colours=better_from(-0.02, 0),
            decimals=1,
            between=DIFFERENCE_OF_SHARES,
        ),
        figure(
            "Agreement",
            "Share of the newest requests that champion and challenger answered alike. A comparison of two that "
            "nearly always agree needs many labels.",
            RATIO,
            Query(f"max({ratio('palimpsest_shadow_agreement_ratio')})"),
            decimals=1,
            between=SHARE,
        ),
    ]


def _served() -> list[AnyPanel]:
    return [
        joined(
            "Versions in their roles",
            "A line a process and role: the version it answers by (a learner's newest one has the role newest), the "
            "run in MLflow that it was registered by, and how long ago MLflow last said what the alias points to.",
            {"role": "Role", "version": "Version", "instance": "Process", "run_id": "Run in MLflow"},
            [
                Column(
                    query=Query(f"max by (role, version, instance, run_id) ({here('palimpsest_model_info')})"),
                    title=None,
                ),
                Column(
                    query=Query(f"max by (role, instance) ({age('palimpsest_alias_last_look_timestamp_seconds')})"),
                    title="MLflow answered",
                    unit=SECONDS,
                    colours=worse_from(60, 600),
                ),
            ],
            sorted_by="Role",
            height=8,
        ),
        lines(
            "Served version",
            "By role and process. Lines that lie apart for long: a predictor cannot open the new version, or cannot "
            "reach MLflow.",
            NUMBER,
            Query(f"max by (role, instance) ({here('palimpsest_served_version')} > 0)", "{{role}} {{instance}}"),
            between=FREE,
            steps=True,
        ),
        lines(
            "Swaps",
            "Times that another version came to answer; the first one after a start counts too.",
            COUNT,
            Query(f"sum by (role, instance) ({added('palimpsest_model_swaps_total')})", "{{role}} {{instance}}"),
            bars=True,
            width=8,
        ),
        lines(
            "Refusals",
            "Times that a version could not be opened (it is damaged, or not ours); the one before goes on answering.",
            COUNT,
            Query(f"sum by (role, instance) ({added('palimpsest_model_refusals_total')})", "{{role}} {{instance}}"),
            bars=True,
            width=8,
        ),
        lines(
            "Promotions by the worker",
            "Of challengers that it judged by itself. refused: outside a bound. failed: MLflow or brokers were away, "
            "it looks again.",
            COUNT,
            Query(f"sum by (outcome) ({added('palimpsest_promotions_total')})", "{{outcome}}"),
            bars=True,
            width=8,
        ),
    ]


def _answers() -> list[AnyPanel]:
    return [
        lines(
            "Answers a second",
            "By role and outcome. unreadable: the request could not be decoded, and its answer says so.",
            REQUESTS_PER_SECOND,
            Query(f"sum by (role, outcome) ({rate('palimpsest_answers_total')})", "{{role}} {{outcome}}"),
        ),
        lines(
            "Latency",
            "From a request's time in the log to its committed answer. The scale is logarithmic.",
            SECONDS,
            Query(quantile(0.5, "palimpsest_answer_latency_seconds", "role"), "{{role}} p50"),
            Query(quantile(0.99, "palimpsest_answer_latency_seconds", "role"), "{{role}} p99"),
            between=FREE,
            logarithmic=True,
        ),
        lines(
            "Time of a batch, by stage",
            "Median of predict (the network) and transaction (answers and offsets, all or nothing).",
            SECONDS,
            Query(quantile(0.5, "palimpsest_answer_duration_seconds", "role", "stage"), "{{role}} {{stage}} p50"),
            Query(quantile(0.99, "palimpsest_answer_duration_seconds", "role", "stage"), "{{role}} {{stage}} p99"),
        ),
        lines(
            "Requests in a batch",
            "Mean number of requests answered together. It rises with the load, and with it what a second brings.",
            COUNT,
            Query(
                f"sum by (role) ({rate('palimpsest_answer_batch_requests_sum')}) / "
                f"(sum by (role) ({rate('palimpsest_answer_batch_requests_count')}) > 0)",
                "{{role}}",
            ),
        ),
        lines(
            "Requests behind",
            "Of each partition: in the log, and not read yet by the predictor that has it.",
            COUNT,
            Query(
                f"sum by (topic, partition, instance) ({here('palimpsest_request_lag_records')})",
                "{{topic}} {{partition}} at {{instance}}",
            ),
            width=8,
        ),
        lines(
            "Answers given up",
            "Requests of transactions that did not go through. They are answered by another try, or another predictor.",
            COUNT,
            Query(f"sum by (role) ({added('palimpsest_answers_given_up_total')})", "{{role}}"),
            bars=True,
            width=8,
        ),
        lines(
            "POST /predict a second, by status",
            "200: answered. 4xx: the request cannot be answered. 503: no version is loaded yet, or too many wait.",
            REQUESTS_PER_SECOND,
            Query(f"sum by (status) ({rate('palimpsest_http_predictions_total')})", "{{status}}"),
            width=8,
        ),
    ]


def _compared() -> list[AnyPanel]:
    # Every instance of the challenger shows the same figures, of the whole stream: the greatest of them, not their sum.
    accuracy, by_class = "palimpsest_shadow_accuracy_ratio", "palimpsest_shadow_class_accuracy_ratio"
    return [
        lines(
            "Accuracy in their roles",
            "Of champion and challenger on their newest labelled answers: the same requests, with labels that came "
            "later on the stream itself.",
            RATIO,
            Query(f"max by (role) ({ratio(accuracy)})", "{{role}}"),
            between=SHARE,
        ),
        joined(
            "Class by class",
            "Both on the same classes, those that either does worst on. The difference is on requests that both "
            "answered.",
            {"class_name": "Class"},
            [
                Column(
                    query=Query(f"max by (class_name) ({ratio(by_class, _CHAMPION)})"),
                    title="Champion",
                    unit=RATIO,
                    colours=ACCURACY,
                ),
                Column(
                    query=Query(f"max by (class_name) ({ratio(by_class, _CHALLENGER)})"),
                    title="Challenger",
                    unit=RATIO,
                    colours=ACCURACY,
                ),
                Column(
                    query=Query(f"max by (class_name) ({ratio('palimpsest_shadow_class_difference_ratio')})"),
                    title="Difference",
                    unit=RATIO,
                    colours=DIFFERENCE,
                ),
            ],
            sorted_by="Difference",
            height=8,
        ),
        history(
            "Challenger minus champion, by class, over time",
            "Blue: the challenger is better on this class. Red: the champion is. Grey: within 2 %.",
            RATIO,
            Query(f"max by (class_name) ({ratio('palimpsest_shadow_class_difference_ratio')})", "{{class_name}}"),
            colours=DIFFERENCE,
            height=10,
            between=DIFFERENCE_OF_SHARES,
        ),
        lines(
            "Agreement",
            "Share of the newest requests that both answered alike.",
            RATIO,
            Query(f"max({ratio('palimpsest_shadow_agreement_ratio')})", "agreement"),
            between=SHARE,
            width=8,
        ),
        lines(
            "Answers that were compared",
            "answered: by a role. labelled: those whose true label came in time; a comparison is as good as these "
            "are many. They are counted since a horizon before the predictor's start, and climb through it again "
            "after each.",
            COUNT,
            Query(f"max by (role) ({here('palimpsest_shadow_answers_total')})", "{{role}} answered"),
            Query(f"max by (role) ({here('palimpsest_shadow_labelled_total')})", "{{role}} labelled"),
            width=8,
        ),
        lines(
            "What the comparison lost",
            "late labels: came after the horizon. dropped: given up for want of memory. cuts: a topic did not hold "
            "what was to be read next. Counted as the answers are.",
            COUNT,
            Query(f"max({here('palimpsest_shadow_late_labels_total')})", "late labels"),
            Query(f"max by (what) ({here('palimpsest_shadow_dropped_total')})", "dropped {{what}}"),
            Query(f"max({here('palimpsest_shadow_log_cuts_total')})", "cuts"),
            width=8,
        ),
    ]
