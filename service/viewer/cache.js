/** A cache of so many entries: the one that nobody asked for longest goes first. */
export class Cache {
  #entries = new Map();

  constructor(size) {
    this.size = size;
  }

  get(name) {
    const entry = this.#entries.get(name);
    if (entry !== undefined) {
      // Maps keep the order in which entries came.
      this.#entries.delete(name);
      this.#entries.set(name, entry);
    }
    return entry;
  }

  set(name, entry) {
    this.#entries.delete(name);
    this.#entries.set(name, entry);
    if (this.#entries.size > this.size) this.#entries.delete(this.#entries.keys().next().value);
  }
}
