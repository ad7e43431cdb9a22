/** Inputs: what a model may be asked about, as people type it and as the API takes it. */

import { Problem } from "./api.js";

const TEXT = "When the cat saw the dog, the cat ran up the tree and the dog ran after the cat.";
/** Of a made-up input, in steps. */
const MADE_UP = 32, MADE_UP_FEATURES = 16;

export function describeInput(model) {
  const most = `up to ${model.limits.max_length}`;
  if (model.reads_text) return `Text, ${most} tokens`;
  if (model.num_features !== null) return `Vectors of ${model.num_features} numbers as JSON, ${most}`;
  const named = model.labels && model.task === "next_token" ? " or labels" : "";
  return `Ids below ${model.vocabulary_size}${named} as JSON, ${most}`;
}

/** An input that the model takes, the same each time: a text, or numbers whose second half repeats the first. */
export function makeInput(model) {
  const { max_length: most } = model.limits;
  if (model.reads_text) return TEXT.slice(0, Math.max(1, most - 2));
  const next = makeGenerator(1);
  if (model.num_features !== null) {
    const vector = () => Array.from({ length: model.num_features }, () => Math.round(next() * 100) / 100);
    return JSON.stringify(Array.from({ length: Math.min(MADE_UP_FEATURES, most) }, vector));
  }
  const half = Array.from({ length: Math.ceil(MADE_UP / 2) }, () => Math.floor(next() * model.vocabulary_size));
  return JSON.stringify([...half, ...half].slice(0, most));
}

/** Numbers from 0 to 1 by a linear congruence. */
function makeGenerator(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** The sequence that somebody typed: a text, or JSON. What is in it, the service judges. @throws {Problem} */
export function readSequence(model, input) {
  if (model.reads_text) return input;
  try {
    return JSON.parse(input);
  } catch {
    throw new Problem(0, `input: expected JSON, as ${makeInput(model).slice(0, 24)}…, got something else`, "input");
  }
}

/** Fields of a request about one sequence, as JSON. */
export function writeBody(model, sequence, positions) {
  const body = { sequences: [sequence] };
  if (model.task !== "classify_sequence") body.positions = positions;
  return JSON.stringify(body);
}
