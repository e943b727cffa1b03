"""`digits`: scikit-learn's 1,797 real 8x8 digits (Alpaydin and Kaynak 1998), which need no file at all."""

from __future__ import annotations

import numpy as np

from pipeline.user_error import UserError
from producers.dataset_source import DatasetOptions, DatasetSource
from producers.image_dataset import ImageDataset
from producers.labelled_dataset import LabelledDataset


class DigitsSource(DatasetSource):
    forms = ("digits",)

    def open(self, head: str, argument: str, options: DatasetOptions) -> LabelledDataset:
        if options.split != "train":
            raise UserError("digits has no test split; leave --split out, and let the learner hold some out")
        from sklearn.datasets import load_digits  # half a second, and only digits need it

        bunch = load_digits()
        # Values run from 0 to 16: 17 shades over the range of a byte.
        images_NHW = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
        return ImageDataset(
            name="digits",
            original="digits",
            classes=tuple(str(name) for name in bunch.target_names),
            labels=np.asarray(bunch.target, dtype=np.int64),
            image=images_NHW.__getitem__,
            encoding=options.encoding or "png",
        )
