// Recognise pictures with model.onnx in Node: npm install onnxruntime-node && node predict.mjs photo.ppm
// Pictures are PPM files (P6), which any program for pictures writes:
// magick photo.png -auto-orient -background white -flatten photo.ppm

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import ort from "onnxruntime-node";
import { resizedPixels } from "./preprocess.mjs";

const TOP = 5;

const beside = (name) => fileURLToPath(new URL(name, import.meta.url));
const labels = JSON.parse(readFileSync(beside("labels.json"), "utf8"));
const session = await ort.InferenceSession.create(beside("model.onnx"));
const { size } = labels.preprocess;
const paths = process.argv.slice(2);
if (paths.length === 0) {
  console.error("Usage: node predict.mjs PICTURE.ppm...");
  process.exitCode = 1;
}

for (const path of paths) { // one by one; the model takes any number at once
  const pixels = new ort.Tensor("uint8", resizedPixels(readPPM(path), labels.preprocess), [1, size, size, 3]);
  const { probabilities, known_score: knownScore } = await session.run({ pixels });
  const classes = Array.from(probabilities.data, (probability, c) => ({ name: labels.classes[c].name, probability }))
    .sort((one, other) => other.probability - one.probability)
    .slice(0, TOP);
  const answer = { image: path, classes };
  if (labels.reject !== null) answer.known = knownScore.data[0] >= labels.reject.threshold;
  console.log(JSON.stringify(answer));
}

/** Read a PPM file (P6, 8 bits a channel). */
function readPPM(path) {
  const file = readFileSync(path);
  const head = /^P6\s+(?:#.*\s+)*(\d+)\s+(\d+)\s+255\s/.exec(file.subarray(0, 1000).toString("latin1"));
  if (head === null) throw new Error(`${path} is not a PPM file (P6) of 8 bits a channel`);
  const [width, height] = [Number(head[1]), Number(head[2])];
  return { data: file.subarray(head[0].length, head[0].length + 3 * width * height), width, height };
}
