"""Recognise pictures with model.onnx, without torch.

pip install onnxruntime pillow && python predict.py photo.jpg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from preprocess import read_picture, resized_pixels  # beside this file

TOP = 5


def main(paths: list[str], model: str = "model.onnx") -> None:
    """Write one line of JSON a picture: the likeliest classes and whether it is of any of them, or its problem."""
    folder = Path(__file__).parent
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(folder / model)
    for path in paths:  # one by one; the model takes any number at once
        try:
            pixels = resized_pixels(read_picture(path), labels["preprocess"])
        except (OSError, ValueError) as error:
            sys.stdout.write(json.dumps({"image": path, "problem": str(error)}, ensure_ascii=False) + "\n")
            continue
        probabilities, *known_score = session.run(None, {"pixels": pixels[None]})
        best = np.argsort(-probabilities[0], kind="stable")[:TOP]
        answer: dict[str, object] = {"image": path}
        answer["classes"] = [
            {"name": labels["classes"][c]["name"], "probability": float(probabilities[0, c])} for c in best
        ]
        if labels["reject"] is not None:
            answer["known"] = bool(known_score[0][0] >= labels["reject"]["threshold"])
        sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("Usage: python predict.py PICTURE...")
    main(sys.argv[1:])
