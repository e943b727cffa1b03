"""Every kind of data set, from files made here; what is wrong with them is said in one line."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.keyed_randomness import generator
from pipeline.user_error import UserError
from producers.dataset_source import DatasetOptions, default_data_root
from producers.datasets import dataset_forms, open_dataset
from producers.labelled_dataset import LabelledDataset
from tests.system_package import require_module

MNIST_ROOT = Path(os.environ.get("PALIMPSEST_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def picture(payload: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(BytesIO(payload)) as image:
        return np.asarray(image)


def array(payload: bytes) -> npt.NDArray[np.generic]:
    loaded: npt.NDArray[np.generic] = np.load(BytesIO(payload), allow_pickle=False)
    return loaded


def label(dataset: LabelledDataset, i: int) -> str:
    return dataset.classes[int(dataset.labels[i])]


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def idx(values: npt.NDArray[np.uint8]) -> bytes:
    """The format of MNIST's files: two zeros, 8 for bytes, the number of axes, their lengths, the values."""
    return bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


def fashion_mnist_files(root: Path) -> npt.NDArray[np.uint8]:
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name in ("train", "t10k"):
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.array([9, 0, 0, 9], dtype=np.uint8)))
    return images


class TestDigits:
    def test_are_the_1797_of_scikit_learn_scaled_to_bytes(self) -> None:
        from sklearn.datasets import load_digits

        dataset = open_dataset("digits")
        assert (len(dataset), dataset.name) == (1_797, "digits")
        assert dataset.classes == tuple("0123456789")
        assert label(dataset, 5) == "5"
        payload, content_type = dataset.payload(5)
        assert content_type == "image/png"
        np.testing.assert_allclose(picture(payload), load_digits().images[5] / 16 * 255, atol=0.5)
        assert picture(payload).max() == 255
        assert dataset.subject(5) == "digits/5"

    def test_as_arrays_are_0_to_1(self) -> None:
        payload, content_type = open_dataset("digits", DatasetOptions(encoding="npy")).payload(5)
        x = array(payload)
        assert content_type == "application/x-npy"
        assert x.dtype == np.float32
        assert x.shape == (1, 8, 8)
        assert x.max() == 1.0

    def test_change_slightly_and_repeatably(self) -> None:
        dataset = open_dataset("digits")
        first, again, other = (dataset.augmented_payload(5, generator(0, "t", n))[0] for n in (0, 0, 1))
        assert first == again
        assert len({first, other, dataset.payload(5)[0]}) == 3
        assert dataset.augmented_payload(5, None, 0.0) == dataset.payload(5)

    def test_have_no_test_split(self) -> None:
        with pytest.raises(UserError, match="no test split"):
            open_dataset("digits", DatasetOptions(split="test"))


