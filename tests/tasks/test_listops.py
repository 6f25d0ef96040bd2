"""ListOps: the released task's statistics, values against a second evaluator, both directions of the tokens, files."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relpos.tasks.long_range import listops, operations
from relpos.tasks.long_range.listops import Rules

SMALL = Rules(max_depth=5, max_args=4, min_length=3, max_length=60)

trees = st.recursive(
    st.integers(0, 9),
    lambda children: st.tuples(st.sampled_from(operations.OPERATIONS), st.lists(children, min_size=1, max_size=6)),
    max_leaves=40,
)


def value(tree) -> int:
    """The definition, on the tree itself and with the standard library's median."""
    if isinstance(tree, int):
        return tree
    name, children = tree
    numbers = [value(child) for child in children]
    return {"MIN": min, "MAX": max, "MED": lambda x: int(statistics.median(x)), "SM": lambda x: sum(x) % 10}[name](
        numbers
    )


def written(tree) -> str:
    """The nested pairs, made of the tree as the released generator nests them: one pair an argument, one for ``]``."""
    if isinstance(tree, int):
        return str(tree)
    name, children = tree
    text = f"[{name}"
    for child in [*map(written, children), "]"]:
        text = f"( {text} {child} )"
    return text


def parse(tokens) -> tuple:
    """A recursive-descent reader: (tree, tokens left)."""
    head, *rest = tokens
    if head < operations.FIRST_OPERATION:
        return int(head) - operations.FIRST_DIGIT, rest
    children = []
    while rest[0] != operations.CLOSE:
        child, rest = parse(rest)
        children.append(child)
    return (operations.OPERATIONS[head - operations.FIRST_OPERATION], children), rest[1:]


def depth(tree) -> int:
    return 1 if isinstance(tree, int) else 1 + max(map(depth, tree[1]))


@pytest.fixture(scope="module")
def sample() -> listops.Expressions:
    return listops.generate(4000, seed=3)


def test_statistics_of_the_released_rules(sample):
    """Shares within four standard errors of values measured on 3,000 expressions of the literal generator."""
    assert abs(len(sample) / sample.drawn - 0.0814) < 4 * np.sqrt(0.0814 * 0.92 * (1 / sample.drawn + 1 / 36_900))
    assert abs(sample.lengths.mean() - 1048) < 4 * sample.lengths.std() * np.sqrt(1 / 4000 + 1 / 3000)
    assert abs(np.median(sample.lengths) - 968) < 60
    assert sample.lengths.min() >= 501 and sample.lengths.max() <= 1999
    shares = np.array([0.169, 0.092, 0.069, 0.075, 0.096, 0.088, 0.080, 0.074, 0.088, 0.168])
    found = np.bincount(sample.labels, minlength=10) / len(sample)
    assert (abs(found - shares) < 4 * np.sqrt(shares * (1 / 4000 + 1 / 3000))).all()


def test_trees_of_the_released_rules(sample):
    """Depth 10 in all, two to ten arguments, and the four operations equally often."""
    arities, met = [], []

    def walk(tree) -> None:
        if not isinstance(tree, int):
            met.append(tree[0])
            arities.append(len(tree[1]))
            for child in tree[1]:
                walk(child)

    for index in range(150):
        tree, rest = parse(list(sample[index]))
        assert rest == [] and depth(tree) == 10 and value(tree) == sample.labels[index]
        walk(tree)
    assert set(arities) == set(range(2, 11))
    counts = np.array([met.count(name) for name in operations.OPERATIONS])
    assert (abs(counts / counts.sum() - 0.25) < 4 * np.sqrt(0.19 / counts.sum())).all()


def test_labels_are_the_values(sample):
    for index in range(0, len(sample), 10):
        assert operations.evaluate(sample[index]) == sample.labels[index]


@given(trees)
def test_written_form_tokens_and_value_agree(tree):
    text = written(tree)
    tokens = operations.tokenise(text)
    assert operations.write(tokens) == text
    assert parse(list(tokens)) == (tree, [])
    assert operations.evaluate(tokens) == value(tree)
    assert (operations.tokenise(text.replace("]", "X")) == tokens).all()


def test_the_sheet_example():
    assert operations.write(operations.tokenise("[MAX 3 5]".replace("]", " ]"))) == "( ( ( [MAX 3 ) 5 ) ] )"
    assert operations.evaluate(operations.tokenise("[MED 2 9 3 4 ]")) == 3  # the middle two are 3 and 4


@given(st.integers(1, 40), st.integers(0, 5))
@settings(max_examples=15)
def test_small_rules(count, seed):
    found = listops.generate(count, seed, SMALL)
    assert len(found) == count and len({bytes(found[i]) for i in range(count)}) == count
    for index, label in enumerate(found.labels):
        tree, rest = parse(list(found[index]))
        assert rest == [] and value(tree) == label and depth(tree) <= 5 and 3 < len(found[index]) < 60


def test_a_seed_gives_a_stream_and_fewer_are_a_prefix():
    long, short, other = listops.generate(300, 1), listops.generate(120, 1), listops.generate(120, 2)
    assert (long.tokens[: len(short.tokens)] == short.tokens).all() and (long.labels[:120] == short.labels).all()
    assert not np.array_equal(short.labels, other.labels)


