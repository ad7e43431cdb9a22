/** The measures of heads that the page shows; docs/attention-api.md defines them. */

/**
 * Of each: its name in answers and in questions, a label, and what it is. `word`: of a pattern, short enough for a
 * card. `needs`: which models have it.
 */
export const MEASURES = [
  { name: "entropy_normalised", asked: "entropy", label: "entropy, 0 to 1", text: "entropy by the largest possible" },
  { name: "entropy_bits", asked: "entropy", label: "entropy, bits", text: "entropy in bits" },
  { name: "sink", asked: "sink", label: "first key", text: "weight on the first key", word: "first" },
  {
    name: "previous_token", asked: "previous_token", label: "key before", word: "prev",
    text: "weight on the key before",
  },
  { name: "self", asked: "self", label: "own key", text: "weight on the query's own key", word: "self" },
  {
    name: "duplicate_token", asked: "duplicate_token", label: "same token", word: "same",
    text: "weight on the same token, earlier", needs: readsIds,
  },
  {
    name: "induction", asked: "induction", label: "after same token", word: "induct",
    text: "induction: weight right after the same token, earlier", needs: readsIds,
  },
  {
    name: "special", asked: "special", label: "special tokens", word: "special",
    text: "weight on special tokens", needs: hasSpecial,
  },
  {
    name: "negative", asked: "negative", label: "opposite keys",
    text: "weight on keys with z below 0", needs: hasExpressive,
  },
  { name: "distance", asked: "distance", label: "distance, steps", text: "distance in steps" },
];

function readsIds(model) {
  return model.num_features === null;
}

function hasSpecial(model) {
  return model.reads_text || model.leading_row;
}

function hasExpressive(model) {
  return model.layers.some(({ variant }) => variant === "expressive");
}

/** Those that a model has. */
export const measuresOf = (model) => MEASURES.filter(({ needs }) => !needs || needs(model));

/** What to ask for, each once. */
export const namesOf = (measures) => [...new Set(measures.map(({ asked }) => asked))];

/** The pattern with the most weight, and how much that is; null if there is none. */
export function strongestPattern(measures, entry) {
  let best = null;
  for (const measure of measures) {
    const value = entry[measure.name];
    if (measure.word && value !== null && (best === null || value > best.value)) best = { measure, value };
  }
  return best;
}

/** A number as people read it; a dash where there is none. */
export function formatNumber(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  if (Math.abs(value) < 10 ** -digits) return value.toExponential(1);
  return value.toFixed(digits);
}
