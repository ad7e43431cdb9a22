/** Predictions: of the last position, or of the one that was chosen. */

import { askJson, pathOf } from "./api.js";
import { createBar, find } from "./dom.js";
import { writeBody } from "./inputs.js";
import { formatNumber } from "./measures.js";
import { nameStep, showToken } from "./words.js";

const MAX_SHOWN = 5;

export class Predictions {
  #controller = new AbortController();
  #position = null;

  constructor(onproblem) {
    this.onproblem = onproblem;
  }

  /** Those that came with a capture. */
  show(model, sequence, document) {
    Object.assign(this, { model, sequence, document });
    this.#position = null;
    this.#controller.abort();
    this.#write(document.predictions[0]);
  }

  /** Those of another step; null: the last one. */
  async choose(step) {
    if (this.model.task === "classify_sequence" || step === this.#position) return;
    this.#position = step;
    this.#controller.abort();
    if (step === null) {
      this.#write(this.document.predictions[0]);
      return;
    }
    const { signal } = (this.#controller = new AbortController());
    const path = pathOf(this.document.model, this.document.version, "predict");
    try {
      const body = writeBody(this.model, this.sequence, [step]);
      const answer = await askJson(path, { method: "POST", body, signal });
      this.#write(answer.predictions[0]);
    } catch (error) {
      if (error.name !== "AbortError") this.onproblem(error);
    }
  }

  #write({ positions, top }) {
    const [step] = positions ?? [null];
    const where = { next_token: "after", classify_token: "of" }[this.model.task];
    find("predicted").textContent = step === null
      ? "Predictions"
      : `Predictions ${where} ${nameStep(this.document.tokens[0][step], step)}`;
    const bars = top[0].slice(0, MAX_SHOWN).map(({ id, label, probability }) =>
      createBar(showToken({ id, text: label }, id), probability, formatNumber(probability, 4)));
    find("top").replaceChildren(...bars);
    find("predictions").hidden = false;
  }
}
