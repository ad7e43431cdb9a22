/** The head that is looked at: its map, its lines, and everything that follows a pointer. */

import { SCALES } from "./colours.js";
import { create, find } from "./dom.js";
import { countSeen, isMasked } from "./geometry.js";
import { LatestLine } from "./lines.js";
import { Matrix } from "./matrix.js";
import { describeCell, showLegend, showMeasures, showMetric, showStrongest } from "./side.js";
import { cutTiles, Tiles } from "./tiles.js";
import { TokenStrip } from "./tokens.js";

/** Steps up to which a map with signs is fetched as a whole: 4 MB. */
const MAX_SIGNED = 1024;

export class HeadView {
  #hovered = null;
  #signed = null;
  #tiles = null;

  /** @param {import("./state.js").State} state read and written: it is what the address says */
  constructor(state, { onlock, onproblem }) {
    Object.assign(this, { state, onlock, onproblem });
    const refresh = () => this.refresh();
    // Two, so that a cell's row and a key's column do not push each other out.
    this.rows = new LatestLine(refresh, onproblem);
    this.columns = new LatestLine(refresh, onproblem);
    const onhover = (cell) => {
      this.#hovered = cell;
      this.refresh();
    };
    const ofStep = (step) => (state.by === "query" ? { query: step, key: null } : { query: null, key: step });
    this.matrix = new Matrix(find("matrix"), { onhover, onlock: (cell) => this.lock(cell) });
    this.strip = new TokenStrip(find("strip"), {
      onhover: (step) => onhover(step === null ? null : ofStep(step)),
      onlock: (step) => this.lock(ofStep(step)),
    });
  }

  /** Another sequence. */
  show(capture, model, measures) {
    Object.assign(this, { capture, model, measures, tokens: capture.document.tokens[0] });
    this.#hovered = null;
    this.strip.show(this.tokens);
  }

  /** Another head of it. */
  choose(entry) {
    const { layer, head } = this.state, { capture } = this, { layers, num_heads: numHeads, metric } = capture.document;
    this.sight = this.model.layers[layer];
    const { variant } = this.sight;
    find("head").textContent = `Layer ${layer}, head ${head}`;
    find("head").append(create("span", { textContent: variant.replaceAll("_", "-") }));
    this.#signed = null;
    const hasSigns = variant === "expressive";
    find("sign-label").hidden = !hasSigns;
    find("sign").disabled = capture.length > MAX_SIGNED;
    find("sign-label").title = find("sign").disabled ? `up to ${MAX_SIGNED} steps` : "red: parallel; blue: opposite";
    this.isSigned = this.state.isSigned && hasSigns && capture.length <= MAX_SIGNED;
    showMetric(metric[layers.indexOf(layer)], head, numHeads);
    this.measure(entry);
    this.#makeTiles(layer, head);
  }

  measure(entry) {
    showMeasures(this.measures, entry);
  }

  /** Scale, first key or signs have changed. */
  repaint() {
    const { scale, hidesFirst } = this.state;
    this.matrix.paint = { scale, hidesFirst, isSigned: this.isSigned };
    this.refresh();
  }

  #makeTiles(layer, head) {
    const { capture, isSigned } = this;
    const { length, numZooms } = capture;
    let cut = null;
    const loadSigned = async (address) => {
      cut ??= capture.signed(layer, head).then(({ values }) => {
        // Not those of a head that was left meanwhile.
        if (this.#tiles === tiles) this.#signed = values;
        return cutTiles(values, length, numZooms);
      });
      return (await cut)(address);
    };
    const load = isSigned ? loadSigned : (address, signal) => capture.tile(layer, head, address, signal);
    const tiles = (this.#tiles = new Tiles({
      load, length, numZooms, sight: this.sight, onproblem: this.onproblem,
      onchange: () => {
        this.matrix.redraw();
        this.#showLegend();
      },
    }));
    this.matrix.show(tiles, this.tokens);
    this.repaint();
  }

  #showLegend() {
    const peaks = this.#tiles.findPeaks(), { scale, hidesFirst } = this.state;
    if (peaks) showLegend({ scale, hidesFirst, isSigned: this.isSigned, peak: hidesFirst ? peaks.others : peaks.all });
  }

  /** Hold on to what was clicked, or let go of it if it was held already. */
  lock(cell) {
    const { state } = this;
    const isSame = cell && cell.query === state.query && cell.key === state.key;
    [state.query, state.key] = isSame || !cell ? [null, null] : [cell.query, cell.key];
    this.refresh();
    this.onlock();
  }

  /** Move what is locked, and follow it. */
  step(queries, keys) {
    const { state } = this, last = this.capture.length - 1;
    const move = (step, by) => (step === null && !by ? null : Math.min(last, Math.max(0, (step ?? -1) + by)));
    this.#hovered = null;
    [state.query, state.key] = [move(state.query, queries), move(state.key, keys)];
    this.reveal();
    this.refresh();
    this.onlock();
  }

  reveal() {
    const { query, key, by } = this.state;
    this.matrix.reveal(query ?? key ?? 0, key ?? query ?? 0);
    this.strip.reveal(by === "query" ? query ?? key : key ?? query);
  }

  /** Redraw what depends on what is pointed at, or locked. */
  refresh() {
    const { state, capture, tokens } = this;
    if (!capture || !this.#tiles) return;
    const locked = state.query === null && state.key === null ? null : { query: state.query, key: state.key };
    const pointed = this.#hovered ?? locked;
    this.matrix.mark(this.#hovered, locked);
    this.#showLegend();
    const axis = state.by, step = pointed?.[axis] ?? locked?.[axis] ?? null;
    const lines = axis === "query" ? this.rows : this.columns;
    const line = step === null ? null : lines.get(capture, state.layer, state.head, axis, step);
    this.#shade(axis, step, line, locked);
    showStrongest(tokens, axis, step, line);
    this.#readOut(pointed);
  }

  #shade(axis, step, line, locked) {
    const { scale, hidesFirst } = this.state, { length } = this.capture;
    const isShown = (other) => {
      const [query, key] = axis === "query" ? [step, other] : [other, step];
      return !isMasked(query, key, 1, length, this.sight) && !(hidesFirst && key === 0 && axis === "query");
    };
    let shades = null;
    if (line) {
      const peak = line.reduce((most, weight, other) => (isShown(other) ? Math.max(most, weight) : most), 0);
      shades = line.map((weight, other) => (peak > 0 && isShown(other) ? SCALES[scale](weight / peak) : 0));
    }
    const isSeen = step === null ? null : isShown;
    this.strip.mark({ shades, isSeen, hovered: this.#hovered?.[axis] ?? null, locked: locked?.[axis] ?? null });
  }

  #readOut(pointed) {
    const { state, capture, tokens } = this;
    if (!pointed) {
      find("readout").textContent = "";
      return;
    }
    const { query, key } = pointed, isCell = query !== null && key !== null;
    find("readout").textContent = describeCell({
      tokens, query, key,
      row: isCell ? this.rows.get(capture, state.layer, state.head, "query", query) : null,
      isMasked: isCell && isMasked(query, key, 1, capture.length, this.sight),
      isNegative: isCell && this.isSigned && this.#signed?.[query * capture.length + key] < 0,
      numSeen: isCell ? countSeen(query, capture.length, this.sight) : 0,
    });
  }
}
