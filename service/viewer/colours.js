/** Colours: from weights to pixels, the same as in the service's own pictures (service/formats/colours.py). */

// Viridis (CC0, by S. van der Walt and N. Smith) as polynomials for red, green and blue; off by 3 of 255.
const VIRIDIS = [
  [0.2777273272, 0.0054073445, 0.3340998053],
  [0.1050930431, 1.4046135299, 1.3845901626],
  [-0.3308618287, 0.2148475595, 0.095095163],
  [-4.6342304990, -5.7991009734, -19.3324409563],
  [6.2282699363, 14.1799333668, 56.6905526007],
  [4.7763849977, -13.7451453777, -65.3530326334],
  [-5.4354558559, 4.6458526122, 26.3124352496],
];
// Blue, white, red, after ColorBrewer's RdBu.
const NEGATIVE = [33, 102, 172], ZERO = [247, 247, 247], POSITIVE = [178, 24, 43];
const NUM_STEPS = 256;
/** Decades that the logarithmic scale shows. */
export const DECADES = 4;

/** From a weight by the largest one, 0 to 1, to the place of its colour, 0 to 1. */
export const SCALES = {
  sqrt: Math.sqrt,
  linear: (ratio) => ratio,
  log: (ratio) => Math.max(0, 1 + Math.log10(Math.max(ratio, 1e-30)) / DECADES),
};

/** Back: the weight by the largest one whose colour is at that place. */
export const INVERSES = {
  sqrt: (place) => place * place,
  linear: (place) => place,
  log: (place) => 10 ** (DECADES * (place - 1)),
};

/** [256 x 3] bytes, from nothing to the largest. */
export const SEQUENTIAL = makeTable((step) => {
  const t = step / (NUM_STEPS - 1);
  return [0, 1, 2].map((channel) => 255 * VIRIDIS.reduce((sum, row, power) => sum + row[channel] * t ** power, 0));
});

/** [256 x 3] bytes, from the most negative over 0, in the middle, to the most positive. */
export const DIVERGING = makeTable((step) => {
  const t = (2 * step) / (NUM_STEPS - 1) - 1;
  const end = t < 0 ? NEGATIVE : POSITIVE;
  return ZERO.map((zero, channel) => zero + Math.abs(t) * (end[channel] - zero));
});

function makeTable(colourOf) {
  const table = new Uint8ClampedArray(3 * NUM_STEPS);
  for (let step = 0; step < NUM_STEPS; step++) table.set(colourOf(step).map(Math.round), 3 * step);
  return table;
}

/**
 * @typedef {{scale: keyof SCALES, peak: number, isSigned: boolean}} Paint
 * @param {number} value a weight, with a sign where signs are shown
 * @param {Paint} paint
 * @returns {number} which of the 256 colours
 */
export function stepOf(value, { scale, peak, isSigned }) {
  const place = peak > 0 ? Math.min(1, SCALES[scale](Math.abs(value) / peak)) : 0;
  return Math.round((NUM_STEPS - 1) * (isSigned ? 0.5 + (Math.sign(value) * place) / 2 : place));
}

/**
 * Pixels of a part of a map, whose `values` are by row.
 *
 * @param {(row: number, column: number) => boolean} isBare whether a cell is left transparent
 * @returns {ImageData}
 */
export function paintCells(values, columns, paint, isBare) {
  const table = paint.isSigned ? DIVERGING : SEQUENTIAL;
  const image = new ImageData(columns, values.length / columns);
  for (let at = 0; at < values.length; at++) {
    if (isBare(Math.floor(at / columns), at % columns)) continue;
    const step = 3 * stepOf(values[at], paint);
    image.data[4 * at] = table[step];
    image.data[4 * at + 1] = table[step + 1];
    image.data[4 * at + 2] = table[step + 2];
    image.data[4 * at + 3] = 255;
  }
  return image;
}
