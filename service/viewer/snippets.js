/** What is seen, as a request that one can paste. The key is never in it. */

import { addressOf, pathOf } from "./api.js";

/** Weights that a JSON answer may hold. */
const MAX_JSON = 65536;

export function writeCurl({ model, version, sequence, layer, head, query, length, hasKey }) {
  const question = { sequences: [sequence], quantity: "weights", layers: [layer], heads: [head] };
  if (query !== null) question.queries = [query];
  const isLarge = (query === null ? length : 1) * length > MAX_JSON;
  return [
    `curl ${quote(addressOf(pathOf(model, version, "attention")))}`,
    hasKey && `-H "X-Api-Key: $ATTNSERVE_API_KEY"`,
    `--json ${quote(JSON.stringify(question))}`,
    isLarge && "-H 'Accept: application/x-safetensors' -o weights.safetensors",
  ]
    .filter(Boolean)
    .join(" \\\n  ");
}

export function writePython({ model, version, sequence, layer, head, query, hasKey }) {
  const service = addressOf("").replace(/\/$/, "");
  const queries = query === null ? '"all"' : `[${query}]`;
  return [
    "from attnserve.client import Client",
    "",
    // Strings and lists of JSON are those of Python.
    `client = Client(${JSON.stringify(service)})${hasKey ? "  # its key is in ATTNSERVE_API_KEY" : ""}`,
    `attention = client.attention(`,
    `    ${JSON.stringify(model)}, [${JSON.stringify(sequence)}], version=${version},`,
    `    quantity="weights", layers=[${layer}], heads=[${head}], queries=${queries},`,
    `)`,
    `weights = attention["weights"][0, 0]  # [queries, keys]`,
    "",
  ].join("\n");
}

function quote(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
