import csv
import json
import os
import re
import time
import warnings

import pytest

from keras_efficient._errors import InputError
from keras_efficient.data import read_records

ROWS = [
    ("plain", "pos"),
    ('she said "no", twice', "neg"),
    ("two\nlines\tand a tab", "pos"),
    ("café \u2028 naïve", "mixed"),
]


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.ndjson", "B.CSV"])
def test_formats_agree(tmp_path, name):
    path = tmp_path / name
    with path.open("w", encoding="utf-8", newline="") as file:
        if "j" in name:
            file.writelines(json.dumps({"label": y, "text": t}) + "\n\n" for t, y in ROWS)
        else:
            tabs = {"delimiter": "\t", "quoting": csv.QUOTE_ALL}
            writer = csv.writer(file, **(tabs if name.endswith("tsv") else {}))
            writer.writerows([("id", "text", "label"), *((7, *row) for row in ROWS)])
    records = read_records(path)
    assert records.texts == tuple(text for text, _ in ROWS)
    assert records.label_names == ("mixed", "neg", "pos")
    assert records.labels.tolist() == [2, 1, 2, 0]
    assert records.source == str(path)


def test_a_text_in_tsv_that_begins_with_a_quote_leaves_the_rows_after_it_alone(tmp_path):
    texts = ['"Why?" she asked', "no", '"', 'an inch (1")', '"a masterpiece"', "end"]
    lines = "".join(f"{text}\t{number % 2}\n" for number, text in enumerate(texts))
    path = write(tmp_path, "a.tsv", "text\tlabel\n" + lines)
    assert read_records(path).texts == tuple(texts)
    # A name in quotes is a name with quotes, unless all are.
    some = write(tmp_path, "b.tsv", '"text"\tlabel\n' + lines)
    assert read_records(some, text_column='"text"').texts == tuple(texts)
    path = write(tmp_path, "c.tsv", '"text"\t"label"\r\n"a\t""b""\r\nc"\t1\r\nd\t0\r\n')
    assert read_records(path).texts == ('a\t"b"\r\nc', "d")


def test_a_tsv_that_looks_quoted_though_its_header_is_not(tmp_path):
    with pytest.warns(UserWarning, match=r"a\.tsv, line 3, with a text that looks quoted") as seen:
        lines = 'text\tlabel\n""\t1\n"said ""no"""\t0\n"said ""yes"""\t1\n'
        records = read_records(write(tmp_path, "a.tsv", lines))
    assert len(seen) == 1 and seen[0].filename == __file__
    assert records.texts == ('""', '"said ""no"""', '"said ""yes"""')
    with pytest.raises(InputError, match=r"2 fields.*3 in .*line 2.*names of the header in double"):
        read_records(write(tmp_path, "b.tsv", 'text\tlabel\n"a\tb"\t1\n'))
    with pytest.raises(InputError, match=r"2 fields.*1 in .*line 2"):
        read_records(write(tmp_path, "c.tsv", 'text\tlabel\n"a\nb"\t1\n'))


def test_columns_and_names_are_the_callers(tmp_path):
    path = write(tmp_path, "a.csv", "\ufeffreview,stars\r\nfine,1\r\n\r\npoor,0\r\n")
    kwargs = {"text_column": "review", "label_column": "stars"}
    assert read_records(path, **kwargs).labels.tolist() == [1, 0]
    # Validation data with some of the classes keep the training indices.
    records = read_records(path, **kwargs, label_names=(2, 1, 0))
    assert records.labels.tolist() == [1, 2] and records.label_names == ("2", "1", "0")
    unlabelled = read_records(path, text_column="review", label_column=None)
    assert unlabelled.labels is None and unlabelled.texts == ("fine", "poor")


