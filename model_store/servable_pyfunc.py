"""The code of a version's MLflow artifact ("models from code"): MLflow copies this file and runs it to open the model.

It is not imported by our own processes. The package `pipeline` lies beside it in the artifact, so that the model opens
where this program is not installed; nothing in the artifact is pickled.

In: a DataFrame with columns `payload` (bytes) and `content_type` (as in the record's header).
Out: `label`, `probability` (of the label), `probabilities` (JSON, by class), and `error`: why a payload could not be
read; then the other columns are null.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import pandas as pd  # type: ignore[import-untyped]


class ServableModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc,name-defined]  # pyfunc is untyped
    """`pipeline.classifier.Classifier` behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        from pipeline.classifier import Classifier  # takes torch, which saving the model does without

        self._classifier = Classifier.load(Path(context.artifacts["servable"]))

    # MLflow reads the type hint: another than DataFrame would be a schema of its own, none would be warned of.
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        from pipeline.classifier import Prediction

        payloads = zip(model_input["payload"], model_input["content_type"], strict=True)
        rows: list[dict[str, object]] = []
        for answer in self._classifier.predict([(bytes(payload), str(kind)) for payload, kind in payloads]):
            if isinstance(answer, Prediction):
                probabilities = json.dumps(dict(answer.probabilities), ensure_ascii=False)
                rows.append(
                    {
                        "label": answer.label,
                        "probability": answer.probability,
                        "probabilities": probabilities,
                        "error": None,
                    }
                )
            else:
                rows.append({"label": None, "probability": None, "probabilities": None, "error": str(answer)})
        # object: None stays None; of another dtype it becomes NaN, and the scoring server writes that, which is no JSON
        return pd.DataFrame(rows, columns=["label", "probability", "probabilities", "error"], dtype=object)


mlflow.models.set_model(ServableModel())
