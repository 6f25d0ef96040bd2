"""Whatever a network wants, what is written keeps to the rules; and it is the wishes that decide the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from relpos.tasks.music import compose, events
from relpos.tasks.music.arrange import view
from relpos.tasks.music.compose import Wishes, accompaniment, continuation
from relpos.tasks.music.composer import Composer, Size
from relpos.tasks.music.guide import LEAD
from relpos.tasks.music.judge import judge
from relpos.tasks.music.song import LENGTH, ONSET, PITCH, TRACK, Level, Song
from relpos.tasks.music.tokens import VOCABULARY
from relpos.tasks.music.writing import Reader


class Whims:
    """Stands for a network that has no idea: logits drawn anew for every token."""

    training = False

    def __init__(self, seed: int, spread: float = 2.0) -> None:
        self.generator, self.spread = torch.Generator().manual_seed(seed), spread

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def streams(self) -> list[Any]:
        return []

    def __call__(self, chunk: Tensor, **_: Any) -> Tensor:
        return self.spread * torch.randn(1, chunk.shape[1], VOCABULARY, generator=self.generator)


def song(rows: list[tuple[int, int, int, int]], tracks: int = 1, **options: Any) -> Song:
    notes = np.array([(*row, 80) for row in sorted(rows, key=lambda r: (r[0], r[3], r[2]))], dtype=np.int64)
    ticks = int((notes[:, ONSET] + notes[:, LENGTH]).max())
    return Song("tune", ticks, 4, tuple(f"t{i}" for i in range(tracks)), notes, **options)


def chorale(bars: int = 2) -> Song:
    """Four voices in quarters that never rest."""
    chords = [(72, 67, 64, 48), (71, 67, 62, 43), (69, 65, 60, 53), (72, 64, 60, 48)]
    rows = [(4 * i, 4, pitch, v) for i in range(4 * bars) for v, pitch in enumerate(chords[i % 4])]
    named = song(rows, 4)
    return replace(named, tracks=("Soprano", "Alto", "Tenor", "Bass"))


@st.composite
def prompts(draw: st.DrawFn) -> Song:
    """One to six tracks, in one voice or in chords, with drums or without, in any of some meters."""
    tracks = draw(st.integers(1, 6))
    note = st.tuples(st.integers(0, 40), st.integers(1, 12), st.integers(20, 100), st.integers(0, tracks - 1))
    rows = draw(st.lists(note, min_size=1, max_size=30, unique_by=lambda n: (n[0], n[2], n[3])))
    drums = (tracks - 1,) if draw(st.booleans()) and any(row[3] != tracks - 1 for row in rows) else ()
    meter = draw(st.sampled_from([(4, 4), (3, 4), (6, 8), (5, 4), (2, 4)]))
    return song(rows, tracks, meters=((0, *meter),), drums=drums)


@settings(max_examples=30)
@given(prompts(), st.integers(1, 3), st.integers(0, 99))
def test_a_continuation_keeps_the_rules_whatever_the_network_wants(prompt: Song, bars: int, seed: int) -> None:
    written = continuation(Whims(seed), prompt, bars, Wishes(seed, context=64))
    kept, lead_in = compose.trimmed(prompt)
    seen = view(kept)
    whole = events.bars_of(kept)[-1].whole
    assert written.song.ticks == bars * whole
    assert len(written.state.bars) == len(events.bars_of(kept)) + bars
    assert written.start == lead_in + kept.ticks
    old = [n for n in written.state.notes if n[0] < kept.ticks]
    np.testing.assert_array_equal(
        np.unique(np.array(old)[:, [0, 2, 3]], axis=0), np.unique(seen.song.notes[:, [0, 2, 3]], axis=0)
    )
    new = written.song.notes
    assert (new[:, ONSET] >= 0).all() and (new[:, ONSET] + new[:, LENGTH] <= written.song.ticks).all()
    assert len(np.unique(new[:, [ONSET, PITCH, TRACK]], axis=0)) == len(new)
    for part in seen.parts:
        own = new[np.isin(new[:, TRACK], part.tracks)]
        assert ((own[:, PITCH] >= part.low - part.shift) & (own[:, PITCH] <= part.high - part.shift)).all()
        if part.single:
            assert (own[:-1, ONSET] + own[:-1, LENGTH] <= own[1:, ONSET]).all()
    events.decode(events.encode(replace(written.song, levels={})))


@settings(max_examples=15)
@given(st.integers(0, 99), st.integers(1, 3))
def test_voices_that_never_rest_go_on_so(seed: int, bars: int) -> None:
    written = continuation(Whims(seed), chorale(), bars, Wishes(seed))
    for voice in range(4):
        own = written.song.notes[written.song.notes[:, TRACK] == voice]
        assert own[0, ONSET] == 0 and own[:, LENGTH].sum() == written.song.ticks


@settings(max_examples=15)
@given(st.integers(0, 99), st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9), st.integers(40, 95)), min_size=1))
def test_an_accompaniment_keeps_the_melody_and_fills_three_voices(seed: int, rows: list[tuple[int, int, int]]) -> None:
    melody = song([(*row, 0) for row in {row[0]: row for row in rows}.values()])
    written = accompaniment(Whims(seed), melody, wishes=Wishes(seed, context=64))
    line = compose.skyline(melody.notes)
    begin = int(line[0, ONSET])
    given_notes = [n for n in written.state.notes if n[3] == LEAD]
    assert [[o + begin, length] for o, length, *_ in given_notes] == line[:, [ONSET, LENGTH]].tolist()
    assert written.start == begin and written.song.tracks == compose.LOWER_VOICES
    for voice in range(3):
        own = written.song.notes[written.song.notes[:, TRACK] == voice]
        assert own[0, ONSET] == 0 and own[:, LENGTH].sum() == written.song.ticks


def small_network() -> Any:
    torch.manual_seed(1)
    return Composer.network(Size(dim=32, depth=2, heads=2))


def test_one_seed_gives_one_music_and_another_seed_another() -> None:
    model = small_network()
    written = [continuation(model, chorale(), 2, Wishes(seed)).song.notes.tolist() for seed in (1, 1, 2)]
    assert written[0] == written[1] != written[2]


def test_the_cache_changes_nothing() -> None:
    model = small_network()
    row = events.encode(chorale())
    times = events.clock(row)["time"]
    whole, stepwise = Reader(model, 1000), Reader(model, 1000)
    for token, time in zip(row.tolist(), times.tolist(), strict=True):
        whole.append(token, time)
        stepwise.append(token, time)
        last = stepwise.logits()
    torch.testing.assert_close(whole.logits(), last, atol=1e-5, rtol=1e-4)


def test_a_full_context_begins_anew_with_a_bar() -> None:
    model = small_network()
    row = events.encode(chorale(8))
    times = events.clock(row)["time"]
    reader = Reader(model, 160)
    for token, time in zip(row[:-1].tolist(), times[:-1].tolist(), strict=True):
        reader.append(token, time)
    found = reader.logits()
    bars = np.flatnonzero((row >= 5) & (row < 197))
    begin = int(bars[bars >= len(row) - 1 - 80][0])
    fresh = Reader(model, 160)
    for token, time in zip(row[begin:-1].tolist(), times[begin:-1].tolist(), strict=True):
        fresh.append(token, time)
    torch.testing.assert_close(found, fresh.logits(), atol=1e-5, rtol=1e-4)


def test_of_a_long_prompt_the_network_reads_what_fits_and_the_file_keeps_the_rest() -> None:
    class Counting(Whims):
        longest = 0

        def __call__(self, chunk: Tensor, **options: Any) -> Tensor:
            self.longest = max(self.longest, chunk.shape[1])
            return super().__call__(chunk, **options)

    model, prompt = Counting(0), chorale(300)  # ten minutes
    written = continuation(model, prompt, 1, Wishes(context=200))
    assert 0 < model.longest <= 100
    assert len([n for n in written.state.notes if n[0] < 4800]) == len(prompt.notes)


def test_chords_are_heard_on_the_beats() -> None:
    prompt, wishes = chorale(4), Wishes(3, chords="C | G7")
    written = continuation(Whims(3, spread=1.0), prompt, 8, wishes).song.notes
    chords = [{0, 4, 7}, {7, 11, 2, 5}]
    on_beat = [n for n in written.tolist() if n[0] % 4 == 0]
    fits = np.mean([n[2] % 12 in chords[n[0] // 16 % 2] for n in on_beat])
    free = continuation(Whims(3, spread=1.0), prompt, 8, Wishes(3)).song.notes
    by_chance = np.mean([n[2] % 12 in chords[n[0] // 16 % 2] for n in free.tolist() if n[0] % 4 == 0])
    assert fits > 0.9 > 0.6 > by_chance


def test_a_form_brings_the_old_bars_back() -> None:
    prompt = chorale(2)
    strong = replace(Wishes().leanings, repeat=30.0)
    wishes = Wishes(5, form="A2B2A2", leanings=strong)
    written = continuation(Whims(5, spread=0.5), prompt, 4, wishes).song
    back = written.notes[written.notes[:, ONSET] >= 32].copy()
    back[:, ONSET] -= 32
    np.testing.assert_array_equal(back[:, :4], prompt.notes[:, :4])
    free = written.notes[written.notes[:, ONSET] < 32]
    assert free[:, :4].tolist() != prompt.notes[:, :4].tolist()


def test_equally_long_sections_of_one_letter_are_two() -> None:
    assert compose._places("AABA", 8) == [(26, 0), (26, 1), (26, 0), (26, 1), (27, 0), (27, 1), (26, 0), (26, 1)]
    assert compose._places("i1A2", 4) == [(8, 0), (26, 0), (26, 1), (-1, 0)]


def test_a_pick_up_is_not_counted_and_a_rest_on_the_first_beat_is_no_pick_up() -> None:
    tail = [(16 * bar, 16, 62, 0) for bar in range(1, 5)]
    for first, expected in ((12, [(4, "A"), (36, "B")]), (2, [(0, "A"), (30, "B")])):
        kept, _ = compose.trimmed(song([(first, 4, 60, 0), *tail]))
        bars = events.bars_of(kept)[: 5 if first == 12 else 4]
        assert compose.section_starts("AB", bars) == expected


def test_drums_go_on_with_their_last_bars() -> None:
    beat = [(16 * bar + 4 * i, 1, 36 + 2 * (i % 2) + bar % 2, 1) for bar in range(4) for i in range(4)]
    prompt = song([(4 * i, 4, 60 + i % 5, 0) for i in range(16)] + beat, 2, drums=(1,))
    new = continuation(Whims(0), prompt, 4).song.notes
    struck = new[new[:, TRACK] == 1]
    np.testing.assert_array_equal(struck[:, [ONSET, PITCH]], np.array(beat)[:, [0, 2]])


def test_a_silent_beginning_becomes_a_pick_up() -> None:
    prompt = song([(12, 4, 60, 0), (16, 16, 62, 0)])
    kept, before = compose.trimmed(prompt)
    assert before == 12
    first, second = events.bars_of(kept)
    assert (first.ticks, first.offset, second.ticks) == (4, 12, 16)


def test_six_tracks_are_seen_as_four_parts_and_come_home() -> None:
    rows = [(4 * i, 4, 40 + 8 * track + i, track) for i in range(4) for track in range(6)]
    seen = view(song(rows, 6))
    assert len(seen.parts) == 4
    assert sorted(t for part in seen.parts for t in part.tracks) == list(range(6))
    new = continuation(Whims(1), song(rows, 6), 4).song
    assert set(new.notes[:, TRACK].tolist()) <= set(range(6))


def test_a_part_out_of_reach_is_moved_by_octaves_for_the_network_only() -> None:
    seen = view(song([(0, 4, 100, 0), (4, 4, 102, 0)]))
    assert seen.parts[0].shift == -36 and seen.song.notes[:, PITCH].tolist() == [64, 66]
    new = continuation(Whims(2), song([(0, 4, 100, 0), (4, 4, 102, 0)]), 2).song.notes
    assert (new[:, PITCH] >= 96).all()


def test_notes_that_a_shift_would_throw_out_are_folded_back() -> None:
    wide = song([(0, 4, 20, 0), (4, 4, 22, 0), (8, 4, 24, 0), (12, 4, 127, 0)])
    assert view(wide).parts[0].shift == 0
    low = song([(4 * i, 4, 20, 0) for i in range(20)] + [(80, 4, 127, 0)])
    assert view(low).parts[0].shift == 24
    assert view(low).song.notes[-1, PITCH] == 127
    assert accompaniment(Whims(0), low).song.ticks == 84
    assert continuation(Whims(0), low, 1).song.ticks == 16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bars": 0}, "bars to write"),
        ({"wishes": Wishes(temperature=-1)}, "temperature"),
        ({"wishes": Wishes(top_p=0)}, "top_p"),
        ({"wishes": Wishes(form="A4B40")}, "44 bars long, the piece only 3"),
        ({"wishes": Wishes(chords="C | Hm")}, "line 1, column 5: unknown chord 'Hm'"),
        ({"wishes": Wishes(chords="C | F | G")}, "3 bars"),
    ],
)
def test_wishes_that_do_not_fit_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        continuation(Whims(0), chorale(), **({"bars": 1} | change))


def test_songs_that_cannot_be_gone_on_with_are_refused() -> None:
    with pytest.raises(ValueError, match="no notes but those of drums"):
        continuation(Whims(0), song([(0, 1, 36, 0)], drums=(0,)), 1)
    with pytest.raises(ValueError, match="no notes"):
        continuation(Whims(0), Song("s", 16, 4, ("a",), np.zeros((0, 5), dtype=np.int64)), 1)
    with pytest.raises(ValueError, match="ticks a quarter"):
        continuation(Whims(0), Song("s", 16, 8, ("a",), np.array([[0, 1, 60, 0, 80]])), 1)


def test_training_windows_are_a_pure_function_and_their_places_those_of_the_clock() -> None:
    songs = [replace(chorale(n), name=f"s{n}") for n in (2, 3, 4, 5)]
    task = Composer(songs, Size(dim=32, depth=1, heads=2, context=60))
    tokens, places = task.batch(3, 1, 4)
    again, _ = task.batch(3, 1, 4)
    assert torch.equal(tokens, again) and tokens.shape == (4, 61)
    assert not torch.equal(tokens, task.batch(4, 1, 4)[0])
    assert (places[:, 0] == 0).all() and (places[:, 1:, 0] > places[:, :-1, 0]).all()
    model = task.model()
    assert task.loss(model, (tokens, places)).item() > 0
    side = task.split["validation"]
    counted = sum(len(task.row(int(i)).tokens) - 1 for i in side)
    assert task.evaluate(model, "validation", 60).count == counted
    losses = task.baselines("validation", 60)
    with pytest.raises(ValueError, match="no song kept from training has 90 bars"):
        judge(model, task, songs, prompt_bars=90)
    assert losses["copy a bar"]["loss"] < losses["bigram"]["loss"] < losses["uniform"]["loss"]


def test_levels_of_a_song_do_not_disturb() -> None:
    prompt = chorale()
    labelled = replace(prompt, levels={"chord": Level(np.zeros(prompt.ticks, dtype=np.int64))})
    assert (
        continuation(small_network(), labelled, 1).song.notes.tolist()
        == continuation(small_network(), prompt, 1).song.notes.tolist()
    )
