/** What the page shows, as the fragment of its address: a link opens the same view again, and no server sees it. */

/** Characters of an input that still fit a link. */
const MAX_INPUT = 4000;
const NUMBERS = ["version", "layer", "head", "query", "key"];
const CHOICES = { scale: ["sqrt", "linear", "log"], by: ["query", "key"] };

/**
 * @typedef {{model: string | null, version: number | null, layer: number, head: number, query: number | null,
 *   key: number | null, scale: "sqrt" | "linear" | "log", by: "query" | "key", hidesFirst: boolean, isSigned: boolean,
 *   input: string | null}} State
 * @param {string} fragment with or without its #
 * @returns {State}
 */
export function readState(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const state = { model: given.get("model"), input: given.get("input") };
  for (const name of NUMBERS) state[name] = /^\d{1,9}$/.test(given.get(name) ?? "") ? Number(given.get(name)) : null;
  for (const name in CHOICES) {
    state[name] = CHOICES[name].find((word) => word === given.get(name)) ?? CHOICES[name][0];
  }
  state.hidesFirst = given.get("first") === "hidden";
  state.isSigned = given.get("sign") === "shown";
  return { ...state, layer: state.layer ?? 0, head: state.head ?? 0 };
}

/** @param {State} state */
export function writeState(state) {
  const written = new URLSearchParams();
  if (state.model !== null) written.set("model", state.model);
  for (const name of NUMBERS) if (state[name] !== null) written.set(name, state[name]);
  for (const name in CHOICES) if (state[name] !== CHOICES[name][0]) written.set(name, state[name]);
  if (state.hidesFirst) written.set("first", "hidden");
  if (state.isSigned) written.set("sign", "shown");
  if (state.input !== null && state.input.length <= MAX_INPUT) written.set("input", state.input);
  return `#${written}`;
}

/** Whether a link has the input, too. */
export const fitsLink = (input) => input.length <= MAX_INPUT;