class TestTorchvision:
    def test_reads_files_that_are_there(self, tmp_path: Path) -> None:
        images = fashion_mnist_files(tmp_path)
        dataset = open_dataset("fashion-mnist", DatasetOptions(data_root=tmp_path))
        assert dataset.name == "fashion-mnist"
        assert dataset.classes == ("T-shirt/top", "Ankle boot")  # those that have images
        assert [label(dataset, i) for i in range(4)] == ["Ankle boot", "T-shirt/top", "T-shirt/top", "Ankle boot"]
        np.testing.assert_array_equal(picture(dataset.payload(2)[0]), images[2])
        assert dataset.subject(2) == "fashion-mnist/train/2"

    def test_the_test_split_has_subjects_of_its_own(self, tmp_path: Path) -> None:
        fashion_mnist_files(tmp_path)
        options = DatasetOptions(data_root=tmp_path, split="test")
        by_short_name, by_class = (
            open_dataset(spec, options) for spec in ("fashion-mnist", "torchvision:FashionMNIST")
        )
        assert by_short_name.subject(0) == by_class.subject(0) == "fashion-mnist/test/0"

    def test_unpacked_mnist_as_it_is(self) -> None:
        if not (MNIST_ROOT / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
            pytest.skip(f"NO MNIST in {MNIST_ROOT}: set PALIMPSEST_TEST_DATA to the folder that holds MNIST/raw")
        dataset = open_dataset("mnist", DatasetOptions(data_root=MNIST_ROOT))
        assert len(dataset) == 60_000
        assert dataset.classes == tuple("0123456789")
        assert np.bincount(dataset.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert label(dataset, 0) == "5"
        raw = (MNIST_ROOT / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()
        assert picture(dataset.payload(123)[0]).tobytes() == raw[16 + 123 * 784 :][:784]
        assert dataset.subject(123) == "mnist/train/123"

    def test_images_that_are_not_in_memory_come_one_by_one(self, tmp_path: Path) -> None:
        for name in ("Forest", "River"):
            folder = tmp_path / "eurosat" / "2750" / name
            folder.mkdir(parents=True)
            Image.new("RGB", (5, 4), (1, 2, 3) if name == "River" else (9, 9, 9)).save(folder / "1.png")
        dataset = open_dataset("torchvision:EuroSAT", DatasetOptions(data_root=tmp_path))
        assert dataset.classes == ("Forest", "River")
        np.testing.assert_array_equal(picture(dataset.payload(1)[0]), np.tile(np.array([1, 2, 3], np.uint8), (4, 5, 1)))
        assert dataset.subject(1) == "eurosat/train/1"
        with pytest.raises(UserError, match="EuroSAT has no test split"):
            open_dataset("torchvision:EuroSAT", DatasetOptions(data_root=tmp_path, split="test"))

    @pytest.mark.parametrize(
        "spec", ["mnist", "cifar10", "torchvision:KMNIST", "torchvision:SVHN", "torchvision:EMNIST"]
    )
    def test_files_that_are_missing(self, spec: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"is not in .*--data-root, or let --download fetch it") as caught:
            open_dataset(spec, DatasetOptions(data_root=tmp_path / "nowhere"))
        assert str(tmp_path / "nowhere") in str(caught.value)

    def test_nothing_is_downloaded_unasked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import socket

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("a connection was tried")

        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        for spec in ("mnist", "torchvision:SEMEION"):  # the second one's own default is to download
            with pytest.raises(UserError, match="is not in"):
                open_dataset(spec, DatasetOptions(data_root=tmp_path))

    def test_broken_files(self, tmp_path: Path) -> None:
        folder = tmp_path / "MNIST" / "raw"
        folder.mkdir(parents=True)
        for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
            (folder / f"{name}-ubyte").write_bytes(gzip.compress(b"not idx"))
        with pytest.raises(UserError, match="torchvision:MNIST"):
            open_dataset("mnist", DatasetOptions(data_root=tmp_path))

    @pytest.mark.parametrize(
        "name", ["Nonsense", "ImageFolder", "__all__", "CocoDetection", "VisionDataset", "FakeData"]
    )
    def test_names_that_are_no_classification_sets(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=name):
            open_dataset(f"torchvision:{name}", DatasetOptions(data_root=tmp_path))


class TestFolder:
    @pytest.fixture
    def pets(self, tmp_path: Path) -> Path:
        """cat: two PNGs, one of them named .jpg; dog: a JPEG in a folder of its own."""
        root = tmp_path / "pets"
        for name, size in (("cat/1.png", (6, 4)), ("cat/2.jpg", (3, 3)), ("dog/deep/1.JPEG", (16, 16))):
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
            image.save(file, format="JPEG" if name.startswith("dog") else "PNG")
        write(root / "cat" / "notes.txt", "not an image")
        write(root / ".hidden" / "x.png", "")
        write(root / "README.md", "not a class")
        return root

    def test_sends_the_files_unchanged(self, pets: Path) -> None:
        dataset = open_dataset(f"folder:{pets}")
        assert dataset.name == "pets"
        assert dataset.classes == ("cat", "dog")
        assert [label(dataset, i) for i in range(3)] == ["cat", "cat", "dog"]
        assert dataset.payload(0) == ((pets / "cat/1.png").read_bytes(), "image/png")
        assert dataset.payload(1) == ((pets / "cat/2.jpg").read_bytes(), "image/png")
        assert dataset.payload(2) == ((pets / "dog/deep/1.JPEG").read_bytes(), "image/jpeg")
        assert dataset.subject(2) == "pets/dog/deep/1.JPEG"

    def test_a_changed_image_keeps_format_and_size(self, pets: Path) -> None:
        dataset = open_dataset(f"folder:{pets}")
        for i, content_type, signature, shape in (
            (0, "image/png", b"\x89PNG", (6, 4, 3)),
            (2, "image/jpeg", b"\xff\xd8", (16, 16, 3)),
        ):
            payload, sent_as = dataset.augmented_payload(i, generator(0, "t"))
            assert sent_as == content_type
            assert payload.startswith(signature)
            assert picture(payload).shape == shape
            assert payload != dataset.payload(i)[0]

    def test_takes_the_splits_folder_where_there_is_one(self, pets: Path, tmp_path: Path) -> None:
        both = tmp_path / "both"
        both.mkdir()
        pets.rename(both / "train")
        dataset = open_dataset(f"folder:{both}")
        assert dataset.name == "both"
        assert dataset.subject(0) == "both/train/cat/1.png"
        assert open_dataset(f"folder:{both / 'train'}").subject(0) == "both/train/cat/1.png"
        with pytest.raises(UserError, match="no folder 'test'"):
            open_dataset(f"folder:{both}", DatasetOptions(split="test"))

    def test_numbered_classes_come_by_value(self, tmp_path: Path) -> None:
        for name in ("10", "9", "2"):
            folder = tmp_path / "numbers" / name
            folder.mkdir(parents=True)
            Image.new("L", (2, 2)).save(folder / "x.png")
        assert open_dataset(f"folder:{tmp_path / 'numbers'}").classes == ("2", "9", "10")

    def test_what_is_missing_or_broken_is_named(self, pets: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="nowhere is not a folder"):
            open_dataset(f"folder:{tmp_path / 'nowhere'}")
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="empty holds no folders"):
            open_dataset(f"folder:{tmp_path / 'empty'}")
        dataset = open_dataset(f"folder:{pets}")
        (pets / "cat/1.png").write_bytes(b"broken")
        assert dataset.payload(0) == (b"broken", "image/png")  # to dead letters
        with pytest.raises(UserError, match=r"1\.png cannot be shifted and turned"):
            dataset.augmented_payload(0, generator(0, "t"))
        (pets / "cat/1.png").unlink()
        with pytest.raises(UserError, match=r"cannot read .*1\.png"):
            dataset.payload(0)
        (pets / "bird").mkdir()
        with pytest.raises(UserError, match=r"bird holds no \.jpg or \.png file"):
            open_dataset(f"folder:{pets}")


class TestCsv:
    def test_texts(self, tmp_path: Path) -> None:
        file = write(tmp_path / "news.csv", 'text,id,label\n"Stocks, up",1,finance\nGoal!,2,sports\n\n数学,3,science\n')
        dataset = open_dataset(f"csv:{file}")
        assert (dataset.name, dataset.classes) == ("news", ("finance", "science", "sports"))
        assert dataset.payload(0) == (b"Stocks, up", "text/plain; charset=utf-8")
        assert dataset.payload(2)[0].decode() == "数学"
        assert label(dataset, 2) == "science"
        assert dataset.subject(1) == "news/1"

    def test_columns_by_name(self, tmp_path: Path) -> None:
        file = write(tmp_path / "news.csv", "headline;topic\na;x\nb;y\n")
        options = DatasetOptions(text_column="headline", label_column="topic", delimiter=";")
        dataset = open_dataset(f"csv:{file}", options)
        assert dataset.classes == ("x", "y")
        assert dataset.payload(1)[0] == b"b"

    def test_tabs_without_a_line_of_names_and_with_a_stray_quote(self, tmp_path: Path) -> None:
        file = write(tmp_path / "dev.tsv", 'he said "no\t3\nyes\t10\n')
        dataset = open_dataset(f"csv:{file}", DatasetOptions(text_column="1", label_column="2"))
        assert dataset.classes == ("3", "10")
        assert dataset.payload(0)[0] == b'he said "no'

    def test_numbers(self, tmp_path: Path) -> None:
        file = write(tmp_path / "iris.csv", "width,label,height\n1.5,a,2\n-3,b,4e1\n")
        dataset = open_dataset(f"csv:{file}")
        payload, content_type = dataset.payload(1)
        assert content_type == "application/x-npy"
        assert array(payload).dtype == np.float32
        assert array(payload).tolist() == [-3.0, 40.0]

    def test_a_changed_text_lacks_up_to_a_14th(self, tmp_path: Path) -> None:
        text = "".join(chr(0x4E00 + i) for i in range(28))
        dataset = open_dataset(f"csv:{write(tmp_path / 'x.csv', f'text,label{chr(10)}{text},a')}")
        lengths = set()
        for number in range(40):
            changed = dataset.augmented_payload(0, generator(0, "t", number))[0].decode()
            assert changed == "".join(character for character in text if character in changed)  # in order
            lengths.add(len(changed))
        assert lengths == {26, 27, 28}

    def test_changed_numbers_stay_close(self, tmp_path: Path) -> None:
        rows = "\n".join(f"{i},{1000 * i},a" for i in range(10))
        dataset = open_dataset(f"csv:{write(tmp_path / 'x.csv', f'x,y,label{chr(10)}{rows}')}")
        changes = np.array(
            [array(dataset.augmented_payload(4, generator(0, "t", n))[0]).astype(float) for n in range(400)]
        ) - [4, 4000]
        # The standard deviation of 0..9 is 2.87; 5 % of it is 0.144, and a thousand times that for y.
        np.testing.assert_allclose(changes.std(axis=0), [0.144, 144], rtol=0.1)

    @pytest.mark.parametrize(
        ("content", "options", "message"),
        [
            ("text,topic\na,b\n", {}, r"has no column 'label' \(it has 'text', 'topic'\); name another with --label"),
            ("text,label\na,b\n", {"text_column": "body"}, "has no column 'body'.*--text-column"),
            ("text,label\n", {}, "holds no item"),
            ("", {}, "holds no line"),
            ("label\na\n", {}, "nothing to learn from"),
            ("text,label\na,\n", {}, "line 2: the label is ''"),
            ("text,label\n,b\n", {}, "line 2: the text is ''"),
            ("text,label\na,b,c\n", {}, "line 2: 3 columns, where the first line has 2"),
            ("x,label\n1,a\ntwo,b\n", {}, "line 3: column 'x' holds 'two', which is no number.*--text-column"),
            ("text,label\na,b\n", {"delimiter": "||"}, "a delimiter is one character"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path: Path, content: str, options: dict[str, str], message: str) -> None:
        file = write(tmp_path / "x.csv", content)
        with pytest.raises(UserError, match=message) as caught:
            open_dataset(f"csv:{file}", DatasetOptions(**options))  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)

    def test_other_encodings_and_missing_files(self, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_bytes("text,label\ncafé,b\n".encode("latin-1"))
        with pytest.raises(UserError, match="is not UTF-8"):
            open_dataset(f"csv:{tmp_path / 'x.csv'}")
        with pytest.raises(UserError, match=r"cannot read .*nowhere\.csv"):
            open_dataset(f"csv:{tmp_path / 'nowhere.csv'}")


class TestJsonLines:
    def lines(self, file: Path, *rows: object) -> Path:
        return write(file, "\n".join(json.dumps(row) for row in rows) + "\n\n")

    def test_texts(self, tmp_path: Path) -> None:
        file = self.lines(tmp_path / "t.jsonl", {"text": "déjà", "label": 3}, {"label": "x", "text": "b", "more": None})
        dataset = open_dataset(f"jsonl:{file}")
        assert dataset.classes == ("3", "x")
        assert dataset.payload(0) == ("déjà".encode(), "text/plain; charset=utf-8")

    def test_arrays_and_plain_numbers(self, tmp_path: Path) -> None:
        file = self.lines(
            tmp_path / "a.jsonl", *({"payload": [[1, 2], [3, n]], "label": "a", "id": "z"} for n in (4, 5))
        )
        assert array(open_dataset(f"jsonl:{file}").payload(1)[0]).tolist() == [[1.0, 2.0], [3.0, 5.0]]
        file = self.lines(tmp_path / "n.jsonl", {"x": 1, "y": 2.5, "c": "a"}, {"c": "b", "y": 4, "x": 3})
        assert array(open_dataset(f"jsonl:{file}", DatasetOptions(label_column="c")).payload(1)[0]).tolist() == [
            3.0,
            4.0,
        ]

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([{"text": "a"}], "no column 'label'"),
            ([{"text": "a", "label": "x"}, {"text": "a"}], "line 2: the label is None"),
            ([{"text": "a", "label": "x"}, {"text": 5, "label": "x"}], "line 2: the text is 5"),
            ([{"text": "a", "label": True}], "line 1: the label is True"),
            ([{"payload": [1], "label": "x"}, {"payload": [1, 2], "label": "x"}], r"line 2: .*shape \(2,\), where"),
            ([{"payload": [[1], [1, 2]], "label": "x"}], "list of numbers"),
            ([{"payload": ["1"], "label": "x"}], "list of numbers"),
            ([{"x": None, "label": "x"}], "column 'x' holds None"),
            ([{"label": "x"}], "nothing to learn from"),
            ([[1, 2]], "line 1: list, where a JSON object is wanted"),
            ([], "holds no item"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path: Path, rows: list[object], message: str) -> None:
        with pytest.raises(UserError, match=message):
            open_dataset(f"jsonl:{self.lines(tmp_path / 'x.jsonl', *rows)}")

    def test_what_is_no_json(self, tmp_path: Path) -> None:
        file = write(tmp_path / "x.jsonl", '{"text": "a", "label": "b"}\n{oops')
        with pytest.raises(UserError, match="line 2: not JSON"):
            open_dataset(f"jsonl:{file}")
        with pytest.raises(UserError, match="cannot read"):
            open_dataset(f"jsonl:{tmp_path / 'nowhere.jsonl'}")


class TestNpz:
    @pytest.fixture
    def save(self, tmp_path: Path) -> Callable[..., str]:
        def save(**arrays: npt.ArrayLike) -> str:
            np.savez(tmp_path / "x.npz", allow_pickle=True, **{k: np.asarray(v) for k, v in arrays.items()})
            return f"npz:{tmp_path / 'x.npz'}"

        return save

    def test_rows_keep_shape_and_dtype(self, save: Callable[..., str]) -> None:
        x = np.arange(12, dtype=np.float64).reshape(3, 2, 2)
        dataset = open_dataset(save(x=x, y=["b", "a", "b"]))
        assert dataset.classes == ("a", "b")
        payload, content_type = dataset.payload(1)
        assert content_type == "application/x-npy"
        np.testing.assert_array_equal(array(payload), x[1])
        assert array(payload).dtype == np.float64
        assert open_dataset(save(x=x, y=[10, 9, 10])).classes == ("9", "10")

    def test_changed_whole_numbers_stay_whole_and_in_range(self, save: Callable[..., str]) -> None:
        x = np.tile(np.arange(0, 256, 5, dtype=np.uint8), (2, 1))
        x[1] = x[1][::-1]
        changed = array(open_dataset(save(x=x, y=[0, 1])).augmented_payload(0, generator(0, "t"))[0])
        assert changed.dtype == np.uint8
        difference = np.abs(changed.astype(int) - x[0])  # 5 % of a deviation of 127 at most: 6.4
        assert 0 < difference.max() < 40

    def test_images_can_travel_as_png(self, save: Callable[..., str]) -> None:
        x = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
        dataset = open_dataset(save(x=x, y=[0, 1]), DatasetOptions(encoding="png"))
        assert dataset.can_turn
        np.testing.assert_array_equal(picture(dataset.payload(1)[0]), x[1])

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"x": [[1.0]]}, "lacks y; it holds x"),
            ({"x": [[1.0]], "y": [1, 2]}, "for 2 labels"),
            ({"x": [1.0], "y": [1]}, "x is float64 of shape"),
            ({"x": [[1.0]], "y": [0.5]}, "y is float64"),
            ({"x": [["a"]], "y": [1]}, "x is <U1"),
            ({"x": [[1.0]], "y": [""]}, "empty string"),
            ({"x": np.empty((0, 3)), "y": np.empty(0, dtype=int)}, "holds no item"),
        ],
    )
    def test_what_is_wrong_is_named(
        self, save: Callable[..., str], arrays: dict[str, npt.ArrayLike], message: str
    ) -> None:
        with pytest.raises(UserError, match=message):
            open_dataset(save(**arrays))

    def test_pickles_other_files_and_none(self, save: Callable[..., str], tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no \.npz file of plain arrays"):
            open_dataset(save(x=[[1.0]], y=np.array([object()])))
        (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 broken")
        with pytest.raises(UserError, match=r"no \.npz file of plain arrays"):
            open_dataset(f"npz:{tmp_path / 'x.npz'}")
        with (tmp_path / "x.npz").open("wb") as file:
            np.save(file, np.ones((2, 2)))
        with pytest.raises(UserError, match="is a single array"):
            open_dataset(f"npz:{tmp_path / 'x.npz'}")
        with pytest.raises(UserError, match="cannot read"):
            open_dataset(f"npz:{tmp_path / 'nowhere.npz'}")


class TestAvalanche:
    def test_without_the_extra_it_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "avalanche", None)
        monkeypatch.setitem(sys.modules, "avalanche.benchmarks", None)
        with pytest.raises(UserError, match=r"pip install palimpsest\[avalanche\]"):
            open_dataset("avalanche:SplitMNIST")

    def test_a_count_that_is_none(self) -> None:
        with pytest.raises(UserError, match="'many' is no number of experiences"):
            open_dataset("avalanche:SplitMNIST/many")

    def test_split_mnist_by_its_experiences(self) -> None:
        require_module("avalanche.benchmarks", extra="avalanche")
        if not (MNIST_ROOT / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
            pytest.skip(f"NO MNIST in {MNIST_ROOT}")
        dataset = open_dataset("avalanche:SplitMNIST/5", DatasetOptions(data_root=MNIST_ROOT, seed=0))
        assert len(dataset) == 60_000
        assert dataset.classes == tuple("0123456789")
        assert dataset.steps is not None
        companies = [set(dataset.labels[dataset.steps == step].tolist()) for step in range(5)]
        assert [len(company) for company in companies] == [2] * 5
        assert set().union(*companies) == set(range(10))
        # The same pixels as from the files themselves.
        plain = open_dataset("mnist", DatasetOptions(data_root=MNIST_ROOT))
        first_of_class = int(np.flatnonzero(plain.labels == dataset.labels[0])[0])
        second = next(i for i in range(10) if picture(plain.payload(first_of_class)[0]).tobytes()
                      == picture(dataset.payload(i)[0]).tobytes())  # fmt: skip
        assert second >= 0


def test_the_forms_of_the_issue_are_there() -> None:
    assert {
        "digits", "mnist", "cifar10", "torchvision:NAME", "folder:DIR", "csv:FILE", "jsonl:FILE", "npz:FILE",
        "avalanche:NAME",
    } <= set(dataset_forms())  # fmt: skip


def test_specs_that_are_none() -> None:
    with pytest.raises(UserError, match="unknown data set 'imagenet'; known are avalanche:NAME, cifar10, csv:FILE"):
        open_dataset("imagenet")
    with pytest.raises(UserError, match="not complete; write folder:DIR"):
        open_dataset("folder")
    with pytest.raises(UserError, match="'digits' takes nothing after its name"):
        open_dataset("digits:8x8")


def test_the_default_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PALIMPSEST_DATA", raising=False)
    assert default_data_root() == Path("data")
    monkeypatch.setenv("PALIMPSEST_DATA", "/elsewhere")
    assert DatasetOptions().data_root == Path("/elsewhere")
