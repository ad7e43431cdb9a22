/** Lines of a map, asked for one at a time while a pointer moves over many: the latest counts. */
export class LatestLine {
  #wanted = null;
  #isAsking = false;

  constructor(onarrive, onproblem) {
    this.onarrive = onarrive;
    this.onproblem = onproblem;
  }

  /** The line if it is there; else it is asked for, and `onarrive` called when it is. @returns {Float32Array | null} */
  get(capture, layer, head, axis, step) {
    const known = capture.knownLine(layer, head, axis, step);
    if (known) return known;
    this.#wanted = () => capture.line(layer, head, axis, step);
    if (!this.#isAsking) this.#ask();
    return null;
  }

  async #ask() {
    this.#isAsking = true;
    try {
      while (this.#wanted) {
        const wanted = this.#wanted;
        this.#wanted = null;
        await wanted();
        this.onarrive();
      }
    } catch (error) {
      this.onproblem(error);
    } finally {
      this.#isAsking = false;
    }
  }
}

/** Keys by falling weight, or queries: at most so many. @returns {number[]} */
export function strongest(line, most) {
  const best = [];
  for (let step = 0; step < line.length; step++) {
    if (line[step] <= 0 || (best.length === most && line[step] <= line[best[most - 1]])) continue;
    let at = best.length;
    while (at > 0 && line[best[at - 1]] < line[step]) at--;
    best.splice(at, 0, step);
    if (best.length > most) best.pop();
  }
  return best;
}

/** How many weights of a line are larger, and one more. */
export function rankOf(line, step) {
  return 1 + line.reduce((larger, weight) => larger + (weight > line[step]), 0);
}
