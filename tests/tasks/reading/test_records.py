"""Rows of every kind of file; hostile lines are passed over and named, and nothing else is lost."""

import gzip
import json

import pytest

from optiml_jax.common.errors import DataError
from tasks.example import Skipped
from tasks.reading import records
from tasks.reading.records import Row

VALUES = [{"text": "one", "label": 1}, {"text": "två", "label": None}, {"text": 'the "third"', "label": 3}]


def write(path, values=VALUES):
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def values(paths):
    return [row.values if isinstance(row, Row) else row for row in records.read(paths)]


def test_every_kind_of_file_holds_the_same_rows(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = arrow.Table.from_pylist(VALUES)
    parquet.write_table(table, tmp_path / "a.parquet")
    with arrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, arrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    lines = write(tmp_path / "a.jsonl")
    (tmp_path / "list.json").write_text(json.dumps(VALUES, indent=1))
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(lines.read_bytes())
    (tmp_path / "windows.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.read_bytes().replace(b"\n", b"\r\n"))
    for name in ("a.parquet", "a.arrow", "a.jsonl", "list.json", "a.jsonl.gz", "windows.jsonl"):
        assert values([tmp_path / name]) == VALUES, name
    both = list(records.read([lines, tmp_path / "a.parquet"]))
    assert [row.number for row in both] == [1, 2, 3, 4, 5, 6] and both[4].where == f"{tmp_path}/a.parquet:2"


def test_what_datasets_saves_to_disk_is_read(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra [hub]")
    saved = datasets.Dataset.from_list(VALUES)
    datasets.DatasetDict({"train": saved, "test": saved.select([2, 0])}).save_to_disk(tmp_path / "both")
    splits = records.splits(tmp_path / "both")
    assert splits.keys() == {"train", "test"} and values(splits["train"]) == VALUES
    assert values(splits["test"]) == [VALUES[2], VALUES[0]]
    saved.save_to_disk(tmp_path / "one")
    assert values(records.splits(tmp_path / "one")["train"]) == VALUES


def test_what_tensorflow_datasets_prepared_is_read(tmp_path):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    texts = tfds.features.Sequence({"text": tfds.features.Text(), "start": tfds.features.Scalar(tf.int32)})
    label = tfds.features.ClassLabel(names=["no", "yes"])
    features = tfds.features.FeaturesDict({"question": tfds.features.Text(), "label": label, "answers": texts})
    version = tmp_path / "1.0.2"
    version.mkdir()
    features.save_config(str(version))
    with tf.io.TFRecordWriter(str(version / "own-train.tfrecord-00000-of-00001")) as file:
        for i in range(3):
            answers = [{"text": f"é{j}", "start": j} for j in range(i)]
            encoded = features.encode_example({"question": f"q{i}", "label": i % 2, "answers": answers})
            file.write(features.serialize_example(encoded))
    splits = values(records.splits(tmp_path)["train"])
    assert splits[0] == {"question": "q0", "label": 0, "answers": {"text": [], "start": []}}
    assert splits[2] == {"question": "q2", "label": 0, "answers": {"text": ["é0", "é1"], "start": [0, 1]}}
    (version / "own-train.tfrecord-00000-of-00001").write_bytes(b"broken" * 100)
    with pytest.raises(DataError, match="own-train"):
        values(records.splits(tmp_path)["train"])


def test_splits_are_files_their_parts_and_saved_folders(tmp_path):
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test.json", "notes.txt", ".hidden.jsonl"):
        write(tmp_path / name)
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    splits = {split: [path.name for path in paths] for split, paths in records.splits(tmp_path).items()}
    assert splits == {
        "train": ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"],
        "test": ["test.json"],
        "validation": ["data-00000-of-00001.arrow"],
    }


def test_hostile_lines_are_named_and_the_others_read(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_LINE", 5000)
    hostile = {
        b'{"text": "\xff\xfe"}': "not UTF-8",
        b'{"text": "half \\ud83d"}': "half a surrogate",
        b'{"text": ': "not JSON",
        b"[1, 2]": "list, not an object",
        b"3": "int, not an object",
        b'{"deep": ' + b"[" * 2000 + b"]" * 2000 + b"}": "nested",
        b'{"number": ' + b"9" * 4900 + b"}": "not JSON",
        b'{"long": "' + b"x" * 20_000 + b'"}': "a line of more than",
    }
    good = json.dumps(VALUES[0]).encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(part for line in hostile for part in (good, line)) + b"\n\n" + good)
    result = list(records.read([path]))
    assert sum(isinstance(row, Row) and row.values == VALUES[0] for row in result) == len(hostile) + 1
    bad = [row for row in result if isinstance(row, Skipped)]
    for place, (reason, skipped) in enumerate(zip(hostile.values(), bad, strict=True), start=1):
        assert reason in skipped.reason and skipped.where == f"{path}:{2 * place}", skipped


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl.gz", "list.json"])
def test_a_damaged_file_is_refused_by_name(tmp_path, name):
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(b'[{"text": "\x1f\x8b broken')
    with pytest.raises(DataError, match=name):
        list(records.read([tmp_path / name]))


def test_a_line_of_a_gigabyte_is_never_held_in_memory(tmp_path):
    """Fifty times the bound: a sparse file, read in the pieces of the bound."""
    import tracemalloc

    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "')
        file.seek(50 * records.MAX_LINE)
        file.write(b'"}\n' + json.dumps(VALUES[0]).encode() + b"\n")
    tracemalloc.start()
    assert [type(row) for row in records.read([path])] == [Skipped, Row]
    assert tracemalloc.get_traced_memory()[1] < 4 * records.MAX_LINE
    tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(VALUES),
        json.dumps({"data": VALUES}),
        json.dumps({"version": 1, "data": VALUES}, indent=2),
        json.dumps({"rows": VALUES}, indent=1) + "\n",
        json.dumps({f"id {i}": value for i, value in enumerate(VALUES)}, indent=2),
        "\n".join(json.dumps(value, indent=2) for value in VALUES),
        ",\n".join(json.dumps(value, indent=2) for value in VALUES),
        "\ufeff" + json.dumps(VALUES, indent=2),
        "\n\n" + json.dumps({"records": VALUES}),
    ],
)
def test_a_file_may_be_one_json_value_or_objects_over_several_lines(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert values([tmp_path / "a.json"]) == VALUES


def test_lines_stay_lines_where_the_first_are_damaged(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(value) for value in VALUES]
    for damaged in (['{"text": "cut'], ['{"text": "cut', '{"text"']):
        path.write_text("\n".join([*damaged, *lines]), encoding="utf-8")
        read = values([path])
        assert read[len(damaged) :] == VALUES and all("not JSON" in item.reason for item in read[: len(damaged)])
    path.write_text('{"data": [{"text": "one"}]}\n{"data": []}\n')  # two records with a field of this name
    assert values([path]) == [{"data": [{"text": "one"}]}, {"data": []}]
    path.write_text('{\n"text": "one",\n')
    with pytest.raises(DataError, match=r"a\.jsonl: not JSON"):
        values([path])
    path.write_text('[{"text": "\\ud83d"}, {"text": "one"}]')
    assert values([path]) == [Skipped(f"{path}:1", "text with half a surrogate pair"), {"text": "one"}]


def test_tables_are_rows_without_their_empty_cells(tmp_path):
    (tmp_path / "a.csv").write_text('\ufefftext,label \n"one, two",1\n"a\nb",\n"c",2,3\n', encoding="utf-8")
    (tmp_path / "a.tsv").write_text("text\tlabel\none, two\t1\n", encoding="utf-8")
    first, second, third = records.read([tmp_path / "a.csv"])
    assert first.values == {"text": "one, two", "label": "1"} and first.where == f"{tmp_path}/a.csv:2"
    assert second.values == {"text": "a\nb"} and third == Skipped(f"{tmp_path}/a.csv:5", "3 columns, not 2")
    assert values([tmp_path / "a.tsv"]) == [{"text": "one, two", "label": "1"}]
