/** What stands beside the map: its legend, the strongest keys, the measures of the head, the metric of its layer. */

import { DIVERGING, INVERSES, SEQUENTIAL } from "./colours.js";
import { create, createBar, find } from "./dom.js";
import { rankOf, strongest } from "./lines.js";
import { formatNumber } from "./measures.js";
import { nameStep } from "./words.js";

const MAX_STRONGEST = 8;

/** A weight with four digits that count. */
const formatWeight = (weight) =>
  weight !== 0 && weight < 1e-3 ? weight.toExponential(3) : `${Number(weight.toPrecision(4))}`;

/** @param {import("./colours.js").Paint & {hidesFirst: boolean}} paint */
export function showLegend({ scale, peak, isSigned, hidesFirst }) {
  const legend = find("legend"), [canvas, ends, caption] = legend.children;
  const table = isSigned ? DIVERGING : SEQUENTIAL, image = new ImageData(256, 1);
  for (let step = 0; step < 256; step++) image.data.set([...table.subarray(3 * step, 3 * step + 3), 255], 4 * step);
  canvas.getContext("2d").putImageData(image, 0, 0);
  const middle = INVERSES[scale](0.5) * peak, least = INVERSES[scale](0) * peak;
  const labels = isSigned ? [`z < 0: ${formatNumber(peak)}`, "0", `z > 0: ${formatNumber(peak)}`]
    : [`${scale === "log" ? "≤ " : ""}${formatNumber(least)}`, formatNumber(middle), formatNumber(peak)];
  labels.forEach((label, place) => (ends.children[place].textContent = label));
  caption.children[1].textContent = hidesFirst ? "not seen, or the first key" : "not seen";
}

/** Of a line: who has most of it. */
export function showStrongest(tokens, axis, step, line) {
  // Until it is there, what was pointed at before stays.
  if (step !== null && !line) return;
  const title = `Strongest ${axis === "query" ? "keys" : "queries"}`, best = line ? strongest(line, MAX_STRONGEST) : [];
  find("strongest-title").textContent = line ? `${title} of ${axis} ${nameStep(tokens[step], step)}` : title;
  const bars = best.map((other) =>
    createBar(nameStep(tokens[other], other), line[other] / line[best[0]], formatNumber(line[other])));
  const hint = create("li", { className: "note", textContent: "Point at the map or at a token." });
  find("strongest").replaceChildren(...(line ? bars : [hint]));
}

export function showMeasures(measures, entry) {
  const rows = measures.flatMap(({ name, label, text }) => [
    create("dt", { textContent: label, title: text }),
    create("dd", { textContent: entry ? formatNumber(entry[name]) : "…" }),
  ]);
  find("measures").replaceChildren(...rows);
}

/**
 * Of an elliptical layer: by how much each channel of the head's queries is multiplied.
 *
 * @param {number[][] | null} metric [key heads, channels]
 */
export function showMetric(metric, head, numHeads) {
  const section = find("metric"), [, canvas, note] = section.children;
  section.hidden = !metric;
  if (!metric) return;
  const channels = metric[Math.floor((head * metric.length) / numHeads)];
  const most = Math.max(...channels), least = Math.min(...channels);
  canvas.width = canvas.clientWidth * devicePixelRatio;
  canvas.height = canvas.clientHeight * devicePixelRatio;
  const context = canvas.getContext("2d"), width = canvas.width / channels.length;
  context.fillStyle = getComputedStyle(canvas).getPropertyValue("--accent");
  channels.forEach((value, channel) => {
    const height = most > 0 ? (value / most) * canvas.height : 0;
    context.fillRect(channel * width, canvas.height - height, Math.max(1, width - devicePixelRatio), height);
  });
  note.textContent = `${channels.length} channels, ${formatNumber(least)} to ${formatNumber(most)}, of the last step`;
}

/** A sentence about what is pointed at; `row` is that of the query, once it is there. */
export function describeCell({ tokens, query, key, row, numSeen, isMasked, isNegative }) {
  const name = (axis, step) => `${axis} ${nameStep(tokens[step], step)}`;
  if (query === null) return name("key", key);
  if (key === null) return name("query", query);
  const cell = `${name("query", query)} → ${name("key", key)}`;
  if (isMasked) return `${cell}: not seen`;
  if (!row) return `${cell}: …`;
  const sign = isNegative ? ", z < 0" : "";
  return `${cell}: ${formatWeight(row[key])} (rank ${rankOf(row, key)} of ${numSeen}${sign})`;
}
