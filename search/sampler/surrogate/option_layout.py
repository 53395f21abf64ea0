"""Where the damage of each choice stands in the vector that is fitted, and what it shares with that of other choices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..dimensions import SearchDimension

KIND_DEVIATION = 1.5
"""Equal choices of all knobs of a kind share a deviation of this size from the guess of their log damage."""

KNOB_DEVIATION = 1.0
"""All choices of a knob share a deviation of this size in addition."""

MEASURED_DEVIATION = 0.5
"""All choices of a knob whose damage was measured alone share a deviation of this size."""

OPTION_DEVIATION = 0.5
"""Each choice of a knob has a deviation of this size of its own."""


class OptionLayout:
    """The options of knobs that do damage: each of their choices, those of channels once for each width.

    Args:
        knobs: without the one of recovery.

    Attributes:
        kinds: of the knobs, sorted. kind_of_knob: the place in it of each knob's, shape [knobs].
        width: which knob is the width; None without one.
        starts: place of each knob's first option, shape [knobs].
        strides: how many places apart the options are that a knob has at one width and at the next, shape [knobs].
        kind_of_option: shape [options].
        prior: log damage that is guessed, shape [options]; -inf at neutral choices.
        spread: what each offset of unit deviation adds to the log damage, shape [options, offsets].
    """

    def __init__(self, knobs: Sequence[SearchDimension]) -> None:
        self.kinds = sorted({knob.kind for knob in knobs})
        self.kind_of_knob = np.array([self.kinds.index(knob.kind) for knob in knobs], dtype=int)
        self.width = next((index for index, knob in enumerate(knobs) if knob.kind == "width"), None)
        widths = len(knobs[self.width].choices) if self.width is not None else 1
        repeats = [widths if knob.kind == "channels" else 1 for knob in knobs]
        sizes = [len(knob.choices) * times for knob, times in zip(knobs, repeats, strict=True)]
        self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)
        self.strides = np.array([len(knob.choices) * (knob.kind == "channels") for knob in knobs])
        owners = np.repeat(np.arange(len(knobs)), sizes)
        self.kind_of_option = self.kind_of_knob[owners]
        self._set_prior(knobs, repeats, owners)

    def _set_prior(self, knobs: Sequence[SearchDimension], repeats: Sequence[int], owners: np.ndarray) -> None:
        """Guesses and offsets, given how often each knob's choices repeat and which knob owns each option."""
        options = [(k, i) for k, times in zip(knobs, repeats, strict=True) for i in [*range(len(k.choices))] * times]
        self.prior = np.array([-np.inf if index == knob.neutral else knob.prior[index] for knob, index in options])
        self.spread = np.hstack([
            KIND_DEVIATION * _same([(knob.kind, knob.choices[index]) for knob, index in options]),
            (np.eye(len(knobs)) * [MEASURED_DEVIATION if k.measured else KNOB_DEVIATION for k in knobs])[owners],
            OPTION_DEVIATION * np.eye(len(options)),
        ])  # fmt: skip


def _same(natures: Sequence[tuple]) -> np.ndarray:
    """1 where an option is of a nature, [options, natures]."""
    places = {nature: place for place, nature in enumerate(dict.fromkeys(natures))}
    return np.eye(len(places))[[places[nature] for nature in natures]]
