"""How good a piano-roll, a list of notes or an attention map is; a module a kind of metric."""

from relpos.tasks.music.metrics.attention import monotonicity, translation_invariance
from relpos.tasks.music.metrics.binarise import binarise, fill_gaps, top_rows
from relpos.tasks.music.metrics.copies import Copy, Library, longest_copy
from relpos.tasks.music.metrics.groove import (
    histogram_similarity,
    onset_duration_histogram,
    onset_pitch_histogram,
    style_profile,
    style_similarity,
    time_pitch_histogram,
)
from relpos.tasks.music.metrics.notes import (
    Matches,
    density_ratio,
    match_notes,
    match_onsets,
    notes_of,
    pitch_classes,
    polyphony,
    scale,
    scale_of,
    scale_share,
    share_in_range,
)
from relpos.tasks.music.metrics.rolls import Score
from relpos.tasks.music.metrics.structure import (
    DEFINITIONS,
    chroma_similarity,
    grooving_similarity,
    mean_squared_error,
    note_density_distance,
    self_similarity_distance,
)
from relpos.tasks.music.metrics.table import BETTER, cross_entropy, evaluate, warnings

__all__ = [
    "BETTER",
    "DEFINITIONS",
    "Copy",
    "Library",
    "Matches",
    "Score",
    "binarise",
    "chroma_similarity",
    "cross_entropy",
    "density_ratio",
    "evaluate",
    "fill_gaps",
    "grooving_similarity",
    "histogram_similarity",
    "longest_copy",
    "match_notes",
    "match_onsets",
    "mean_squared_error",
    "monotonicity",
    "note_density_distance",
    "notes_of",
    "onset_duration_histogram",
    "onset_pitch_histogram",
    "pitch_classes",
    "polyphony",
    "scale",
    "scale_of",
    "scale_share",
    "self_similarity_distance",
    "share_in_range",
    "style_profile",
    "style_similarity",
    "time_pitch_histogram",
    "top_rows",
    "translation_invariance",
    "warnings",
]
