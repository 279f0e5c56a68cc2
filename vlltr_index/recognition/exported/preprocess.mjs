// Turn pictures into the pixels that model.onnx takes, by the arithmetic of Pillow: the same bytes as preprocess.py. (Pillow 13
// begins with the columns of some pictures, which rounds single pixels otherwise.)
// It needs no package, and runs in a browser too.

const PRECISION = 22; // bits behind the point of a weight

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    weight: (x) => {
      const t = Math.abs(x);
      if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
      return t < 2 ? (((t - 5) * t + 8) * t - 4) * -0.5 : 0;
    },
  },
};

/**
 * Resize and crop a picture to the pixels that the model takes.
 *
 * @param {{data: Uint8Array, width: number, height: number}} picture Red, green and blue of each pixel, row by row.
 * @param {object} how `preprocess` of labels.json, as for `resized_pixels` in preprocess.py.
 * @returns {Uint8Array} size * size * 3 bytes.
 */
export function resizedPixels(picture, how) {
  const side = how.resize;
  const { width, height } = picture;
  if (Math.max(width, height) > 1000 * Math.min(width, height)) throw new RangeError(`${width} x ${height} pixels are too thin`);
  let to = [side, side];
  if (how.resize_mode === "shortest") {
    if (width <= height) to = [side, Math.trunc((side * height) / width)];
    else to = [Math.trunc((side * width) / height), side];
  } else if (how.resize_mode === "longest") {
    const ratio = Math.max(width / side, height / side);
    to = [roundToEven(width / ratio), roundToEven(height / ratio)];
  }
  if (to[0] < 1 || to[1] < 1) throw new RangeError(`${width} x ${height} pixels: a side would have no pixel`);
  let image = how.mode === "L" ? grey(picture) : picture;
  image = resized(image, to[0], to[1], FILTERS[how.interpolation]);
  if (how.resize_mode === "longest") image = padded(image, side, how.fill_color);
  return centre(centre(image, side), how.size).data;
}

/** Round to the nearest integer, a half to the even one, as Python does. */
function roundToEven(value) {
  const low = Math.floor(value);
  if (value - low !== 0.5) return Math.round(value);
  return low % 2 === 0 ? low : low + 1;
}

/** Give each pixel its luminance (ITU-R 601, in 16 bits) as red, green and blue. */
function grey({ data, width, height }) {
  const out = new Uint8Array(data.length);
  for (let i = 0; i < data.length; i += 3) {
    const luminance = (19595 * data[i] + 38470 * data[i + 1] + 7471 * data[i + 2] + 0x8000) >> 16;
    out.fill(luminance, i, i + 3);
  }
  return { data: out, width, height };
}

/** Resize, first along the rows and then along the columns, each pass rounded to bytes. */
function resized(image, width, height, filter) {
  const wide = width === image.width ? image : pass(image, width, filter, true);
  return height === image.height ? wide : pass(wide, height, filter, false);
}

/** Resample along one direction to `length` pixels. */
function pass({ data, width, height }, length, filter, alongRows) {
  const weights = windows(alongRows ? width : height, length, filter);
  const step = alongRows ? 3 : 3 * width; // between neighbours in that direction
  const lines = alongRows ? height : width;
  const outWidth = alongRows ? length : width;
  const out = new Uint8Array(outWidth * (alongRows ? height : length) * 3);
  for (let line = 0; line < lines; line++) {
    for (let at = 0; at < length; at++) {
      const { first, factors } = weights[at];
      const target = 3 * (alongRows ? line * outWidth + at : at * outWidth + line);
      for (let channel = 0; channel < 3; channel++) {
        let place = (alongRows ? line * width * 3 : line * 3) + first * step + channel;
        let sum = 1 << (PRECISION - 1);
        for (const factor of factors) {
          sum += data[place] * factor;
          place += step;
        }
        out[target + channel] = Math.min(255, Math.max(0, sum >> PRECISION));
      }
    }
  }
  return alongRows ? { data: out, width: length, height } : { data: out, width, height: length };
}

/** Compute for each of `length` pixels the first of the pixels before that it is made of, and their weights. */
function windows(before, length, filter) {
  const scale = before / length;
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  return Array.from({ length }, (_, at) => {
    const middle = (at + 0.5) * scale;
    const first = Math.max(0, Math.trunc(middle - support + 0.5));
    const last = Math.min(before, Math.trunc(middle + support + 0.5));
    const plain = [];
    for (let x = first; x < last; x++) plain.push(filter.weight((x - middle + 0.5) * (1 / stretch)));
    const total = plain.reduce((sum, one) => sum + one, 0);
    const factors = plain.map((one) => {
      const exact = (total === 0 ? one : one / total) * (1 << PRECISION);
      return Math.trunc(exact < 0 ? exact - 0.5 : exact + 0.5);
    });
    return { first, factors };
  });
}

/** Put a picture into the middle of a square of one grey. */
function padded({ data, width, height }, side, fill) {
  const out = new Uint8Array(side * side * 3).fill(fill);
  const left = Math.floor((side - width) / 2);
  const top = Math.floor((side - height) / 2);
  for (let y = 0; y < height; y++) {
    out.set(data.subarray(3 * y * width, 3 * (y + 1) * width), 3 * ((top + y) * side + left));
  }
  return { data: out, width: side, height: side };
}

/** Cut the square of `size` pixels out of the middle. */
function centre({ data, width, height }, size) {
  const left = roundToEven((width - size) / 2);
  const top = roundToEven((height - size) / 2);
  const out = new Uint8Array(size * size * 3);
  for (let y = 0; y < size; y++) {
    const start = 3 * ((top + y) * width + left);
    out.set(data.subarray(start, start + 3 * size), 3 * y * size);
  }
  return { data: out, width: size, height: size };
}
