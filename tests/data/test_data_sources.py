"""Sources of records besides single text files: shards, Parquet, tables and rows in memory."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.data import Records, read_records, text

TEXTS = ("fine", "poor", "so, so", "fair")
LABELS = ("pos", "neg", "pos", "neg")
ROWS = [
    {"id": i, "text": t, "label": y} for i, (t, y) in enumerate(zip(TEXTS, LABELS, strict=True))
]


def check(records, source):
    assert records.texts == TEXTS and all(type(text) is str for text in records.texts)
    assert records.label_names == ("neg", "pos") and records.labels.tolist() == [1, 0, 1, 0]
    assert records.source == source


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(rows, delimiter=","):
    csv = "".join(f'{r["id"]}{delimiter}"{r["text"]}"{delimiter}{r["label"]}\n' for r in rows)
    return f"id{delimiter}text{delimiter}label\n" + csv


def parquet(path, rows, **options):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.Table.from_pylist(rows), path, **options
    )
    return path


def shards(folder, name, rows=ROWS, size=2):
    for number, start in enumerate(range(0, len(rows), size)):
        path = folder / name.replace("*", f"{number:02}")
        part = rows[start : start + size]
        if name.endswith(".parquet"):
            parquet(path, part, row_group_size=1)
            continue
        data = (table(part) if ".csv" in name else lines(part)).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder / name


@pytest.mark.parametrize(
    "name",
    ["train-*.jsonl", "train-*.jsonl.gz", "train-*.csv", "train-*.csv.gz", "train-*.parquet"],
)
def test_shards_are_read_in_the_order_of_their_names(tmp_path, name):
    pattern = shards(tmp_path, name)
    first, second = (tmp_path / name.replace("*", number) for number in ("00", "01"))
    source = f"{first} and 1 more"
    for given in (pattern, str(pattern), [first, str(second)], [str(pattern)]):
        check(read_records(given), source)
    assert read_records([second, first]).texts == TEXTS[2:] + TEXTS[:2]
    assert read_records(first).source == str(first)


def test_errors_in_shards_name_file_and_row(tmp_path):
    bad = [*ROWS[:3], {**ROWS[3], "text": " "}]
    with pytest.raises(InputError, match=r"empty text.*train-01\.jsonl\.gz, line 2"):
        read_records(shards(tmp_path, "train-*.jsonl.gz", bad))
    with pytest.raises(InputError, match=r"empty text.*train-01\.parquet, row 1 \(from 0\)"):
        read_records(shards(tmp_path, "train-*.parquet", bad))
    bad[3] = {**ROWS[3], "label": ""}
    with pytest.raises(InputError, match=r"needs a label.*train-01\.csv, line 3"):
        read_records(shards(tmp_path, "train-*.csv", bad))
    with pytest.raises(InputError, match=r"needs a label.*train-01\.parquet, row 1 \(from 0\)"):
        read_records(shards(tmp_path, "train-*.parquet", bad))


def test_mixed_shards_are_refused_before_a_row_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n")
    (tmp_path / "b.csv").write_text("text,label,stars\n")
    with pytest.raises(InputError, match=r"same columns.*'label' in .*a\.csv and .*'stars' in .*b"):
        read_records(tmp_path / "*.csv")
    (tmp_path / "c.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"one format\. Received: .*a\.csv and .*c\.jsonl"):
        read_records(tmp_path / "*")
    with pytest.raises(InputError, match=r"must match data files.*'.*\*\.tsv'.*none"):
        read_records(tmp_path / "*.tsv")
    with pytest.raises(InputError, match=r"named once.*more than once: '.*a\.csv'"):
        read_records([tmp_path / "a.csv", tmp_path / "a*.csv"])
    with pytest.raises(InputError, match=r"end in .*\.gz after that.*b\.parquet\.gz"):
        read_records(tmp_path / "b.parquet.gz")
    # Columns may have another order, and a file whose name looks like a pattern is one file.
    (tmp_path / "[1].csv").write_text("label,text\npos,fine\n")
    (tmp_path / "2.csv").write_text("text,label\npoor,neg\n")
    assert read_records(tmp_path / "[1].csv").texts == ("fine",)
    assert read_records([tmp_path / "[1].csv", tmp_path / "2.csv"]).texts == ("fine", "poor")


def test_broken_archives_and_parquet_files(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(ROWS * 99).encode())[:-20])
    with pytest.raises(InputError, match=r"must be complete.*a\.jsonl\.gz"):
        read_records(tmp_path / "a.jsonl.gz")
    (tmp_path / "b.jsonl.gz").write_text(lines(ROWS))
    with pytest.raises(InputError, match=r"must be readable.*b\.jsonl\.gz \(Not a gzipped file"):
        read_records(tmp_path / "b.jsonl.gz")
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"text,label\na,1\n\xff,2\n"))
    with pytest.raises(InputError, match=r"byte 0xff.*c\.csv\.gz, line 3"):
        read_records(tmp_path / "c.csv.gz")
    pytest.importorskip("pyarrow")
    (tmp_path / "d.parquet").write_text("no Parquet")
    with pytest.raises(InputError, match=r"readable by pyarrow.*d\.parquet"):
        read_records(tmp_path / "d.parquet")
    parquet(tmp_path / "e.parquet", ROWS)
    with pytest.raises(InputError, match=r"column 'body'.*'id', 'text', 'label' .*e\.parquet"):
        read_records(tmp_path / "e.parquet", text_column="body")
    parquet(tmp_path / "f.parquet", [{"text": None, "label": 1}])
    with pytest.raises(InputError, match=r"must be a string\. Received: None.*f\.parquet, row 0"):
        read_records(tmp_path / "f.parquet")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"read by pyarrow.*keras_efficient\[parquet\]"):
        read_records(tmp_path / "a.parquet")


def test_data_frames():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS, index=list("wxyz"))
    check(read_records(frame), "DataFrame")
    frame["label"] = frame["label"].astype("category")
    check(read_records(frame), "DataFrame")
    frame["stars"] = pandas.array([1, 2, None, 2], dtype="Int64")
    with pytest.raises(
        InputError, match=r"needs a label\. Received: None \(DataFrame\.iloc\[2\]\)"
    ):
        read_records(frame, label_column="stars")
    frame["body"] = [*TEXTS[:3], np.nan]
    with pytest.raises(InputError, match=r"must be a string.*DataFrame\.iloc\[3\]"):
        read_records(frame, text_column="body")
    with pytest.raises(InputError, match=r"column 'txt'.*\(DataFrame\)\. Did you mean 'text'"):
        read_records(frame, text_column="txt")
    with pytest.raises(InputError, match=r"\['text'\] more than once in DataFrame"):
        read_records(pandas.concat([frame, frame[["text"]]], axis=1))
    with pytest.raises(InputError, match=r"at least one row.*DataFrame without any"):
        read_records(frame[:0])


def test_hugging_face_datasets():
    datasets = pytest.importorskip("datasets")
    check(read_records(datasets.Dataset.from_list(ROWS)), "Dataset")
    check(read_records(datasets.Dataset.from_list(ROWS).with_format("numpy")), "Dataset")
    check(read_records(datasets.Dataset.from_list(ROWS).to_iterable_dataset()), "Dataset")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])}
    )
    rows = [{"text": "fine", "label": 0}, {"text": "poor", "label": 1}, {"text": "?", "label": -1}]
    named = datasets.Dataset.from_list(rows[:2], features)
    records = read_records(named)
    # The indices of the data set stay.
    assert records.label_names == ("pos", "neg") and records.labels.tolist() == [0, 1]
    assert read_records(named, label_names=["neg", "pos"]).labels.tolist() == [1, 0]
    with pytest.raises(InputError, match=r"needs a label\. Received: None \(Dataset\[2\]\)"):
        read_records(datasets.Dataset.from_list(rows, features))
    with pytest.raises(InputError, match=r"one dataset.*splits 'train'.*dataset\['train'\]"):
        read_records(datasets.DatasetDict(train=named))
    with pytest.raises(InputError, match=r"column 'body'.*\(Dataset\)"):
        read_records(named, text_column="body")


def test_rows_and_columns_in_memory():
    columns = {key: [row[key] for row in ROWS] for key in ROWS[0]}
    arrays = {key: np.array(values) for key, values in columns.items()}
    structured = np.array(
        [tuple(row.values()) for row in ROWS], [("id", int), ("text", "U9"), ("label", "U9")]
    )
    datasets = tf.data.Dataset.from_tensor_slices(columns)
    for source in (
        ROWS,
        iter(ROWS),
        (dict(r) for r in ROWS),
        columns,
        arrays,
        structured,
        datasets,
    ):
        check(read_records(source), "memory")
    numbers = read_records(
        {"text": TEXTS, "stars": np.float32([1, 0.5, 2, -1])},
        label_column="stars",
        encode=ke.tasks.get("regression").encode,
    )
    assert numbers.labels.tolist() == [1, 0.5, 2, -1] and numbers.source == "memory"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([{"text": "a", "label": 1}, {"text": "b"}], r"column 'label'.*'text' \(memory, item 1\)"),
        ([{"text": "a", "label": 1}, "b"], r"must be dicts.*'b' of type str \(memory, item 1\)"),
        ([("a", 1)], "must be dicts.*ke.data.Records.of"),
        ({"text": ["a"], "label": [1, 2]}, r"one value per row.*'text': 1, 'label': 2"),
        ({"text": ["a"]}, r"column 'label'.*'text' \(memory\)"),
        (iter([]), "at least one row.*memory without any"),
        ([], "at least one row"),
        (5, "must be files, a DataFrame.*5 of type int"),
        (tf.data.Dataset.from_tensors({"text": "a"}).repeat(), "must have an end"),
        (tf.data.Dataset.from_tensors({"text": b"\xff", "label": 1}), "must be a string.*xff"),
    ],
)
def test_bad_rows(source, message):
    with pytest.raises(InputError, match=message):
        read_records(source)


def test_a_delimiter_is_for_files():
    with pytest.raises(InputError, match=r"is for \.csv and \.tsv files.*';' for list"):
        read_records(ROWS, delimiter=";")


def test_arrays_and_generators_of_texts():
    check(Records.of(np.array(TEXTS), np.array(LABELS)), "memory")
    check(Records.of((text, label) for text, label in zip(TEXTS, LABELS, strict=True)), "memory")
    check(Records.of(tf.data.Dataset.from_tensor_slices((list(TEXTS), list(LABELS)))), "memory")
    several = Records.of(TEXTS[:2], np.array([[1, 0], [1, 1]]), ["x", "y"])
    assert several.labels.tolist() == [[1, 0], [1, 1]] and several.label_names == ("x", "y")
    assert Records.of(TEXTS[:2], np.eye(2, dtype=int)).label_names == ("0", "1")


def test_tasks_read_every_source(tmp_path):
    task = ke.tasks.get("regression")
    rows = [{"body": "fine", "stars": 2.5}, {"body": "poor", "stars": 1}]
    (tmp_path / "a.jsonl").write_text(lines(rows))
    for source in (rows, tmp_path / "*.jsonl", {"body": ["fine", "poor"], "stars": [2.5, 1]}):
        records = task.read(source, text_column="body", label_column="stars")
        assert records.texts == ("fine", "poor") and records.labels.tolist() == [2.5, 1]


def test_text_reads_every_source(tokenizer, tmp_path):
    rows = [{"text": "w1 w2", "label": "pos"}, {"text": "w3", "label": "neg"}]
    (tmp_path / "a.jsonl").write_text(lines(rows))
    renamed = [{"body": row["text"], "stars": row["label"]} for row in rows]
    pairs = [("w1 w2", "pos"), ("w3", "neg")]
    expected = next(iter(text(pairs, tokenizer, batch_size=2, shuffle=False)))
    for source, columns in (
        (tmp_path / "*.jsonl", {}),
        ([tmp_path / "a.jsonl"], {}),
        (rows, {}),
        (iter(rows), {}),
        (iter(pairs), {}),
        (iter(renamed), {"text_column": "body", "label_column": "stars"}),
        (
            {"body": ["w1 w2", "w3"], "stars": ["pos", "neg"]},
            {"text_column": "body", "label_column": "stars"},
        ),
    ):
        batches = text(source, tokenizer, batch_size=2, shuffle=False, **columns)
        tf.nest.map_structure(
            lambda a, b: np.testing.assert_array_equal(a, b), next(iter(batches)), expected
        )
    unlabelled = text(rows, tokenizer, batch_size=2, label_column=None)
    assert set(next(iter(unlabelled))) == set(tokenizer.inputs.values())
    with pytest.raises(InputError, match="`text_column` and `label_column` name columns"):
        text(pairs, tokenizer, batch_size=2, text_column="body")


def test_libraries_that_are_not_used_are_not_imported(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nfine,1\n")
    program = (
        "import sys; from keras_efficient.data._read_records import read_records\n"
        f"read_records({str(tmp_path / 'a.csv')!r})\n"
        "read_records([{'text': 'a', 'label': 1}])\n"
        "print({'pandas', 'pyarrow', 'datasets', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
