"""The model that answers: that of the newest commit, loaded aside while the one before goes on answering."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from vlltr_index.recognition.answering import predict
from vlltr_index.schemas.options import PredictOptions

if TYPE_CHECKING:
    from vlltr_index.recognition.model import Model
    from vlltr_index.recognizer import Recognizer

_EVERY = 1.0  # seconds between looks for a newer commit
_log = logging.getLogger(__name__)


class Follower:
    """The newest model of a recognizer, ready to answer; safe for several threads.

    Args:
        recognizer: Of a workspace or an exported folder.

    Attributes:
        recognizer: See above.
        model: The model that answers. Another takes its place as a whole, once it has answered for an empty picture.

    Raises:
        MissingStepError, FingerprintMismatch, EncoderError: If the first model cannot answer.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        self.recognizer = recognizer
        self.model = _ready(recognizer.current())
        self._seen = self.model
        self._said = ""
        self._looking = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Take the newest commit's model now.

        Raises:
            VlltrError, OSError: If it cannot answer; the one before goes on, and this one is not tried again.
        """
        with self._looking:
            found = self.recognizer.current()
            if found is not self._seen:
                self._seen = found
                self.model = _ready(found)

    def _follow(self) -> None:
        while not self._ended.wait(_EVERY):
            try:
                self.look()
            except Exception as error:  # whatever is wrong with a workspace, the model before answers
                if str(error) != self._said:
                    self._said = str(error)
                    _log.warning("answering as of commit %d: %s", self.model.commit, error)

    def close(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()


def _ready(model: Model) -> Model:
    """Let a model answer once, so that all that usual answers need is loaded."""
    import numpy as np

    height, width = model.encoder.image_size
    predict(model, [np.zeros((height, width, 3), np.uint8)], PredictOptions(explain=1))
    return model
