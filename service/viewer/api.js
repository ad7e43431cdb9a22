/** Requests to the service, by relative addresses, so that a gateway may put it below a path. */

import { parseTensors } from "./safetensors.js";

const KEY = "attnserve.key";
const TENSORS = "application/x-safetensors";

/** What the service says that is wrong, in its own words. */
export class Problem extends Error {
  constructor(status, detail, field = "") {
    super(detail);
    this.status = status;
    this.field = field;
  }

  /** Whether another key could help. */
  get isAboutKey() {
    return this.status === 401 || (this.status === 403 && ["X-Api-Key", "Authorization"].includes(this.field));
  }
}

/** The key, for as long as this tab lives; "" without one. */
export const readKey = () => sessionStorage.getItem(KEY) ?? "";

export function keepKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** The path of what a version of a model is asked for, as `predict`. */
export const pathOf = (model, version, what) => `v1/models/${encodeURIComponent(model)}/versions/${version}/${what}`;

/** The whole address of a path of the API, as `v1/models`. */
export const addressOf = (path) => new URL(path, document.baseURI).href.split("#")[0];

/** The answer to a request for a path, as `v1/models`; a `body` is JSON. @throws {Problem} */
export async function ask(path, { method = "GET", body, accept = "application/json", signal, keepalive } = {}) {
  const headers = { Accept: accept };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const key = readKey();
  if (key) headers["X-Api-Key"] = key;
  let response;
  try {
    response = await fetch(addressOf(path), { method, headers, body, signal, keepalive });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The service does not answer.");
  }
  if (!response.ok) throw await readProblem(response);
  return response;
}

async function readProblem(response) {
  try {
    const { detail, errors } = await response.json();
    if (typeof detail === "string") return new Problem(response.status, detail, errors?.[0]?.field);
  } catch {
    // Of a gateway, which has words of its own.
  }
  return new Problem(response.status, `The answer was ${response.status} ${response.statusText}.`);
}

export const askJson = async (path, options) => (await ask(path, options)).json();

/** The tensors of an answer, and its JSON part. */
export async function askTensors(path, options) {
  const response = await ask(path, { ...options, accept: TENSORS });
  return parseTensors(await response.arrayBuffer());
}
