/** A capture: one forward pass that the service keeps, and everything the page asks about it. */

import { ask, askJson, askTensors, pathOf, Problem } from "./api.js";
import { Cache } from "./cache.js";
import { decodeRoots } from "./safetensors.js";

const CODED = "dtype=uint8_sqrt";
/** Weights that one request for diagnostics may be computed of; longer ones are asked for layer by layer. */
const MAX_MEASURED = 2 ** 27;
const MAX_LINES = 256;

export class Capture {
  #path;
  #body;
  #renewing = null;
  #lines = new Cache(MAX_LINES);

  constructor(path, body, document) {
    this.#path = path;
    this.#body = body;
    this.document = document;
  }

  /** Run a forward pass, and have it kept; `body` is JSON. */
  static async take(model, version, body, signal) {
    const path = pathOf(model, version, "captures");
    return new Capture(path, body, await askJson(path, { method: "POST", body, signal }));
  }

  get length() {
    return this.document.length;
  }

  get numZooms() {
    return this.document.num_zooms;
  }

  /** Tell the service that nobody needs it any more; as the page goes, if that is why. */
  async delete(keepalive = false) {
    try {
      await ask(`v1/captures/${this.document.id}`, { method: "DELETE", keepalive });
    } catch {
      // It ends by itself.
    }
  }

  /** What `part` of it the service answers; a capture that is gone is taken again, once. */
  async #ask(how, part, signal) {
    const { id } = this.document;
    try {
      return await how(`v1/captures/${id}/${part}`, { signal });
    } catch (error) {
      if (!(error instanceof Problem) || error.status !== 410) throw error;
    }
    // Many tiles find out at once.
    if (this.document.id === id) await (this.#renewing ??= this.#renew());
    return how(`v1/captures/${this.document.id}/${part}`, { signal });
  }

  async #renew() {
    try {
      this.document = await askJson(this.#path, { method: "POST", body: this.#body });
    } finally {
      this.#renewing = null;
    }
  }

  /** A part of it as a file, for a download. */
  async file(part) {
    return (await this.#ask(ask, part)).blob();
  }

  /** All heads, small: weights [layers, heads, rows, columns], whose cells are the largest of factor x factor. */
  async thumbnails(signal) {
    const { answer, tensors } = await this.#ask(askTensors, `thumbnails?${CODED}`, signal);
    return { ...decodeRoots(tensors, "thumbnails"), factor: answer.factor };
  }

  /** A tile of a head: weights [rows, columns]. */
  async tile(layer, head, { zoom, y, x }, signal) {
    const { tensors } = await this.#ask(askTensors, `tiles/${layer}/${head}/${zoom}/${y}/${x}?${CODED}`, signal);
    return decodeRoots(tensors, "tile");
  }

  /** A head's map with the signs of its scores: [queries, keys]. */
  async signed(layer, head, signal) {
    const { tensors } = await this.#ask(askTensors, `attention?quantity=signed&layers=${layer}&heads=${head}`, signal);
    const { shape, values } = tensors["sequences.0.signed"];
    return { shape: shape.slice(-2), values };
  }

  /**
   * Diagnostics of every head, as they come: an entry per layer and head.
   *
   * @returns {AsyncGenerator<Record<string, any>[]>}
   */
  async *measures(names, signal) {
    const { layers, num_heads: numHeads, length } = this.document;
    const most = Math.max(1, Math.floor(MAX_MEASURED / (numHeads * length * length)));
    for (let begin = 0; begin < layers.length; begin += most) {
      const part = `attention?diagnostics=${names}&layers=${layers.slice(begin, begin + most)}`;
      yield (await this.#ask(askJson, part, signal)).diagnostics;
    }
  }

  /** A line of a head's map that has come already, if it has. @returns {Float32Array | undefined} */
  knownLine(layer, head, axis, step) {
    return this.#lines.get(`${layer}/${head}/${axis}/${step}`);
  }

  /**
   * A line of a head's map, exact: what query `step` looks at, or who looks at key `step`.
   *
   * @param {"query" | "key"} axis
   * @returns {Promise<Float32Array>}
   */
  async line(layer, head, axis, step, signal) {
    const known = this.knownLine(layer, head, axis, step);
    if (known) return known;
    const part =
      axis === "query"
        ? `rows/${layer}/${head}?queries=${step}`
        : `attention?quantity=weights&layers=${layer}&heads=${head}&keys=${step}`;
    const { tensors } = await this.#ask(askTensors, part, signal);
    const { values } = tensors[axis === "query" ? "weights" : "sequences.0.weights"];
    this.#lines.set(`${layer}/${head}/${axis}/${step}`, values);
    return values;
  }
}
