/** Geometry of a map: what may be seen, which tiles show it, and how the view of it moves. Numbers in, numbers out. */

/** Cells along a tile. */
export const TILE = 256;
/** Pixels of a weight at most. */
const MAX_CELL = 64;

/**
 * Whether none of the weights of a cell may be anything but 0.
 *
 * @typedef {{causal: boolean, window: number}} Sight of a layer; a window of 0 is none
 * @param {number} row of the level
 * @param {number} column of the level
 * @param {number} factor rows, and columns, of the map that are one of the level
 * @param {number} length of the map
 * @param {Sight} sight
 */
export function isMasked(row, column, factor, length, { causal, window }) {
  const firstQuery = row * factor, lastQuery = Math.min(firstQuery + factor, length) - 1;
  const firstKey = column * factor, lastKey = Math.min(firstKey + factor, length) - 1;
  if (causal && firstKey > lastQuery) return true;
  if (!window) return false;
  return lastKey <= firstQuery - window || (!causal && firstKey >= lastQuery + window);
}

/** How many keys a query sees. */
export function countSeen(query, length, { causal, window }) {
  const first = window ? Math.max(0, query - window + 1) : 0;
  const end = causal ? query + 1 : Math.min(length, window ? query + window : length);
  return end - first;
}

/** Rows, and columns, of the map that are one of a level. */
export function factorOf(zoom, numZooms) {
  return 2 ** (numZooms - 1 - zoom);
}

/**
 * The level to draw: the finest whose cells have a pixel of the screen each, so that no bright one is left out.
 *
 * @param {number} cell pixels of the screen per weight
 */
export function chooseZoom(cell, numZooms) {
  const halvings = Math.ceil(Math.log2(1 / cell) - 1e-9);
  return numZooms - 1 - Math.min(numZooms - 1, Math.max(0, halvings));
}

/**
 * Tiles of a level that are in sight.
 *
 * @typedef {{x: number, y: number, cell: number, width: number, height: number, length: number}} View key and query at
 *   its upper left corner, pixels per weight, its size in pixels, and of how long a map it is
 * @param {View} view
 * @returns {{zoom: number, y: number, x: number}[]} from the middle outwards
 */
export function listTiles(view, zoom, numZooms) {
  const size = TILE * factorOf(zoom, numZooms);
  const last = Math.ceil(view.length / size) - 1;
  const span = (begin, pixels) => [
    Math.max(0, Math.floor(begin / size)),
    Math.min(last, Math.ceil((begin + pixels / view.cell) / size) - 1),
  ];
  const [top, bottom] = span(view.y, view.height), [left, right] = span(view.x, view.width);
  const found = [];
  for (let y = top; y <= bottom; y++) for (let x = left; x <= right; x++) found.push({ zoom, y, x });
  const distance = ({ y, x }) => Math.hypot(y - (top + bottom) / 2, x - (left + right) / 2);
  return found.sort((one, other) => distance(one) - distance(other));
}

/** The view that shows the whole map. @returns {View} */
export function fitView(width, height, length) {
  const cell = Math.min(MAX_CELL, Math.min(width, height) / length);
  return { x: 0, y: 0, cell, width, height, length };
}

/** The view with other pixels per weight, in which what is at a pixel stays there. @returns {View} */
export function zoomView(view, factor, pixelX, pixelY) {
  const fitted = fitView(view.width, view.height, view.length).cell;
  const cell = Math.min(Math.max(view.cell * factor, fitted), MAX_CELL);
  const x = view.x + pixelX / view.cell - pixelX / cell, y = view.y + pixelY / view.cell - pixelY / cell;
  return clampView({ ...view, x, y, cell });
}

/** The view, moved so that the map covers at least what it does when all of it is shown. @returns {View} */
export function clampView(view) {
  const { width, height, length, cell } = view, covered = fitView(width, height, length).cell * length;
  const clamp = (begin) => Math.max(0, Math.min(begin, length - covered / cell));
  return { ...view, x: clamp(view.x), y: clamp(view.y) };
}

/** The view, moved so that a query and a key are in it. @returns {View} */
export function revealCell(view, query, key) {
  const reveal = (begin, pixels, at) => {
    const shown = pixels / view.cell;
    return at < begin || at + 1 > begin + shown ? at + 0.5 - shown / 2 : begin;
  };
  return clampView({ ...view, x: reveal(view.x, view.width, key), y: reveal(view.y, view.height, query) });
}

/** Steps between ticks that are at least so many pixels apart: 1, 2 or 5 times a power of ten. */
export function tickStep(cell, minPixels) {
  const least = Math.max(1, minPixels / cell);
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((times) => times * power).find((step) => step >= least * (1 - 1e-9));
}
