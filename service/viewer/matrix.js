/** The matrix: the map of one head, in tiles, with its axes; moved, enlarged and pointed at. */

import {
  chooseZoom, clampView, factorOf, fitView, listTiles, revealCell, TILE, tickStep, zoomView,
} from "./geometry.js";
import { Gestures } from "./gestures.js";
import { MAX_IN_SIGHT, WHOLE } from "./tiles.js";
import { showToken } from "./words.js";

const FONT = "11px ui-sans-serif, system-ui, sans-serif";
/** Pixels per weight from which tokens stand beside their rows, and cells have lines between them. */
const LABELLED = 12, LINED = 16;
const GUTTER = 34, MAX_GUTTER = 104, MARGIN = 8;

export class Matrix {
  #canvas;
  #context;
  #frame = 0;
  #fits = true;
  #gutter = GUTTER;
  #tiles = null;
  #view = null;
  #paint = { scale: "sqrt", hidesFirst: false, isSigned: false };
  #hovered = null;
  #locked = null;

  /** @param {object} listeners `onhover` and `onlock`, told a cell {query, key}; of no cell, null */
  constructor(canvas, { onhover, onlock }) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    new Gestures(canvas, {
      onmove: (x, y) => onhover(this.#cellAt(x, y)),
      onleave: () => onhover(null),
      onclick: (x, y) => {
        const cell = this.#cellAt(x, y);
        if (cell) onlock(cell);
      },
      ondrag: (dx, dy) =>
        this.#move((view) => clampView({ ...view, x: view.x - dx / view.cell, y: view.y - dy / view.cell })),
      onzoom: (factor, x, y) => this.#move((view) => zoomView(view, factor, x - this.#gutter, y - this.#gutter)),
    });
    new ResizeObserver(() => this.#resize()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  /** Show another head, of the same sequence or of another. */
  show(tiles, tokens) {
    const isAnother = this.tokens !== tokens;
    this.#tiles?.stop();
    this.#tiles = tiles;
    this.tokens = tokens;
    if (isAnother) {
      this.#fits = true;
      this.#context.font = FONT;
      // Of long texts some: what is longer is cut.
      const widths = tokens.slice(0, 512).map((token, step) => this.#context.measureText(showToken(token, step)).width);
      this.#gutter = Math.min(MAX_GUTTER, Math.max(GUTTER, ...widths.map((width) => width + 12)));
      this.#resize();
    }
    this.redraw();
  }

  set paint(paint) {
    this.#paint = paint;
    this.redraw();
  }

  /** What is pointed at, and what was clicked; each may be half a cell. */
  mark(hovered, locked) {
    [this.#hovered, this.#locked] = [hovered, locked];
    this.redraw();
  }

  zoom(factor) {
    this.#move((view) => zoomView(view, factor, view.width / 2, view.height / 2));
  }

  fit() {
    this.#fits = true;
    this.#resize();
  }

  /** Bring a cell into sight. */
  reveal(query, key) {
    this.#move((view) => revealCell(view, query, key));
  }

  redraw() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      if (this.#tiles && this.#view) this.#draw();
    });
  }

  #move(change) {
    if (!this.#view) return;
    this.#fits = false;
    this.#tiles.forgive();
    this.#view = change(this.#view);
    this.redraw();
  }

  #resize() {
    const { clientWidth, clientHeight } = this.#canvas;
    if (!this.#tiles || clientWidth <= this.#gutter + MARGIN) return;
    const width = clientWidth - this.#gutter - MARGIN, height = clientHeight - this.#gutter - MARGIN;
    const { length } = this.#tiles;
    const isFitted = this.#fits || !this.#view;
    this.#view = isFitted ? fitView(width, height, length) : clampView({ ...this.#view, width, height });
    this.redraw();
  }

  #cellAt(x, y) {
    if (!this.#view) return null;
    const { cell, length, width, height } = this.#view;
    const [left, top] = [x - this.#gutter, y - this.#gutter];
    const key = Math.floor(this.#view.x + left / cell), query = Math.floor(this.#view.y + top / cell);
    const isInside = left >= 0 && top >= 0 && left < width && top < height && key < length && query < length;
    return isInside ? { query, key } : null;
  }

  #draw() {
    const ratio = devicePixelRatio, view = this.#view, context = this.#context;
    const { clientWidth, clientHeight } = this.#canvas;
    const [width, height] = [Math.round(clientWidth * ratio), Math.round(clientHeight * ratio)];
    if (this.#canvas.width !== width || this.#canvas.height !== height) {
      [this.#canvas.width, this.#canvas.height] = [width, height];
    }
    const style = getComputedStyle(this.#canvas);
    this.colours = Object.fromEntries(
      ["muted", "masked", "accent", "line"].map((name) => [name, style.getPropertyValue(`--${name}`)]),
    );
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    context.save();
    context.beginPath();
    context.rect(this.#gutter * ratio, this.#gutter * ratio, view.width * ratio, view.height * ratio);
    context.clip();
    this.#drawTiles(ratio);
    context.restore();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.#drawMarks();
    this.#drawAxis(false);
    this.#drawAxis(true);
  }

  #drawTiles(ratio) {
    const view = this.#view, context = this.#context, tiles = this.#tiles, { numZooms } = tiles;
    let chosen = chooseZoom(view.cell * ratio, numZooms), wanted = listTiles(view, chosen, numZooms);
    // On a large screen more would push each other out for ever.
    while (wanted.length > MAX_IN_SIGHT) wanted = listTiles(view, --chosen, numZooms);
    // The whole map in one tile is small, and stands in for all that is not there yet.
    tiles.want([WHOLE, ...wanted]);
    this.#canvas.ariaBusy = tiles.isAsking;
    context.fillStyle = this.colours.masked;
    const place = (at, begin) => Math.round((this.#gutter + (at - begin) * view.cell) * ratio);
    const fill = (top, left, bottom, right) => {
      const box = [place(left, view.x), place(top, view.y), place(right, view.x), place(bottom, view.y)];
      // What is below a tile would shine through where nothing may be seen.
      context.fillRect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
      return box;
    };
    fill(0, 0, view.length, view.length);
    const peaks = tiles.findPeaks();
    if (!peaks) return;
    const { scale, hidesFirst, isSigned } = this.#paint;
    const paint = { scale, hidesFirst, isSigned, peak: hidesFirst ? peaks.others : peaks.all };
    context.imageSmoothingEnabled = false;
    for (let zoom = 0; zoom <= chosen; zoom++) {
      const factor = factorOf(zoom, numZooms), size = TILE * factor;
      for (const address of zoom === chosen ? wanted : listTiles(view, zoom, numZooms)) {
        const tile = tiles.find(address);
        if (!tile) continue;
        const picture = tiles.picture(tile, address, paint);
        const [top, left] = [address.y * size, address.x * size];
        // The last cells of a level may reach beyond the map.
        const bottom = top + picture.height * factor, right = left + picture.width * factor;
        const box = fill(top, left, Math.min(bottom, view.length), Math.min(right, view.length));
        const [endX, endY] = [place(right, view.x), place(bottom, view.y)];
        context.save();
        context.beginPath();
        context.rect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
        context.clip();
        context.drawImage(picture, box[0], box[1], endX - box[0], endY - box[1]);
        context.restore();
      }
    }
  }

  #drawMarks() {
    const view = this.#view, context = this.#context;
    const { x, y, cell, length } = view;
    const right = Math.min(view.width, (length - x) * cell), bottom = Math.min(view.height, (length - y) * cell);
    context.save();
    context.translate(this.#gutter, this.#gutter);
    context.beginPath();
    context.rect(0, 0, right, bottom);
    context.clip();
    context.lineWidth = 1;
    if (cell >= LINED) {
      context.strokeStyle = this.colours.line;
      context.globalAlpha = 0.25;
      context.beginPath();
      for (let at = (Math.ceil(x) - x) * cell; at < right; at += cell) line(context, at, 0, at, bottom);
      for (let at = (Math.ceil(y) - y) * cell; at < bottom; at += cell) line(context, 0, at, right, at);
      context.stroke();
      context.globalAlpha = 1;
    }
    for (const [marked, alpha] of [[this.#locked, 1], [this.#hovered, 0.65]]) {
      if (!marked) continue;
      context.strokeStyle = context.fillStyle = this.colours.accent;
      const thick = Math.max(1, cell);
      const [left, top] = [(marked.key - x) * cell, (marked.query - y) * cell];
      context.globalAlpha = 0.16 * alpha;
      if (marked.query !== null) context.fillRect(0, top, right, thick);
      if (marked.key !== null) context.fillRect(left, 0, thick, bottom);
      context.globalAlpha = alpha;
      context.beginPath();
      if (marked.query !== null) {
        line(context, 0, top, right, top);
        if (cell > 2) line(context, 0, top + cell, right, top + cell);
      }
      if (marked.key !== null) {
        line(context, left, 0, left, bottom);
        if (cell > 2) line(context, left + cell, 0, left + cell, bottom);
      }
      context.stroke();
      context.globalAlpha = 1;
    }
    context.restore();
  }

  /** Tokens, or numbers of steps, along the keys at the top or the queries at the left. */
  #drawAxis(isTop) {
    const view = this.#view, context = this.#context, { cell, length } = view;
    const begin = isTop ? view.x : view.y, extent = isTop ? view.width : view.height;
    context.save();
    context.font = FONT;
    context.textBaseline = "middle";
    context.textAlign = isTop && cell < LABELLED ? "center" : isTop ? "left" : "right";
    const step = cell >= LABELLED ? 1 : tickStep(cell, isTop ? 44 : 28);
    const marked = [this.#hovered, this.#locked].map((cell) => (isTop ? cell?.key : cell?.query));
    for (let at = Math.ceil(Math.max(0, begin - 0.5) / step) * step; at < length; at += step) {
      const middle = (at + 0.5 - begin) * cell;
      if (middle > extent) break;
      if (middle < 0) continue;
      context.fillStyle = marked.includes(at) ? this.colours.accent : this.colours.muted;
      const text = cell >= LABELLED ? fitText(context, showToken(this.tokens[at], at), this.#gutter - 10) : `${at}`;
      context.save();
      if (isTop) context.translate(this.#gutter + middle, this.#gutter - 6);
      else context.translate(this.#gutter - 6, this.#gutter + middle);
      if (isTop && cell >= LABELLED) context.rotate(-Math.PI / 2);
      context.fillText(text, 0, isTop && cell < LABELLED ? -4 : 0);
      context.restore();
    }
    context.restore();
  }
}

function line(context, x0, y0, x1, y1) {
  const crisp = (at) => Math.round(at) + 0.5;
  context.moveTo(x0 === x1 ? crisp(x0) : x0, y0 === y1 ? crisp(y0) : y0);
  context.lineTo(x0 === x1 ? crisp(x1) : x1, y0 === y1 ? crisp(y1) : y1);
}

/** A text cut to so many pixels. */
export function fitText(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let end = text.length - 1;
  while (end > 1 && context.measureText(`${text.slice(0, end)}…`).width > width) end--;
  return `${text.slice(0, end)}…`;
}
