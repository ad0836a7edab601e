"""Inputs come in a fixed order, streamed, and nothing odd about them passes silently."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lowbit.batches import inputs_of, labels_of
from lowbit.data import Data, Preprocess, from_arrays, open_data
from lowbit.errors import DataError

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10"
needs_cifar = pytest.mark.skipif(not CIFAR.is_dir(), reason=f"needs the CIFAR-10 files in {CIFAR}")


def refusal(call: Callable[..., object], *args: object, **keywords: object) -> str:
    """The one line that the call is refused with."""
    with pytest.raises(DataError) as caught:
        call(*args, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


def everything(data: Data, size: int = 4) -> torch.Tensor:
    return torch.cat([inputs_of(batch)[0][0] for batch in data.batches(size)])


def pictures(count: int, height: int = 6, width: int = 5, seed: int = 0) -> np.ndarray:
    """Random RGB images as uint8 `[count, height, width, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(path: Path, images: np.ndarray | list[bytes | None], labels: list[int] | None = None) -> Path:
    rows = [image if image is None or isinstance(image, bytes) else encoded(image) for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = {"img": pa.array([row if row is None else {"bytes": row, "path": ""} for row in rows], kind)}
    if labels is not None:
        table["label"] = pa.array(labels, pa.int64())
    pq.write_table(pa.table(table), path, row_group_size=4)
    return path


def write_folder(folder: Path, classes: dict[str, np.ndarray]) -> Path:
    for name, images in classes.items():
        (folder / name).mkdir(parents=True)
        for index, image in enumerate(images):
            (folder / name / f"{index:03}.png").write_bytes(encoded(image))
    return folder


def as_batch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))


# What all sources have in common


def test_batches_are_float32_in_order_and_repeatable() -> None:
    inputs = np.arange(20, dtype=np.uint8).reshape(10, 2)
    data = from_arrays(inputs, np.arange(10))
    batches = data.batches(4)
    for _ in range(2):
        seen = [(inputs_of(batch)[0][0], labels_of(batch)) for batch in batches]
        assert [len(x) for x, _ in seen] == [4, 4, 2]
        assert torch.equal(torch.cat([x for x, _ in seen]), torch.from_numpy(inputs).float())
        assert torch.equal(torch.cat([y for _, y in seen if y is not None]), torch.arange(10))
    assert (len(data), data.input_shape, repr(data)) == (10, (2,), "Data('arrays', 10 x [2], labels)")


def test_data_without_labels_says_so() -> None:
    data = from_arrays(torch.zeros(3, 2))
    assert data.labels is None
    assert [labels for _, labels in data.batches(2)] == [None, None]


def test_changing_a_batch_in_place_leaves_the_data_alone() -> None:
    inputs = torch.ones(4, 2)
    data = from_arrays(inputs)
    for batch in data.batches(4):
        inputs_of(batch)[0][0].zero_()
    assert torch.equal(everything(data), torch.ones(4, 2))


def test_preprocess_scales_and_then_normalizes_each_channel() -> None:
    raw = pictures(3)
    preprocess = Preprocess(scale=255, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), layout="NHWC")
    expected = (as_batch(raw) / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(
        3, 1, 1
    )
    data = from_arrays(raw, preprocess=preprocess)
    assert data.input_shape == (3, 6, 5)
    torch.testing.assert_close(everything(data, 2), expected)
    one = from_arrays(raw, preprocess=Preprocess(mean=(4.0,), layout="NHWC"))
    assert torch.equal(everything(one), as_batch(raw) - 4)


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [(np.array([True, False]), torch.int64), (np.array([1, 2], np.uint8), torch.int64), (np.ones(2), torch.float32)],
)
def test_labels_are_classes_or_targets(labels: np.ndarray, dtype: torch.dtype) -> None:
    data = from_arrays(np.zeros((2, 3)), labels)
    assert data.labels is not None
    assert data.labels.dtype == dtype
    assert data.labels.tolist() == labels.tolist()


def test_take_draws_a_seeded_subset_in_order() -> None:
    data = from_arrays(np.arange(100.0).reshape(100, 1), np.arange(100))
    taken = data.take(20, seed=1)
    values = everything(taken).flatten().long()
    assert len(taken) == len(set(values.tolist())) == 20
    assert torch.equal(values, values.sort().values)
    assert taken.labels is not None
    assert torch.equal(taken.labels, values)
    assert torch.equal(everything(data.take(20, seed=1)), everything(taken))
    assert not torch.equal(everything(data.take(20, seed=2)), everything(taken))
    assert set(everything(taken.take(5, seed=0)).flatten().tolist()) <= set(values.tolist())
    assert len(data.take(1000, seed=0)) == 100


def test_hash_says_which_inputs_were_seen(tmp_path: Path) -> None:
    images = pictures(4)
    path = write_parquet(tmp_path / "a.parquet", images, [0, 1, 2, 3])
    data = open_data(path)
    assert len(data.hash) == 64
    write_parquet(tmp_path / "b.parquet", images, [0, 1, 2, 3])
    assert open_data(tmp_path / "b.parquet").hash == data.hash == data.take(9, seed=5).hash
    others = [
        data.take(2, seed=0),
        open_data(path, preprocess=Preprocess(scale=2)),
        open_data(write_parquet(tmp_path / "c.parquet", images, [0, 1, 2, 2])),
        open_data(write_parquet(tmp_path / "d.parquet", images[::-1], [0, 1, 2, 3])),
    ]
    assert len({data.hash, *(other.hash for other in others)}) == 5
    same = [open_data(path, preprocess=Preprocess(scale=255)), open_data(path, preprocess=Preprocess(scale=255.0))]
    assert same[0].hash == same[1].hash


def test_data_can_be_pickled_for_worker_processes(tmp_path: Path) -> None:
    for data in (from_arrays(np.ones((2, 3))), open_data(write_parquet(tmp_path / "a.parquet", pictures(3)))):
        copy = pickle.loads(pickle.dumps(data))  # noqa: S301  written on the same line
        assert torch.equal(everything(copy), everything(data))
        assert copy.hash == data.hash


# Sources


def test_npz_by_usual_and_by_given_names(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(5, 3)), np.arange(5)
    np.savez(tmp_path / "data.npz", x=x, y=y, other=x + 1)
    data = open_data("data.npz", folder=tmp_path)
    assert data.name == "data.npz"
    assert data.labels is not None
    assert torch.equal(everything(data), torch.from_numpy(x).float())
    other = open_data(tmp_path / "data.npz", inputs="other", labels="x", limit=2)
    assert len(other) == 2
    assert other.labels is not None
    assert other.labels.shape == (2, 3)


def test_parquet_images_stream_from_several_files(tmp_path: Path) -> None:
    images = pictures(16)
    write_parquet(tmp_path / "train-0.parquet", images[:7], list(range(7)))
    write_parquet(tmp_path / "train-1.parquet", images[7:], list(range(7, 16)))
    data = open_data("train-*.parquet", folder=tmp_path)
    assert data.input_shape == (3, 6, 5)
    assert data.labels is not None
    assert data.labels.tolist() == list(range(16))
    assert torch.equal(everything(data, 5), as_batch(images))
    for limit in (1, 3, 11):
        taken = data.take(limit, seed=limit)
        assert torch.equal(everything(taken), as_batch(images[taken.positions]))


def test_parquet_lists_of_numbers_are_inputs_too(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    table = {
        "text": ["a"] * 300,
        "features": pa.array(list(values)),
        "fixed": pa.FixedSizeListArray.from_arrays(pa.array(values[::-1].ravel()), 4),
        "target": np.ones(300),
    }
    pq.write_table(pa.table(table), tmp_path / "data.parquet")
    data = open_data(tmp_path / "data.parquet")
    assert data.labels is None
    assert torch.equal(everything(data, 128), torch.from_numpy(values))
    fixed = open_data(tmp_path / "data.parquet", inputs="fixed", labels="target")
    assert fixed.labels is not None
    assert fixed.labels.dtype == torch.float32
    assert torch.equal(everything(fixed, 128), torch.from_numpy(values[::-1].copy()))


def tabular(count: int = 600, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns of all kinds of numbers, with a label among them."""
    generator = np.random.default_rng(seed)
    return {
        "b": generator.normal(size=count),
        "a": generator.integers(-1000, 1000, count),
        "label": generator.integers(0, 3, count),
        "yes": generator.random(count) < 0.5,
        "small": generator.normal(size=count).astype(np.float32),
    }


def as_rows(table: dict[str, np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack([table[key].astype(np.float32) for key in ("b", "a", "yes", "small")], axis=1))


def write_table(path: Path, table: dict[str, np.ndarray], group: int = 70, **others: object) -> Path:
    pq.write_table(pa.table({**table, **others}), path, row_group_size=group)
    return path


def test_parquet_tables_give_one_input_a_column(tmp_path: Path) -> None:
    """In the order of the first file, over row groups and files, whatever stands between the columns."""
    table = tabular()
    write_table(tmp_path / "t-0.parquet", {key: values[:290] for key, values in table.items()}, text=["x"] * 290)
    back = {key: values[290:] for key, values in reversed(table.items())}
    write_table(tmp_path / "t-1.parquet", back, group=1000)
    data = open_data("t-*.parquet", folder=tmp_path)
    assert (len(data), data.input_shape) == (600, (4,))
    assert data.labels is not None
    assert data.labels.tolist() == table["label"].tolist()
    assert torch.equal(everything(data, 128), as_rows(table))
    for limit in (1, 7, 400):
        taken = data.take(limit, seed=limit)
        assert torch.equal(everything(taken), as_rows(table)[torch.from_numpy(taken.positions)])
    scaled = open_data("t-*.parquet", folder=tmp_path, preprocess=Preprocess(mean=(1, 2, 3, 4), std=(5, 6, 7, 8)))
    expected = (as_rows(table) - torch.tensor([1.0, 2, 3, 4])) / torch.tensor([5.0, 6, 7, 8])
    torch.testing.assert_close(everything(scaled), expected)


def test_labels_of_a_parquet_table_are_no_inputs(tmp_path: Path) -> None:
    """By the usual names, and by a given one; an index that pandas wrote is no input either."""
    x = np.arange(3.0)
    for name in ("label", "labels", "y", "target"):
        data = open_data(write_table(tmp_path / "a.parquet", {"x": x, name: np.array([2, 0, 1])}))
        assert data.labels is not None
        assert (data.input_shape, data.labels.tolist()) == ((1,), [2, 0, 1])
    path = write_table(tmp_path / "a.parquet", {"x": x, "kind": np.array([2, 0, 1]), "__index_level_0__": x})
    data = open_data(path, labels="kind")
    assert data.labels is not None
    assert (data.input_shape, data.labels.tolist()) == ((1,), [2, 0, 1])
    unlabeled = open_data(path)
    assert (unlabeled.input_shape, unlabeled.labels) == ((2,), None)
    decimals = pa.array([1, 2, 3]).cast(pa.decimal128(21, 2))
    write_table(path, {}, price=decimals)
    assert everything(open_data(path)).tolist() == [[1], [2], [3]]


def test_lists_win_over_columns_of_numbers(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", {"age": np.ones(2)}, features=[[1.0, 2.0], [3.0, 4.0]])
    assert everything(open_data(path)).tolist() == [[1, 2], [3, 4]]


def test_the_hash_of_a_parquet_table_is_of_its_contents(tmp_path: Path) -> None:
    data = open_data(write_table(tmp_path / "a.parquet", tabular()))
    assert data.hash == open_data(write_table(tmp_path / "b.parquet", tabular())).hash
    others = [
        open_data(write_table(tmp_path / "c.parquet", tabular(seed=1))),
        open_data(tmp_path / "a.parquet", labels="a"),
        data.take(30, seed=0),
    ]
    assert len({data.hash, *(other.hash for other in others)}) == 4


def test_hashes_of_parquet_columns_are_those_of_before(tmp_path: Path) -> None:
    """A recorded hash says which inputs a run saw, so it must not change with lowbit: this is the form it has."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]}), path)
    described = [f"x {hashlib.sha256(path.read_bytes()).hexdigest()}", 1.0, [], [], "NCHW", None]
    labels = hashlib.sha256(b"<i8 (2,)" + np.array([0, 1]).tobytes()).hexdigest()
    parts = json.dumps(described).encode(), np.arange(2).tobytes(), labels.encode()
    assert open_data(path).hash == hashlib.sha256(b"".join(parts)).hexdigest()


def test_image_folder_classes_are_the_sorted_sub_folders(tmp_path: Path) -> None:
    images = pictures(5)
    folder = write_folder(tmp_path / "images", {"dog": images[:2], "cat": images[2:]})
    (folder / ".cache").mkdir()
    (folder / "cat" / "notes.txt").write_text("no image")
    data = open_data(folder)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(everything(data, 2), as_batch(images[[2, 3, 4, 0, 1]]))
    flat = open_data("images/dog", folder=tmp_path)
    assert flat.labels is None
    assert torch.equal(everything(flat), as_batch(images[:2]))


def test_images_of_any_kind_become_rgb_of_one_size(tmp_path: Path) -> None:
    image = pictures(1, 8, 8)[0]
    (tmp_path / "a.bmp").write_bytes(encoded(image, "BMP"))
    (tmp_path / "b.JPG").write_bytes(encoded(image, "JPEG"))
    (tmp_path / "c.png").write_bytes(encoded(image[:4, :, 0]))
    data = open_data(tmp_path, preprocess=Preprocess(size=(5, 6)))
    batch = everything(data)
    assert batch.shape == (3, 3, 5, 6)
    resized = np.asarray(Image.fromarray(image).resize((6, 5), Image.Resampling.BILINEAR))
    assert torch.equal(batch[0], as_batch(resized[None])[0])


def test_functions_return_inputs_with_or_without_labels(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch, numpy as np\n"
        "def both(): return torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True), np.arange(3)\n"
        "def alone(): return np.ones((3, 2))\n"
        "def without(): return np.ones((3, 2)), None\n"
    )
    both = open_data("mine.py:both", folder=tmp_path)
    assert both.labels is not None
    assert torch.equal(everything(both), torch.ones(3, 2))
    assert open_data("mine.py:alone", folder=tmp_path).labels is None
    alone, without = (open_data(f"mine.py:{name}", folder=tmp_path) for name in ("alone", "without"))
    assert alone.hash == without.hash != both.hash


def test_digits_come_with_the_package() -> None:
    train, test = open_data("lowbit.data:digits_train"), open_data("lowbit.data:digits_test")
    assert (len(train), len(test)) == (1197, 600)
    assert train.input_shape == test.input_shape == (1, 8, 8)
    inputs = everything(test, 600)
    assert (float(inputs.min()), float(inputs.max())) == (0, 1)
    assert test.labels is not None
    counts = test.labels.bincount()
    assert counts.min() >= 58
    assert counts.max() <= 62
    rows = {row.numpy().tobytes() for row in everything(train, 600)}
    assert sum(row.numpy().tobytes() in rows for row in inputs) == 0
    assert open_data("lowbit.data:digits_test").hash == test.hash


# What is refused


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("missing.npz", "cannot read '{}/missing.npz': No such file or directory; check the path"),
        ("missing.parquet", "cannot read '{}/missing.parquet': No such file or directory; check the path"),
        ("train-*.parquet", "no file in '{}' matches 'train-*.parquet'; check the pattern"),
        ("missing", "'{}/missing' does not exist, expected an .npz or .parquet file"),
        ("notes.txt", "'{}/notes.txt' is another kind of file, expected an .npz or .parquet file"),
        ("empty", "no .png, .jpg, .jpeg, .bmp files in '{}/empty'; for Parquet write 'empty/*.parquet'"),
        ("no.such:function", "No module named 'no'"),
    ],
)
def test_missing_sources_are_refused(tmp_path: Path, source: str, expected: str) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty" / "class").mkdir(parents=True)
    assert expected.format(tmp_path) in refusal(open_data, source, folder=tmp_path)


def test_empty_sources_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 3)), y=np.zeros(0))
    write_parquet(tmp_path / "none.parquet", [], [])
    for name in ("none.npz", "none.parquet"):
        assert f"data '{name}' is empty" in refusal(open_data, name, folder=tmp_path)


def test_arrays_that_are_no_inputs_are_refused() -> None:
    assert "inputs are <U1, expected real numbers" in refusal(from_arrays, np.array([["a"]]))
    assert "inputs have shape [3], expected [samples, ...]" in refusal(from_arrays, np.zeros(3))
    nhwc = Preprocess(layout="NHWC")
    assert "layout NHWC needs 4 axes" in refusal(from_arrays, np.zeros((3, 2)), preprocess=nhwc)
    size = Preprocess(size=(2, 2))
    assert "inputs [1, 4, 4] are not [2, 2], and only image files are resized; omit `size`" in refusal(
        from_arrays, np.zeros((3, 1, 4, 4)), preprocess=size
    )
    assert from_arrays(np.zeros((3, 1, 2, 2)), preprocess=size).input_shape == (1, 2, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_numbers_that_are_none_are_located(tmp_path: Path, bad: float) -> None:
    x = np.zeros((1000, 3))
    x[700, 1] = bad
    assert refusal(from_arrays, x, name="mine") == (
        "data 'mine', sample 700 holds NaN or infinity, expected finite numbers; remove it"
    )
    assert "label 700 holds NaN" in refusal(from_arrays, np.zeros((1000, 1)), x[:, 1])
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"x": pa.array(list(x))}), path)
    data = open_data(path)
    assert f"'{path}' row 700 holds NaN" in refusal(everything, data, 64)


def test_labels_that_do_not_fit_are_refused() -> None:
    inputs = np.zeros((3, 2))
    assert "4 labels for 3 inputs" in refusal(from_arrays, inputs, np.zeros(4))
    assert "one labels for 3 inputs" in refusal(from_arrays, inputs, np.array(1))
    assert refusal(from_arrays, inputs, np.array(["a"] * 3)) == (
        "data 'arrays': labels are <U1, expected integers or floats; number the classes from 0, for example by "
        "numpy.unique(labels, return_inverse=True)[1]"
    )
    assert "labels are complex128, expected integers or floats; convert them" in refusal(
        from_arrays, inputs, np.ones(3, np.complex128)
    )


@pytest.mark.parametrize("labels", [["a", "b"], pa.array(["a", "b"]).dictionary_encode()])
def test_string_labels_in_parquet_files_say_what_to_do(tmp_path: Path, labels: object) -> None:
    path = tmp_path / "a.parquet"
    for inputs in ([[1.0], [2.0]], [1.0, 2.0]):
        pq.write_table(pa.table({"x": inputs, "label": labels}), path)
        message = refusal(open_data, path)
        assert "column 'label' is " in message
        assert message.endswith(
            "number the classes from 0, for example by numpy.unique(labels, return_inverse=True)[1]"
        )


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"scale": 0}, "preprocess scale is 0, expected a positive number; use 255 for 8-bit images"),
        ({"mean": (float("nan"),)}, "preprocess mean is [nan], expected finite numbers; correct it"),
        ({"std": (1.0, 0.0)}, "preprocess std is [1.0, 0.0], expected positive numbers; correct it"),
        ({"size": (0, 3)}, "preprocess size is [0, 3], expected [height, width]; correct it"),
        ({"layout": "CHW"}, "preprocess layout is 'CHW', expected NCHW or NHWC; correct it"),
    ],
)
def test_preprocessing_that_makes_no_sense_is_refused(keywords: dict[str, object], expected: str) -> None:
    assert refusal(Preprocess, **keywords) == expected


def test_preprocessing_that_does_not_fit_the_channels_is_refused() -> None:
    inputs = np.zeros((2, 3, 4, 4))
    message = "has {} values, inputs [3, 4, 4] have 3 channels; give one value, or one a channel"
    assert message.format(2) in refusal(from_arrays, inputs, preprocess=Preprocess(mean=(0.1, 0.2)))
    assert message.format(4) in refusal(from_arrays, inputs, preprocess=Preprocess(std=(1.0,) * 4))


def test_limits_and_batch_sizes_below_one_are_refused() -> None:
    assert "limit is 0, expected at least 1" in refusal(open_data, "lowbit.data:digits_test", limit=0)
    assert "batch size is 0, expected at least 1" in refusal(from_arrays(np.zeros((2, 2))).batches, 0)


def test_unknown_arrays_and_columns_are_listed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", samples=np.zeros((2, 2)), digit=np.zeros(2))
    message = refusal(open_data, tmp_path / "a.npz")
    assert "none of inputs, x, X, data, images among arrays samples, digit; choose one with `inputs:`" in message
    message = refusal(open_data, tmp_path / "a.npz", inputs="samples", labels="class")
    assert "no array 'class'; choose from samples, digit" in message
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": ["b"], "words": [["c"]]}), path)
    message = refusal(open_data, path)
    assert "no image, list of numbers or number among columns text (string), label (string), words (list)" in message
    assert "texts in 'text' need tokenizer: hf:<folder or name> in a YAML file of data" in message
    assert "has no column 'x'; choose from text, label, words" in refusal(open_data, path, inputs="x")
    assert "column 'text' is string, expected image or list of numbers" in refusal(open_data, path, inputs="text")
    write_parquet(path, pictures(2), [0, 1])
    assert "column 'img' is image, expected number" in refusal(open_data, path, labels="img")
    for source in (tmp_path, "lowbit.data:digits_test"):
        assert "leave them out here" in refusal(open_data, source, labels="y")


def test_parquet_files_that_differ_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", pictures(2), [0, 1])
    write_parquet(tmp_path / "b.parquet", pictures(2))
    pattern = str(tmp_path / "*.parquet")
    assert "b.parquet' has no column 'label'; choose from img" in refusal(open_data, pattern)
    pq.write_table(pa.table({"img": [[1.0]], "label": [0]}), tmp_path / "b.parquet")
    assert "b.parquet' column 'img' is list of numbers, expected image" in refusal(open_data, pattern)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    parquet = write_parquet(tmp_path / "a.parquet", pictures(64, 16, 16), [0] * 64)
    np.savez(tmp_path / "a.npz", x=np.zeros((20, 20)))
    for path in (parquet, tmp_path / "a.npz"):
        contents = path.read_bytes()
        path.write_bytes(contents[: len(contents) // 2])
        assert f"'{path}'" in refusal(open_data, path)
    write_parquet(parquet, pictures(64, 16, 16))
    contents = parquet.read_bytes()
    middle = len(contents) // 2
    parquet.write_bytes(contents[:middle] + bytes(5_000) + contents[middle + 5_000 :])
    data = open_data(parquet)
    assert f"'{parquet}' row" in refusal(everything, data)


def test_damaged_images_are_located(tmp_path: Path) -> None:
    images: list[bytes | None] = [encoded(image) for image in pictures(9)]
    for bad, expected in (
        (encoded(pictures(1, 40, 40)[0])[:-100], "the image is damaged (OSError: "),
        (b"nonsense", "no image in a known format, expected PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image in a known format, expected PNG, JPEG"),
        (None, "column 'img' is empty; remove the row or fill it"),
        (encoded(pictures(1, 7, 7)[0]), "shape [3, 7, 7], expected [3, 6, 5] like the first; set `size:` to resize"),
    ):
        path = write_parquet(tmp_path / "a.parquet", [*images[:6], bad, *images[7:]])
        data = open_data(path)
        message = refusal(everything, data)
        assert message.startswith(f"'{path}' row 6: ")
        assert expected in message
    (tmp_path / "broken.png").write_bytes(b"nonsense")
    assert f"'{tmp_path / 'broken.png'}': no image" in refusal(open_data, tmp_path)


def test_rows_without_a_value_are_located(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [[1.0], [2.0], None], "y": [1, None, 3]}), path)
    assert f"'{path}' row 1: column 'y' is empty" in refusal(open_data, path, labels="y")
    data = open_data(path)
    assert f"'{path}' row 2: column 'x' is empty" in refusal(everything, data)
    pq.write_table(pa.table({"x": [[1.0], [2.0, 3.0]]}), path)
    data = open_data(path)
    assert f"'{path}' row 1: shape [2], expected [1] like the first; pad or cut" in refusal(everything, data)


@pytest.mark.parametrize(
    ("column", "bad", "told"),
    [
        ("a", None, "column 'a' is empty; remove the row or fill it"),
        ("yes", None, "column 'yes' is empty; remove the row or fill it"),
        ("b", None, "column 'b' is empty; remove the row or fill it"),
        ("label", None, "column 'label' is empty; remove the row or fill it"),
        ("b", np.nan, "column 'b' holds NaN or infinity, expected a finite number; remove the row or fill it"),
        ("b", -np.inf, "column 'b' holds NaN or infinity, expected a finite number; remove the row or fill it"),
        ("b", 1e300, "column 'b' holds NaN or infinity, expected a finite number; remove the row or fill it"),
    ],
)
def test_values_of_a_parquet_table_that_are_no_numbers_are_located(
    tmp_path: Path, column: str, bad: float | None, told: str
) -> None:
    values = {key: part.tolist() for key, part in tabular().items()}
    values[column][333] = bad
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(values), path, row_group_size=100)
    assert refusal(lambda: everything(open_data(path))) == f"'{path}' row 333: {told}"
    if column != "label":  # rows that are not taken do not matter
        data = open_data(path)
        rest = [x for x in data.take(599, seed=0).positions.tolist() if x != 333]
        few = Data(data.name, data.source, np.array(rest), None, data.input_shape, data.preprocess)
        assert len(everything(few)) == len(rest) > 590


def test_parquet_tables_that_differ_are_refused(tmp_path: Path) -> None:
    first = write_table(tmp_path / "a.parquet", {"x": np.ones(2), "z": np.ones(2)})
    pattern, second = str(tmp_path / "*.parquet"), tmp_path / "b.parquet"
    alike = f"expected those of '{first}'; write them alike"
    write_table(second, {"x": np.ones(2)})
    assert refusal(open_data, pattern) == f"'{second}' has no column of numbers 'z', {alike}"
    write_table(second, {"x": np.ones(2)}, z=["a", "b"])
    assert refusal(open_data, pattern) == f"'{second}' has no column of numbers 'z', {alike}"
    write_table(second, {"x": np.ones(2), "z": np.ones(2), "w": np.ones(2)})
    assert refusal(open_data, pattern) == f"'{second}' has another column 'w', {alike}"
    write_table(first, {"x": np.ones(2), "label": np.ones(2)})
    write_table(second, {"x": np.ones(2)})
    assert refusal(open_data, pattern) == f"'{second}' has no column 'label'; choose from x"
    second.unlink()
    double = pa.table([pa.array([1.0]), pa.array([2.0]), pa.array([3.0])], names=["x", "x", "z"])
    pq.write_table(double, first)
    assert refusal(open_data, first) == f"'{first}' has several columns 'x'; rename all but one"


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(6), [0] * 6)
    data = open_data(path)
    write_parquet(path, pictures(5))
    assert "became shorter while it was read" in refusal(everything, data)


def test_folders_that_mean_two_things_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", {"a": pictures(1), "b": pictures(0)})
    assert "class folder 'b' has no images; fill or remove it" in refusal(open_data, folder)
    (folder / "top.png").write_bytes(encoded(pictures(1)[0]))
    assert "both in" in refusal(open_data, folder)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return [1, 2]", "the function returned list, expected inputs or (inputs, labels) as tensors"),
        ("return np.ones((2, 2)), [1, 2]", "the function returned ndarray, list, expected inputs or"),
        ("raise RuntimeError('two\\nlines')", "the function raised RuntimeError: two lines; correct it"),
    ],
)
def test_functions_that_return_something_else_are_refused(tmp_path: Path, body: str, expected: str) -> None:
    (tmp_path / "mine.py").write_text(f"import numpy as np\ndef load():\n    {body}\n")
    message = refusal(open_data, "mine.py:load", folder=tmp_path)
    assert message.startswith("data 'mine.py:load': ")
    assert expected in message


# Real data


@needs_cifar
def test_cifar_is_read_as_its_readme_says() -> None:
    data = open_data("test-*.parquet", folder=CIFAR, limit=200, seed=1)
    assert (len(data), data.input_shape) == (200, (3, 32, 32))
    assert data.labels is not None
    inputs = everything(data, 64)
    row = int(data.positions[0])
    image = pq.read_table(CIFAR / "test-00000-of-00001.parquet").column("img")[row]["bytes"].as_py()
    assert torch.equal(inputs[0], as_batch(np.asarray(Image.open(io.BytesIO(image)))[None])[0])
    assert (float(inputs.min()), float(inputs.max())) == (0, 255)


@needs_cifar
@pytest.mark.slow
def test_memory_stays_flat_over_fifty_thousand_images() -> None:
    process = psutil.Process()
    seen = start = peak = 0
    for inputs, _ in open_data("train-*.parquet", folder=CIFAR).batches(100):
        seen += len(inputs)
        peak = max(peak, process.memory_info().rss)
        start = peak if seen <= 1000 else start
    assert seen == 50_000
    assert peak - start < 100e6
