"""The user's own copies, in every layout that is accepted; and what is not accepted is told."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from relpos.tasks import data
from relpos.tasks.data import pickles
from tests.tasks.data import made
from tests.tasks.data.made import put

pytestmark = pytest.mark.usefixtures("own_cache")

# --- text -------------------------------------------------------------------------------------------------------------


def test_a_text_file_is_cut_by_position(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4
    for path in (put(tmp_path, {"a.bin": content}) / "a.bin", made.zipped(tmp_path / "a.zip", {"x": content})):
        read = data.load("text", path)
        assert b"".join(read.part(side).tobytes() for side in ("train", "validation", "test")) == content
        assert [len(read.part(side)) for side in read.split] == [922, 51, 51]
        assert read.card.counts["symbols"] == 256


def test_text8_is_found_in_its_folder_and_its_alphabet_is_checked(tmp_path: Path) -> None:
    put(tmp_path, {"text8": " abc xyz" * 20})
    with pytest.warns(UserWarning, match="160 bytes, text8 has 100,000,000"):
        assert len(data.load("text8", tmp_path).symbols) == 7
    put(tmp_path, {"text8": "a\nb"})
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"bytes b'\\n' besides"):
        data.load("text8", tmp_path)


def test_an_empty_file_and_a_wrong_path_are_told(tmp_path: Path) -> None:
    put(tmp_path, {"empty": b""})
    with pytest.raises(ValueError, match="is empty"):
        data.load("text", tmp_path / "empty")
    with pytest.raises(ValueError, match="does not exist; text is one file"):
        data.load("text", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="folder without a file enwik8"):
        data.load("enwik8", tmp_path)


@pytest.mark.parametrize("suffix", ["tokens", "raw"])
def test_wikitext_in_words(suffix: str, tmp_path: Path) -> None:
    files = {"train": " = Title = \n\n a b a\x0bc \n", "valid": "a d\n", "test": "b"}
    put(tmp_path, {f"wiki.{side}.{suffix}": text for side, text in files.items()})
    read = data.load("wikitext", tmp_path)
    assert read.vocabulary is not None
    words = [read.vocabulary[token] for token in read.part("train")]
    assert words == ["=", "Title", "=", "<eos>", "<eos>", "a", "b", "a", "c", "<eos>"]
    assert [read.vocabulary[token] for token in read.part("validation")] == ["a", "<unk>", "<eos>"]
    assert [read.vocabulary[token] for token in read.part("test")] == ["b", "<eos>"]
    assert read.tokens.dtype == np.uint16
    assert data.load("wikitext", tmp_path).vocabulary == read.vocabulary  # out of the cache


def test_a_copy_that_changed_is_read_again(tmp_path: Path) -> None:
    put(tmp_path, {f"wiki.{side}.tokens": "a a\n" for side in ("train", "valid", "test")})
    assert len(data.load("wikitext", tmp_path).tokens) == 9
    put(tmp_path, {"wiki.test.tokens": "a a a a\n"})
    with pytest.warns(UserWarning, match="again"):
        assert len(data.load("wikitext", tmp_path).tokens) == 11


def test_ptb_and_what_is_missing_of_it(tmp_path: Path) -> None:
    put(tmp_path, {"ptb.train.txt": " a <unk> N \n", "ptb.valid.txt": " a \n"})
    with pytest.raises(ValueError, match=r"has no ptb\.test\.txt"):
        data.load("ptb", tmp_path)
    put(tmp_path, {"ptb.test.txt": " N \n"})
    read = data.load("ptb", tmp_path)
    assert read.part("train").tolist() == [2, 1, 3, 0] and read.part("test").tolist() == [3, 0]


def test_imdb(tmp_path: Path) -> None:
    reviews = {
        f"aclImdb/{side}/{name}/{index}_{rating}.txt": f"{side} {name} {index}"
        for side in ("train", "test")
        for name, rating in (("pos", 9), ("neg", 2))
        for index in range(30)
    }
    put(tmp_path, {**reviews, "aclImdb/train/unsup/0_0.txt": "no label"})
    for path in (tmp_path, tmp_path / "aclImdb"):
        read = data.load("imdb", path)
        assert len(read.documents) == 120 and read.classes == ("neg", "pos")
        for side, name in (("train", "train"), ("validation", "train"), ("test", "test")):
            for row in read.split[side]:
                assert read.documents.text(row).startswith(f"{name} {read.classes[read.labels[row]]}")
        assert len(read.split["test"]) == 60 and 0 < len(read.split["validation"]) < 20
    with pytest.raises(ValueError, match=r"holds no \.txt files"):
        data.load("imdb", tmp_path / "aclImdb" / "train")


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("zipped", "dot"), [(False, False), (True, False), (False, True), (True, True)])
def test_idx_folders_of_every_spelling(zipped: bool, dot: bool, tmp_path: Path) -> None:
    put(tmp_path, made.mnist(20, 3, zipped, dot))
    read = data.load("fashion-mnist", tmp_path)
    assert read.card.counts == {"images": 23, "size": "3x2", "classes": 10, "train": 18, "validation": 2, "test": 3}
    assert read.classes[9] == "ankle boot" and read.pixels[19, 1, 1] == 19


def test_damaged_idx_files_are_told(tmp_path: Path) -> None:
    files = made.mnist(20, 3)
    put(tmp_path, {name: content for name, content in files.items() if "t10k" not in name})
    with pytest.raises(ValueError, match="missing IDX files: t10k-images, t10k-labels"):
        data.load("mnist", tmp_path)
    put(tmp_path, {**files, "train-labels-idx1-ubyte": files["train-labels-idx1-ubyte"][:-1]})
    with pytest.raises(ValueError, match=r"promises .* and holds 19"):
        data.load("mnist", tmp_path)
    put(tmp_path, {"train-labels-idx1-ubyte": files["t10k-labels-idx1-ubyte"]})
    with pytest.raises(ValueError, match="do not fit"):
        data.load("mnist", tmp_path)
    for start in (struct.pack(">II", 2052, 1), b"", b"\0\0\x08"):
        put(tmp_path, {"train-labels-idx1-ubyte": start})
        with pytest.raises(ValueError, match="magic 2051 or 2049"):
            data.load("mnist", tmp_path)
    put(tmp_path, {"train-labels-idx1-ubyte": made.idx(np.arange(9), zipped=True)[:-9]})
    with pytest.raises(ValueError, match=r"damaged \.gz"):
        data.load("mnist", tmp_path)


def cifar(folder: Path, protocol: int = 2) -> Path:
    """CIFAR-10 with three pictures a batch, whose planes are 1, 2, 3."""
    names = [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]
    pixels = np.repeat(np.array([1, 2, 3], dtype=np.uint8), 1024)
    files: dict[str, bytes | str] = {
        name: pickle.dumps({"data": np.stack([pixels] * 3), "labels": [0, 1, 2]}, protocol) for name in names
    }
    files["batches.meta"] = pickle.dumps({"label_names": [f"class{index}" for index in range(10)]}, protocol)
    return put(folder, files)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_cifar10(protocol: int, tmp_path: Path) -> None:
    cifar(tmp_path / "cifar-10-batches-py", protocol)
    for path in (tmp_path, tmp_path / "cifar-10-batches-py"):
        read = data.load("cifar10", path)
        assert read.pixels.shape == (18, 32, 32, 3) and read.pixels[17, 31, 0].tolist() == [1, 2, 3]
        assert [len(rows) for rows in read.split.values()] == [14, 1, 3] and read.classes[2] == "class2"


def test_cifar10_as_python_2_wrote_it(tmp_path: Path) -> None:
    """Byte strings as `str`, numpy.core, arrays by _reconstruct and latin-1: what the published files hold."""
    folder = cifar(tmp_path)
    old = (
        b"\x80\x02}q\x01(U\x06labels]q\x02(K\x03K\x04eU\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"K\x00\x85U\x01b\x87R(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89T\x00\x18\x00\x00" + b"\xfe" * 6144 + b"tbu."
    )
    (folder / "test_batch").write_bytes(old)
    read = data.load("cifar10", folder)
    assert read.labels[-2:].tolist() == [3, 4] and (read.pixels[-2:] == 254).all()


def test_cifar100(tmp_path: Path) -> None:
    batch = {"data": np.zeros((20, 3072), np.uint8), "fine_labels": list(range(20)), "coarse_labels": [0] * 20}
    meta = {"fine_label_names": [f"f{index}" for index in range(100)]}
    files = {"train": batch, "test": batch, "meta": meta}
    put(tmp_path / "cifar-100-python", {name: pickle.dumps(value, 2) for name, value in files.items()})
    read = data.load("cifar100", tmp_path)
    assert len(read.classes) == 100 and [len(rows) for rows in read.split.values()] == [18, 2, 20]


class Evil:
    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.parts = (call, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.parts


def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    attacks = [
        Evil(os.system, f"touch {mark}"),
        Evil(eval, f"open({str(mark)!r}, 'w')"),
        Evil(getattr, {}, "keys"),
        Evil(__import__, "os"),
        Evil(np.load, str(mark)),
        Evil(np.memmap, str(mark), "uint8", "w+", 0, (1,)),
    ]
    for attack in attacks:
        for protocol in (0, 2, 4):
            folder = cifar(tmp_path / "c")
            (folder / "data_batch_3").write_bytes(pickle.dumps({"data": attack, "labels": [0]}, protocol))
            with pytest.raises(ValueError, match=r"data_batch_3 is refused: it asks for .* never needs"):
                data.load("cifar10", folder)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02}", b"not a pickle", pickle.dumps([1]), b"\x80\x02K\x01K\x02R."])
def test_a_broken_pickle_is_a_value_error(content: bytes, tmp_path: Path) -> None:
    path = put(tmp_path, {"p": content}) / "p"
    with pytest.raises(ValueError, match=r"is refused|not a dict"):
        pickles.load(path)


# --- parallel text ----------------------------------------------------------------------------------------------------


def test_two_files_a_folder_and_a_table(tmp_path: Path) -> None:
    put(tmp_path, {"c.de": "eins\nzwei\u2028zwei\ndrei\n", "c.en": "one\ntwo\r\nthree"})
    read = data.load("parallel", tmp_path / "c")
    assert [(read.source.text(i), read.target.text(i)) for i in range(3)] == [
        ("one", "eins"),
        ("two", "zwei\u2028zwei"),
        ("three", "drei"),
    ]
    put(tmp_path, {"t.tsv": 'a "b\tc\nd\te\n'})
    read = data.load("parallel", tmp_path / "t.tsv")
    assert (read.source.text(0), read.target.text(1)) == ('a "b', "e")
    sides = {"train": 5, "val": 2, "test": 3}
    for side, count in sides.items():
        for language in ("fr", "de"):
            put(tmp_path / "f", {f"{side}.{language}": "".join(f"{language} {side} {i}\n" for i in range(count))})
    read = data.load("parallel", tmp_path / "f")
    assert [len(rows) for rows in read.split.values()] == [5, 2, 3]
    assert read.source.text(read.split["validation"][1]) == "de val 1"
    assert read.target.text(read.split["test"][2]) == "fr test 2"


def test_lines_that_do_not_pair_are_told(tmp_path: Path) -> None:
    put(tmp_path, {"c.de": "eins\n", "c.en": "one\ntwo\n", "t.tsv": "a\tb\na\n"})
    with pytest.raises(ValueError, match=r"c\.en has 2 lines, .*c\.de 1"):
        data.load("parallel", tmp_path / "c")
    with pytest.raises(ValueError, match="line 2: 1 columns"):
        data.load("parallel", tmp_path / "t.tsv")
    with pytest.raises(ValueError, match="no two files train"):
        data.load("parallel", tmp_path)


# --- Long Range Arena's files -----------------------------------------------------------------------------------------


def test_listops(tmp_path: Path) -> None:
    rows = {"train": 3, "val": 2, "test": 1}
    for side, count in rows.items():
        lines = "".join(f"( ( [MAX {i} ) {side} ]\t{i}\n" for i in range(count))
        put(tmp_path, {f"listops-1000/basic_{side}.tsv": "Source\tTarget\n" + lines})
    read = data.load("lra-listops", tmp_path)
    assert [len(rows) for rows in read.split.values()] == [3, 2, 1] and read.labels.tolist() == [0, 1, 2, 0, 1, 0]
    assert read.documents.text(4) == "( ( [MAX 1 ) val ]"
    put(tmp_path, {"listops-1000/basic_val.tsv": "Source\tTarget\nx\t10\n"})
    with pytest.raises(ValueError, match=r"basic_val\.tsv, line 2"):
        data.load("lra-listops", tmp_path)


def test_retrieval_with_quotes_and_fields_beyond_csvs_limit(tmp_path: Path) -> None:
    long = '"' + "y" * 200_000
    for side in ("train", "eval", "test"):
        line = f'1.0\ta\tb\tsaid "so\t{long}\n0.0\tb\tc\t{long}\tother {side}\n'
        put(tmp_path, {f"new_aan_pairs.{side}.tsv": line})
    read = data.load("lra-retrieval", tmp_path)
    assert read.labels.tolist() == [1, 0] * 3 and [len(rows) for rows in read.split.values()] == [2, 2, 2]
    assert len(read.documents) == 5  # the quoted one, the long one, three others
    first, second = read.pairs[0]
    assert read.documents.text(first) == 'said "so' and read.documents.text(second) == long[:10_000]
    put(tmp_path, {"new_aan_pairs.eval.tsv": "1.0\ta\tb\tx\n"})
    with pytest.warns(UserWarning, match="again"), pytest.raises(ValueError, match=r"eval\.tsv, line 1: want 5 fields"):
        data.load("lra-retrieval", tmp_path)


def pathfinder(folder: Path, batches: dict[int, int], real: bool) -> Path:
    """Pictures whose grey value is batch * 16 + index; every batch's picture 1 is empty, as one of the release is."""
    image = pytest.importorskip("PIL.Image")
    level = folder / "curv_contour_length_14"
    for batch, count in batches.items():
        (level / "imgs" / str(batch)).mkdir(parents=True)
        (level / "metadata").mkdir(exist_ok=True)
        rows = []
        for index in range(count):
            file = level / "imgs" / str(batch) / f"sample_{index}.png"
            pixels = np.full((4, 6), batch * 16 + index, dtype=np.uint8)
            image.fromarray(pixels).save(file)
            if index == 1:
                file.write_bytes(b"")
            rows.append(
                [f"imgs/{batch}", file.name, str(index), str(index % 2), "1.0", "14", "4", "2", "0.5", "1", "1"]
            )
        table = level / "metadata" / f"{batch}.npy"
        if real:
            np.save(table, np.array(rows))
        else:
            table.write_text("".join(" ".join(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("real", [False, True])
def test_pathfinder_in_both_forms_of_metadata(real: bool, tmp_path: Path) -> None:
    pathfinder(tmp_path, {2: 12, 10: 3}, real)
    for path in (tmp_path, tmp_path / "curv_contour_length_14"):
        read = data.load("lra-pathfinder", path)
        expected = [32, *range(34, 44), 160, 162]  # batch 2 before batch 10
        assert read.pixels.shape == (13, 4, 6) and read.pixels[:, 0, 0].tolist() == expected
        assert read.labels.tolist() == [value % 2 for value in expected]
        assert [len(rows) for rows in read.split.values()] == [11, 1, 1]


def test_pathfinder_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no N\.npy"):
        data.load("lra-pathfinder", tmp_path)
    folder = pathfinder(tmp_path, {0: 3}, False)
    table = folder / "curv_contour_length_14" / "metadata" / "0.npy"
    for bad in ("imgs/../../etc passwd 0 1", "imgs/0 ../x.png 0 1", "imgs/0 sample_0.png 0 7", "few"):
        table.write_text(bad + "\n")
        with pytest.raises(ValueError, match=r"entry 1: want imgs/BATCH"):
            data.load("lra-pathfinder", tmp_path)
    np.save(table, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"allow_pickle"):
        data.load("lra-pathfinder", tmp_path)
