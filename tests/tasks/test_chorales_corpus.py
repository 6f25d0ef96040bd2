"""Reading real chorales; three scores are parsed, the others are left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from relpos.tasks.music import corpus, midi, roll
from relpos.tasks.music.piece import Piece
from tests.tasks import synthetic

music21 = pytest.importorskip("music21")


@pytest.fixture(scope="module")
def paths() -> dict[str, Path]:
    return {path.stem: path for path in corpus.score_paths()}


@pytest.fixture(scope="module")
def chorale(paths: dict[str, Path]) -> Piece:
    found = corpus.read(paths["bwv269"])
    assert found is not None
    return found


def test_there_is_one_file_a_score(paths: dict[str, Path]) -> None:
    assert len(paths) == len(corpus.score_paths()) == 410
    assert all(path.suffix != ".krn" for path in paths.values())


def test_a_chorale_is_read_as_it_is_printed(chorale: Piece, paths: dict[str, Path]) -> None:
    assert (chorale.number, chorale.riemenschneider, chorale.title) == ("269", 1, "Aus meines Herzens Grunde")
    assert chorale.sharps == 1 and (chorale.meter == (3, 4)).all()
    assert chorale.beat[:5].tolist() == [8, 9, 10, 11, 0] and chorale.bar[:5].tolist() == [0, 0, 0, 0, 1]
    assert chorale.beat.max() == 11 and chorale.pitch[0].tolist() == [67, 62, 59, 43]
    score = music21.converter.parse(paths["bwv269"])
    for voice, part in enumerate(score.parts):
        struck = [n for n in part.flatten().notes if n.tie is None or n.tie.type == "start"]
        assert chorale.onset[:, voice].sum() == len(struck)
        held = [n for n in part.flatten().notes if any("Fermata" in e.classes for e in n.expressions)]
        assert chorale.fermata[:, voice].sum() == len(held) > 0
    assert chorale.ticks == 4 * score.highestTime


def test_a_real_chorale_survives_tokens_to_midi_to_tokens(chorale: Piece, tmp_path: Path) -> None:
    tokens = roll.encode(chorale)
    midi.write(tmp_path / "x.mid", *roll.decode(tokens), meter=(3, 4), pickup=4)
    pitch, onset = midi.read(tmp_path / "x.mid")
    again = roll.encode(Piece(**{**chorale.__dict__, "pitch": pitch, "onset": onset}))
    np.testing.assert_array_equal(again, tokens)


def test_workers_return_what_one_process_reads(chorale: Piece, paths: dict[str, Path]) -> None:
    seen: list[tuple[int, int]] = []
    chosen = [paths["bwv269"], paths["bwv120.8-a"], paths["bwv66.6"]]
    found = corpus.read_all(chosen, 2, lambda done, total, _: seen.append((done, total)))
    assert [p.name for p in found] == ["bwv269", "bwv66.6"], "a score of eight parts must be left out"
    assert synthetic.same(found[0], chorale) and seen == [(1, 3), (2, 3), (3, 3)]


def test_a_score_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit status 1"):
        corpus.read_all([tmp_path / "none.mxl"], 1)


def test_a_bar_cut_in_two_by_a_repeat_sign_is_one_bar() -> None:
    part = music21.stream.Part()
    for order, quarters in enumerate([1, 4, 3, 1, 4, 2]):
        measure = music21.stream.Measure(number=order)
        if order == 0:
            measure.append(music21.meter.TimeSignature("4/4"))
        measure.append(music21.note.Note("C4", quarterLength=quarters))
        part.append(measure)
    beat, bar, meter = corpus._bars(part, 60)
    assert [bar[4 * q] for q in range(15)] == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4]
    assert [beat[4 * q] // 4 for q in range(15)] == [3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert (meter == (4, 4)).all()