def test_numbers_sort_as_numbers_and_bools_are_labels(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\na,10\nb,9\nc,-1\n")
    assert read_records(path).label_names == ("-1", "9", "10")
    lines = '{"text": "a", "label": 10}\n{"text": "b", "label": 9.0}\n'
    assert read_records(write(tmp_path, "a.jsonl", lines)).label_names == ("9", "10")
    lines = '{"text": "a", "label": true}\n{"text": "b", "label": false}\n'
    assert read_records(write(tmp_path, "b.jsonl", lines)).labels.tolist() == [1, 0]


def test_one_class_is_allowed_here(tmp_path):
    assert read_records(write(tmp_path, "a.csv", "text,label\na,x\n")).label_names == ("x",)


def test_long_documents_pass_and_the_global_limit_stays(tmp_path):
    before = csv.field_size_limit()
    long = "word " * 40_000
    assert read_records(write(tmp_path, "a.csv", f"text,label\n{long},1\n")).texts == (long,)
    assert csv.field_size_limit() == before


BAD = [
    ("a.csv", "", "at least one row.*a.csv, which is empty"),
    ("a.csv", " \n\n", "which is empty"),
    ("a.csv", "text,label\n", "at least one row.*without any"),
    ("a.jsonl", "\n", "which is empty"),
    ("a.doc", "hello", r"end in \.csv, \.tsv, \.jsonl, \.ndjson, \.parquet.*a\.doc"),
    ("a.txt", "hello", "one text per line, and neither labels nor columns"),
    ("a.csv", "texts,label\na,1\n", "column 'text'.*'texts', 'label'.*line 1.*mean 'texts'"),
    ("a.csv", "text,kind\na,1\n", "column 'label'.*'text', 'kind'.*Pass the name"),
    ("a.csv", "text,label,text\na,1,b\n", r"must differ.*\['text'\].*line 1"),
    ("a.csv", "text,label\na,1\nb\n", "must have 2 fields.*1 in .*line 3"),
    ("a.csv", "text,label\na,1\nb, c,1\n", "must have 2 fields.*3 in .*line 3"),
    ("a.csv", "text,label\na,1\n ,1\n", "empty text ' '.*line 3"),
    ("a.csv", "text,label\na,1\nb,\n", "needs a label.*line 3"),
    ("a.csv", 'text,label\n"two\nlines\n",1\n\nb,\n', "needs a label.*line 6"),
    ("a.csv", 'text,label\na,1\n"open,1\nb,2\n', "Quotes must be closed.*line 3"),
    ("a.csv", b"text,label\na,1\n\xff,2\n", "UTF-8 text.*byte 0xff.*line 3"),
    ("a.csv", b"\xef\xbb\xbftext,label\na,1\n\xff,2\n", "UTF-8 text.*byte 0xff.*line 3"),
    ("a.csv", b"text,label\na\0,1\n", "NUL byte in .*line 2"),
    ("a.csv", "text,label\na,1\n".encode("utf-16"), "NUL byte in .*line 1.*UTF-16"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "JSON object.*line 2"),
    ("a.jsonl", '{"text": "a", "label": 1}\n["b", 1]\n', "JSON object.*line 2.*Write"),
    ("a.jsonl", '{"txt": "a", "label": 1}', "column 'text'.*line 1.*mean 'txt'"),
    ("a.jsonl", '{"text": "a"}', "column 'label'.*'text'.*line 1"),
    ("a.jsonl", "{}", "column 'text'.*line 1"),
    ("a.jsonl", '{"text": "a", "label": "b\\u0000c"}', "label must not hold NUL.*line 1"),
    ("a.jsonl", '{"text": 5, "label": 1}', "must be a string.*type int.*line 1"),
    ("a.jsonl", '{"text": null, "label": 1}', "must be a string.*None.*line 1"),
    ("a.jsonl", '{"text": "", "label": 1}', "empty text.*line 1"),
    ("a.jsonl", '{"text": "a\\u0000", "label": 1}', "NUL characters.*line 1"),
    ("a.jsonl", '{"text": "a\\ud800", "label": 1}', "surrogate.*line 1"),
    ("a.jsonl", '{"text": "a", "label": null}', "needs a label.*line 1"),
    ("a.jsonl", '{"text": "a", "label": NaN}', "needs a label.*line 1"),
    ("a.jsonl", '{"text": "a", "label": [1]}', "string, a number or a bool.*line 1"),
    ("a.jsonl", '{"text": "a", "label": Infinity}', "must be finite.*inf.*line 1"),
    ("a.jsonl", '{"text": "a", "label": 1e400}', "1e400, which is too large.*"),
    ("a.jsonl", '{"text": "a", "label": 1, "score": -1e400}', "line 1.*-1e400, which is too"),
    ("a.jsonl", '{"text": "a", "label": 0.5}', "'0.5' .*line 1.*Is regression meant"),
    ("a.jsonl", '{"text": "a", "label": "\\ud83d"}', "label must be valid Unicode.*ud83d.*line 1"),
    ("a.jsonl", '{"text": "a", "label": 1, "text": "b"}', "line 1.*key 'text' more than once"),
    ("a.jsonl", '{"text": "a", "label": 1, "x": {"y": 1, "y": 2}}', "key 'y' more than once"),
    ("a.csv", "text,label\na,1\nb,nan\n", "needs a label.*'nan'.*line 3"),
    ("a.csv", "text,label\na,pos\nb,NaN\n", "needs a label.*'NaN'.*line 3"),
    ("a.csv", "text,label\na,1\nb,-inf\n", "must be finite.*'-inf'.*line 3"),
    ("a.csv", "text,label\na,1\nb,1e400\n", "must be finite.*'1e400'.*line 3"),
    ("a.csv", "text,label\na,1\nb,4.5\nc,3.5\n", "'4.5' .*line 3.*Is regression meant"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_files(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read_records(write(tmp_path, name, content))


def test_unseen_label_is_named_with_its_line(tmp_path):
    path = write(tmp_path, "a.csv", 'text,label\n"a\nb",0\nc,2\n')
    with pytest.raises(InputError, match=r"'0', '1'.*'2', unseen in training.*a.csv, line 4"):
        read_records(path, label_names=("0", "1"))


def test_missing_file_directory_and_equal_columns(tmp_path):
    with pytest.raises(InputError, match=r"must exist.*none\.csv"):
        read_records(tmp_path / "none.csv")
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(InputError, match=r"must be files.*directory"):
        read_records(tmp_path / "d.csv")
    with pytest.raises(InputError, match=r"must differ.*'text' more than once"):
        read_records(tmp_path / "a.csv", label_column="text")


def test_labels_that_look_like_numbers_are_classes_if_they_are_named(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\na,4.5\nb,nan\nc,inf\n")
    assert read_records(path, label_names=["4.5", "nan", "inf"]).labels.tolist() == [0, 1, 2]
    # Words are no numbers beside other words.
    path = write(tmp_path, "b.csv", "text,label\na,1.5\nb,inf\nc,north\n")
    assert read_records(path).label_names == ("1.5", "inf", "north")
    path = write(tmp_path, "c.csv", "text,label\na,1.0\nb,2\n")
    assert read_records(path).label_names == ("1.0", "2")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_pipes_and_devices_are_not_waited_for(tmp_path, suffix):
    pipe, zero, null = (tmp_path / f"{name}{suffix}" for name in ("pipe", "zero", "null"))
    os.mkfifo(pipe)
    zero.symlink_to("/dev/zero")
    null.symlink_to("/dev/null")
    for path in (pipe, zero, null):
        with pytest.raises(InputError, match=r"must be a regular file.*a pipe or a device"):
            read_records(path)
    link = tmp_path / f"link{suffix}"
    link.symlink_to(write(tmp_path, f"real{suffix}", ""))
    with pytest.raises(InputError, match=r"which is empty"):
        read_records(link)


def test_a_line_larger_than_the_memory(tmp_path, monkeypatch):
    path = write(tmp_path, "a.csv", "text,label\n")

    def too_large(self, mode):
        raise MemoryError

    monkeypatch.setattr("pathlib.Path.open", too_large)
    with pytest.raises(InputError, match=r"must fit into memory.*a\.csv of 11 bytes"):
        read_records(path)


def test_100_000_columns_take_less_than_a_minute(tmp_path):
    """They took time quadratic in their number, which was hours."""
    names = [f"column {number}" for number in range(100_000)]
    fields = ",".join("1" for _ in names)
    start = time.process_time()
    for twice in ([*names, "text", "text"], names + names):
        path = write(tmp_path, "a.csv", ",".join(twice) + "\n" + fields + "\n")
        with pytest.raises(InputError, match=r"must differ.*more than once") as error:
            read_records(path)
        assert len(str(error.value)) < 2_000
    with pytest.raises(InputError, match=r"There must be a column 'text'.*and 99,980 others"):
        read_records(write(tmp_path, "a.csv", ",".join(names) + "\n" + fields + "\n"))
    row = json.dumps(dict.fromkeys(names, 1) | {"text": "a", "label": 1})
    assert len(read_records(write(tmp_path, "a.jsonl", row + "\n"))) == 1
    with pytest.raises(InputError, match=r"There must be a column 'x'.*and 99,982 others"):
        read_records(tmp_path / "a.jsonl", text_column="x")
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    ("name", "content", "delimiter"),
    [
        ("a.csv", 'text;label\n"good; ""fine""";1\nbad, dull;0\n', ";"),
        ("a.csv", 'label\ttext\n1\t"good; ""fine"""\n0\tbad, dull\n', "\t"),
        ("a.tsv", 'text,label\n"good; ""fine""",1\n"bad, dull",0\n', ","),
        ("a.csv", 'text|label\n"good; ""fine"""|1\nbad, dull|0\n', "|"),
        ("a.csv", 'a,b;c;text;label\n1;2;"good; ""fine""";1\n1;2;bad, dull;0\n', ";"),
    ],
)
def test_the_delimiter_is_found_reported_and_overridable(name, content, delimiter, tmp_path):
    """Spreadsheets write semicolons where the comma is the decimal mark."""
    path = write(tmp_path, name, content)
    message = rf"delimiter of .*{name} is {re.escape(repr(delimiter))}, by its header, not"
    with pytest.warns(UserWarning, match=message) as seen:
        records = read_records(path)
    assert len(seen) == 1 and seen[0].filename == __file__
    assert records.texts == ('good; "fine"', "bad, dull")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_records(path, delimiter=delimiter).texts == records.texts
        with pytest.raises(InputError, match="There must be a column"):
            read_records(path, delimiter="~")


def test_a_header_without_the_columns_is_shown_by_its_own_delimiter(tmp_path):
    path = write(tmp_path, "a.csv", "review;label\ngood;1\n")
    with pytest.raises(InputError, match=r"column 'text'\. Received: 'review', 'label' .*line 1"):
        read_records(path)
    # A column that has a semicolon in its name is no sign of another delimiter.
    path = write(tmp_path, "b.csv", "te;xt,label\ngood,1\n")
    with pytest.raises(InputError, match="Did you mean 'te;xt'"):
        read_records(path)
    for delimiter in ("", ";;", '"', "\n"):
        with pytest.raises(InputError, match="must be one character"):
            read_records(path, delimiter=delimiter)
    with pytest.raises(InputError, match=r"is for \.csv and \.tsv files"):
        read_records(write(tmp_path, "a.jsonl", "{}"), delimiter=";")
