/** The atlas: a small map of every head, its entropy, and the pattern that has most of its weight. */

import { paintCells } from "./colours.js";
import { isMasked } from "./geometry.js";
import { formatNumber, strongestPattern } from "./measures.js";
import { create } from "./dom.js";

/** Heads side by side, so that their names can be read; and up to how many there is room for a number, too. */
const MIN_COLUMNS = 4, MAX_NUMBERED = 6, MAX_COLUMNS = 8;

/** An order of heads that is no measure. */
export const LAYER = "by layer";

export class Atlas {
  /** @type {Map<string, {layer: number, head: number, button: HTMLElement, entry: any}>} */
  #cards = new Map();
  #thumbnails = null;

  /** @param {(layer: number, head: number) => void} onchoose */
  constructor(root, onchoose) {
    this.root = root;
    this.onchoose = onchoose;
  }

  /** Cards without pictures yet. */
  show(capture, model, measures) {
    Object.assign(this, { capture, model, measures });
    this.#cards.clear();
    this.#thumbnails = null;
    const { layers, num_heads: numHeads } = capture.document;
    for (const layer of layers) {
      for (let head = 0; head < numHeads; head++) {
        const button = create("button", { className: "card", type: "button" }, [
          create("canvas", { width: 1, height: 1 }),
          create("span", { className: "name", textContent: `${layer}.${head}` }),
          create("span", { className: "bar" }, [create("i")]),
          create("span", { className: "pattern" }, [create("span", { textContent: "\u00a0" }), create("b")]),
        ]);
        button.addEventListener("click", () => this.onchoose(layer, head));
        this.#cards.set(`${layer}.${head}`, { layer, head, button, entry: null });
      }
    }
    this.sort(LAYER);
  }

  /** @param {{shape: number[], values: Float32Array, factor: number} | null} thumbnails null: those from before */
  draw(thumbnails, paint) {
    this.#thumbnails = thumbnails ?? this.#thumbnails;
    if (!this.#thumbnails) return;
    const { shape: [, numHeads, rows, columns], values, factor } = this.#thumbnails;
    const size = rows * columns, { layers } = this.capture.document;
    for (const { layer, head, button } of this.#cards.values()) {
      const begin = (layers.indexOf(layer) * numHeads + head) * size;
      const cells = values.subarray(begin, begin + size);
      const sight = this.model.layers[layer];
      const isHidden = (column) => paint.hidesFirst && column === 0;
      const peak = cells.reduce((most, value, at) => (isHidden(at % columns) ? most : Math.max(most, value)), 0);
      const isBare = (row, column) => isHidden(column) || isMasked(row, column, factor, this.capture.length, sight);
      const image = paintCells(cells, columns, { scale: paint.scale, peak, isSigned: false }, isBare);
      const [canvas] = button.children;
      [canvas.width, canvas.height] = [columns, rows];
      canvas.getContext("2d").putImageData(image, 0, 0);
    }
  }

  /** Measures of some heads, as they come. */
  measure(entries) {
    for (const entry of entries) {
      const card = this.#cards.get(`${entry.layer}.${entry.head}`);
      card.entry = entry;
      this.#describe(card);
    }
  }

  entryOf(layer, head) {
    return this.#cards.get(`${layer}.${head}`)?.entry ?? null;
  }

  /** By layer, or by a measure, the largest first. */
  sort(name) {
    this.order = name;
    const cards = [...this.#cards.values()];
    if (name === LAYER) {
      const rows = this.capture.document.layers.flatMap((layer) => {
        const { variant, window } = this.model.layers[layer];
        const about = variant.replaceAll("_", "-") + (window ? `, window ${window}` : "");
        const title = create("h3", { textContent: `Layer ${layer}` }, [create("span", { textContent: about })]);
        return [title, this.#row(cards.filter((card) => card.layer === layer))];
      });
      this.root.replaceChildren(...rows);
    } else {
      const valueOf = ({ entry }) => entry?.[name] ?? -Infinity;
      cards.sort((one, other) => valueOf(other) - valueOf(one));
      this.root.replaceChildren(this.#row(cards));
    }
    for (const card of cards) this.#describe(card);
  }

  /** @param {boolean} isFollowed whether to scroll to it */
  select(layer, head, isFollowed = false) {
    for (const card of this.#cards.values()) {
      const isChosen = card.layer === layer && card.head === head;
      card.button.setAttribute("aria-pressed", isChosen);
      if (isChosen && isFollowed) card.button.scrollIntoView({ block: "nearest" });
    }
  }

  #row(cards) {
    const numRows = Math.ceil(cards.length / MAX_COLUMNS);
    const numColumns = Math.max(MIN_COLUMNS, Math.ceil(cards.length / numRows));
    const className = numColumns > MAX_NUMBERED ? "heads narrow" : "heads";
    const row = create("div", { className }, cards.map(({ button }) => button));
    row.style.setProperty("--columns", numColumns);
    return row;
  }

  #describe({ layer, head, button, entry }) {
    const name = `Layer ${layer}, head ${head}`;
    const lines = entry ? this.measures.map(({ name, text }) => `${text}: ${formatNumber(entry[name])}`) : [];
    button.title = [name, ...lines].join("\n");
    button.setAttribute("aria-label", name);
    if (!entry) return;
    const [, , bar, pattern] = button.children;
    bar.firstChild.style.width = `${100 * Math.min(1, entry.entropy_normalised ?? 0)}%`;
    // What heads are sorted by; else the pattern that is theirs.
    const best = this.order === LAYER ? strongestPattern(this.measures, entry) : null;
    const [word, number] = pattern.children;
    word.textContent = best ? best.measure.word : formatNumber(entry[this.order] ?? null);
    number.textContent = best ? best.value.toFixed(2).replace(/^0/, "") : "";
  }
}
