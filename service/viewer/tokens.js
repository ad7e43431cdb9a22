/** The sequence as a strip of tokens, on one canvas however long it is: only the lines in sight are drawn. */

import { showToken } from "./words.js";

const FONT = "13px ui-sans-serif, system-ui, sans-serif";
const LINE = 26, BOX = 21, PADDING = 4;
/** Before a token that begins with a blank, which is not written then, and before others. */
const BLANK = 5, GAP = 1;

export class TokenStrip {
  #frame = 0;
  #tokens = [];
  /** @type {{left: number, width: number, line: number, text: string}[]} */
  #boxes = [];
  #marks = { shades: null, isSeen: null, hovered: null, locked: null };

  /** @param {HTMLElement} scroller with a canvas, and an element that is as high as all lines */
  constructor(scroller, { onhover, onlock }) {
    this.scroller = scroller;
    [this.canvas, this.spacer] = scroller.children;
    this.context = this.canvas.getContext("2d");
    scroller.addEventListener("scroll", () => this.redraw(), { passive: true });
    this.canvas.addEventListener("pointermove", (event) => onhover(this.#stepAt(event)));
    this.canvas.addEventListener("pointerleave", () => onhover(null));
    this.canvas.addEventListener("click", (event) => {
      const step = this.#stepAt(event);
      if (step !== null) onlock(step);
    });
    new ResizeObserver(() => this.#layOut()).observe(scroller);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  show(tokens) {
    this.#tokens = tokens;
    this.#marks = { shades: null, isSeen: null, hovered: null, locked: null };
    this.scroller.scrollTop = 0;
    this.#layOut();
  }

  /**
   * @param {{shades: Float32Array | null, isSeen: ((step: number) => boolean) | null, hovered: number | null,
   *   locked: number | null}} marks shades: 0 to 1, how strongly each token is filled
   */
  mark(marks) {
    this.#marks = marks;
    this.redraw();
  }

  /** Scroll until a token is in sight. */
  reveal(step) {
    const box = this.#boxes[step];
    if (!box) return;
    const top = box.line * LINE, { scrollTop, clientHeight } = this.scroller;
    if (top < scrollTop || top + LINE > scrollTop + clientHeight) this.scroller.scrollTop = top - clientHeight / 2;
  }

  redraw() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  #layOut() {
    const { context } = this, width = this.scroller.clientWidth;
    context.font = FONT;
    let left = 0, line = 0;
    this.#boxes = this.#tokens.map((token, step) => {
      const isSpaced = /^ \S/.test(token.text ?? " x");
      const text = showToken(isSpaced && token.text ? { ...token, text: token.text.slice(1) } : token, step);
      const box = { width: context.measureText(text).width + 2 * PADDING, text };
      if (left > 0) left += isSpaced ? BLANK : GAP;
      if (left + box.width > width && left > 0) [left, line] = [0, line + 1];
      const placed = { ...box, left, line };
      left += box.width;
      if (token.text?.includes("\n")) [left, line] = [0, line + 1];
      return placed;
    });
    this.spacer.style.height = `${(line + 1) * LINE}px`;
    this.redraw();
  }

  /** The first token of a line, or of the first one after it: lines only grow. */
  #firstOf(line) {
    let [low, high] = [0, this.#boxes.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#boxes[middle].line < line) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #stepAt({ offsetX, offsetY }) {
    const line = Math.floor((offsetY + this.scroller.scrollTop) / LINE);
    for (let step = this.#firstOf(line); step < this.#boxes.length && this.#boxes[step].line === line; step++) {
      const { left, width } = this.#boxes[step];
      if (offsetX >= left && offsetX < left + width) return step;
    }
    return null;
  }

  #draw() {
    const { canvas, context, scroller } = this, ratio = devicePixelRatio;
    const { clientWidth: width, clientHeight: height, scrollTop } = scroller;
    canvas.style.transform = `translateY(${scrollTop}px)`;
    const size = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) {
      [canvas.width, canvas.height] = size;
      [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
    }
    const style = getComputedStyle(scroller);
    const [ink, muted, accent] = ["ink", "muted", "accent"].map((name) => style.getPropertyValue(`--${name}`));
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = FONT;
    context.textBaseline = "middle";
    const { shades, isSeen, hovered, locked } = this.#marks;
    const end = Math.ceil((scrollTop + height) / LINE);
    for (let step = this.#firstOf(Math.floor(scrollTop / LINE)); step < this.#boxes.length; step++) {
      const box = this.#boxes[step];
      if (box.line >= end) break;
      const top = box.line * LINE - scrollTop + (LINE - BOX) / 2;
      if (shades?.[step]) {
        context.globalAlpha = 0.75 * shades[step];
        context.fillStyle = accent;
        roundBox(context, box.left, top, box.width);
        context.fill();
        context.globalAlpha = 1;
      }
      if (step === locked || step === hovered) {
        context.strokeStyle = accent;
        context.lineWidth = step === locked ? 2 : 1;
        roundBox(context, box.left + 1, top + 1, box.width - 2, BOX - 2);
        context.stroke();
      }
      context.fillStyle = isSeen && !isSeen(step) ? muted : ink;
      context.globalAlpha = isSeen && !isSeen(step) ? 0.6 : 1;
      context.fillText(box.text, box.left + PADDING, top + BOX / 2 + 0.5);
      context.globalAlpha = 1;
    }
  }
}

function roundBox(context, left, top, width, height = BOX) {
  context.beginPath();
  context.roundRect(left, top, width, height, 3);
}
