/** Gestures on a canvas: pointing, clicking, dragging with one pointer, pinching with two, turning a wheel. */

/** Pixels that a pointer may stray between down and up and still have clicked. */
const STRAY = 4;
const WHEEL_LINE = 16;

export class Gestures {
  /** @type {Map<number, {x: number, y: number}>} */
  #down = new Map();
  #strayed = 0;

  /** @param {object} listeners `onmove`, `onleave`, `onclick`, `ondrag`, `onzoom`; told pixels from the corner */
  constructor(canvas, listeners) {
    this.listeners = listeners;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      canvas.setPointerCapture(event.pointerId);
      this.#down.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
      if (this.#down.size === 1) this.#strayed = 0;
    });
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => {
      if (this.#down.delete(event.pointerId) && this.#down.size === 0 && this.#strayed <= STRAY) {
        listeners.onclick(event.offsetX, event.offsetY);
      }
    });
    canvas.addEventListener("pointercancel", (event) => this.#down.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => listeners.onleave());
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const pixels = event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_LINE ? WHEEL_LINE : 1);
        // Browsers send pinches of a touchpad as small turns with Ctrl.
        listeners.onzoom(Math.exp(-pixels * (event.ctrlKey ? 0.01 : 0.002)), event.offsetX, event.offsetY);
      },
      { passive: false },
    );
  }

  #move(event) {
    const before = this.#down.get(event.pointerId), now = { x: event.offsetX, y: event.offsetY };
    if (!before) {
      this.listeners.onmove(now.x, now.y);
      return;
    }
    const [other] = [...this.#down].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    this.#down.set(event.pointerId, now);
    this.#strayed += Math.hypot(now.x - before.x, now.y - before.y);
    if (!other) {
      if (this.#strayed > STRAY) this.listeners.ondrag(now.x - before.x, now.y - before.y);
      return;
    }
    this.#strayed = Infinity;
    const apart = (place) => Math.max(1, Math.hypot(place.x - other.x, place.y - other.y));
    // In this order: a map that is shown whole cannot be dragged.
    this.listeners.onzoom(apart(now) / apart(before), (before.x + other.x) / 2, (before.y + other.y) / 2);
    this.listeners.ondrag((now.x - before.x) / 2, (now.y - before.y) / 2);
  }
}