def test_shards_hold_no_expression_twice(monkeypatch):
    monkeypatch.setattr(listops, "SHARD", 50)
    rules = Rules(max_depth=3, max_args=2, min_length=3, max_length=8)  # [OP a b] only: 400 different ones
    found = listops.generate(380, 0, rules)
    assert len({bytes(found[i]) for i in range(380)}) == 380


def test_impossible_requests_are_refused(monkeypatch):
    monkeypatch.setattr(listops, "_PATIENCE", 20_000)
    rules = Rules(max_depth=2, max_args=2, min_length=3, max_length=8)
    with pytest.raises(ValueError, match="widen the lengths"):
        listops.generate(401, 0, rules)
    for options in ({"max_depth": 1}, {"max_args": 1}, {"min_length": 5, "max_length": 6}):
        with pytest.raises(ValueError, match="at least"):
            Rules(**options)
    with pytest.raises(ValueError, match="no tree is longer"):
        Rules(max_depth=2, max_args=2, min_length=4, max_length=90)
    with pytest.raises(ValueError, match="count must be at least 1"):
        listops.generate(0)
    with pytest.raises(ValueError, match="three positive numbers"):
        listops.load((1, 2, 0))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[MAX 3 5", "one whole expression"),
        ("3 5", "one whole expression"),
        ("", "one whole expression"),
        ("3 ]", "never opened"),
        ("[MIN ]", "no arguments"),
        ("[FIRST 3 ]", "unknown symbol '.FIRST'"),
    ],
)
@pytest.mark.parametrize("function", [operations.evaluate, operations.write])
def test_half_expressions_are_refused(text, complaint, function):
    with pytest.raises(ValueError, match=complaint):
        function(operations.tokenise(text))


def test_padding_is_no_token():
    with pytest.raises(ValueError, match="token 0 is no part"):
        operations.evaluate([11, 2, 0, 15])


def test_padded_cuts_and_fills(sample):
    rows = sample.padded([5, 2], length=1500)
    assert rows.shape == (2, 1500) and rows.dtype == np.uint8
    for row, index in zip(rows, [5, 2]):
        size = min(1500, len(sample[index]))
        assert (row[:size] == sample[index][:size]).all() and (row[size:] == 0).all()
    with pytest.raises(IndexError):
        sample[len(sample)]


def test_a_stopped_load_goes_on(monkeypatch, tmp_path):
    monkeypatch.setenv("RELPOS_CACHE", str(tmp_path))
    monkeypatch.setattr(listops, "SHARD", 40)
    whole = listops.generate(130, 5)

    def stop(done: int, total: int, text: str) -> None:
        if done >= 80:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        listops.load((100, 10, 20), 5, stop)
    files = sorted(tmp_path.rglob("*.npz"))
    assert len(files) == 2
    stamps = [file.stat().st_mtime_ns for file in files]
    parts = listops.load((100, 10, 20), 5)
    assert [file.stat().st_mtime_ns for file in files] == stamps and len(list(tmp_path.rglob("*"))) == 1 + 4
    assert list(parts) == list(listops.SPLITS) and [len(part) for part in parts.values()] == [100, 10, 20]
    assert (np.concatenate([part.tokens for part in parts.values()]) == whole.tokens).all()
    assert (parts["test"][19] == whole[129]).all() and parts["validation"].labels[0] == whole.labels[100]
    files[0].write_bytes(files[0].read_bytes()[:50])
    with pytest.warns(UserWarning, match="making .* again"):
        assert (listops.load((100, 10, 20), 5)["train"].labels == whole.labels[:100]).all()


def released(folder: Path, lines: dict[str, list[str]]) -> None:
    for name in ("train", "val", "test"):
        text = "".join(f"{line}\n" for line in ["Source\tTarget", *lines.get(name, ["( ( ( [MAX 3 ) 5 ) ] )\t5"])])
        (folder / f"basic_{name}.tsv").write_text(text)


def test_released_files_are_read(tmp_path, sample):
    lines = [f"{operations.write(sample[i])}\t{sample.labels[i]}" for i in range(7)]
    released(tmp_path, {"train": lines})
    found = listops.read(tmp_path)
    assert (found["train"].tokens == sample.tokens[: sample.offsets[7]]).all()
    assert (found["train"].labels == sample.labels[:7]).all() and len(found["test"]) == 1


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["( ( ( [MAX 3 ) 5 ) ] )\t3"], "basic_val.tsv, line 2: the target is 3, but"),
        (["7\t7", "[MAX 1 2 ]\t12"], "line 3: the target must be one digit"),
        (["[LAST 1 2 ]\t2"], "line 2: unknown symbol"),
        (["7"], "line 2: the target must be one digit"),
        ([], "holds no expressions"),
    ],
)
def test_damaged_files_are_refused(tmp_path, lines, complaint):
    released(tmp_path, {"val": lines})
    with pytest.raises(ValueError, match=complaint):
        listops.read(tmp_path)


def test_missing_or_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        listops.read(tmp_path)
    released(tmp_path, {})
    (tmp_path / "basic_test.tsv").write_text("Target\tSource\n")
    with pytest.raises(ValueError, match="first line"):
        listops.read(tmp_path)
