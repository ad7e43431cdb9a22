/** Tiles of one head's map: asked for while they are in sight, and kept while there is room. */

import { Cache } from "./cache.js";
import { paintCells } from "./colours.js";
import { factorOf, isMasked, TILE } from "./geometry.js";

/** Of 256 x 256 weights and as many pixels: 50 MB. Of those in sight coarser ones are kept, too. */
const MAX_TILES = 96;
export const MAX_IN_SIGHT = 64;
/** The tile that all of a map is in. */
export const WHOLE = { zoom: 0, y: 0, x: 0 };

const nameOf = ({ zoom, y, x }) => `${zoom}/${y}/${x}`;

export class Tiles {
  #kept = new Cache(MAX_TILES);
  /** @type {Map<string, AbortController>} */
  #asked = new Map();
  #failed = new Set();

  /** @param {object} options `load` fetches a tile; `onchange` and `onproblem` are told how that ended */
  constructor(options) {
    Object.assign(this, options);
  }

  /** The largest weight, and that of all keys but the first. */
  findPeaks() {
    if (this.peaks) return this.peaks;
    const whole = this.find(WHOLE);
    if (!whole) return null;
    let all = 0, others = 0;
    for (let at = 0; at < whole.values.length; at++) {
      const value = Math.abs(whole.values[at]);
      if (value > all) all = value;
      if (value > others && at % whole.columns) others = value;
    }
    this.peaks = { all, others };
    return this.peaks;
  }

  get isAsking() {
    return this.#asked.size > 0;
  }

  /** A tile that is there. */
  find(address) {
    return this.#kept.get(nameOf(address));
  }

  /** Ask for those of `addresses` that are not there, and stop asking for all others. */
  want(addresses) {
    const names = new Map(addresses.map((address) => [nameOf(address), address]));
    for (const name of this.#asked.keys()) if (!names.has(name)) this.#stop(name);
    for (const [name, address] of names) {
      if (!this.#kept.get(name) && !this.#asked.has(name) && !this.#failed.has(name)) this.#load(name, address);
    }
  }

  /** Nothing is asked for any more. */
  stop() {
    for (const name of this.#asked.keys()) this.#stop(name);
  }

  /** What a busy service has refused may be asked for again. */
  forgive() {
    this.#failed.clear();
  }

  #stop(name) {
    this.#asked.get(name).abort();
    this.#asked.delete(name);
  }

  async #load(name, address) {
    const controller = new AbortController();
    this.#asked.set(name, controller);
    try {
      const { shape, values } = await this.load(address, controller.signal);
      this.#kept.set(name, { values, columns: shape[1], canvas: null, painted: "" });
    } catch (error) {
      if (controller.signal.aborted) return;
      this.#failed.add(name);
      this.onproblem(error);
    } finally {
      // Another may have asked since this one was stopped.
      if (this.#asked.get(name) === controller) {
        this.#asked.delete(name);
        this.onchange();
      }
    }
  }

  /** The pixels of a tile, a cell each. */
  picture(tile, { zoom, y, x }, paint) {
    const name = JSON.stringify(paint);
    if (tile.painted !== name) {
      const factor = factorOf(zoom, this.numZooms), top = TILE * y, left = TILE * x;
      const isBare = (row, column) =>
        (paint.hidesFirst && left + column === 0) ||
        isMasked(top + row, left + column, factor, this.length, this.sight);
      const image = paintCells(tile.values, tile.columns, paint, isBare);
      tile.canvas ??= document.createElement("canvas");
      [tile.canvas.width, tile.canvas.height] = [image.width, image.height];
      tile.canvas.getContext("2d").putImageData(image, 0, 0);
      tile.painted = name;
    }
    return tile.canvas;
  }
}

/**
 * Tiles out of a whole map that is here, as the service makes them: the weights largest in size, with their sign.
 *
 * @param {Float32Array} values [length, length]
 */
export function cutTiles(values, length, numZooms) {
  const levels = [];
  for (let zoom = numZooms - 1, size = length; zoom >= 0; zoom--) {
    levels[zoom] = { size, values };
    const half = Math.ceil(size / 2), pooled = new Float32Array(half * half);
    for (let row = 0; row < size; row++) {
      for (let column = 0; column < size; column++) {
        const at = (row >> 1) * half + (column >> 1), value = values[row * size + column];
        if (Math.abs(value) > Math.abs(pooled[at])) pooled[at] = value;
      }
    }
    [values, size] = [pooled, half];
  }
  return async ({ zoom, y, x }) => {
    const level = levels[zoom], top = TILE * y, left = TILE * x;
    const rows = Math.min(TILE, level.size - top), columns = Math.min(TILE, level.size - left);
    const cut = new Float32Array(rows * columns);
    for (let row = 0; row < rows; row++) {
      const begin = (top + row) * level.size + left;
      cut.set(level.values.subarray(begin, begin + columns), row * columns);
    }
    return { shape: [rows, columns], values: cut };
  };
}
