/** The page: asks, shows what came, and keeps its address in step. */

import { Atlas, LAYER } from "./atlas.js";
import { askJson, Problem, readKey, keepKey, addressOf } from "./api.js";
import { Capture } from "./capture.js";
import { create, find } from "./dom.js";
import { HeadView } from "./head.js";
import { describeInput, makeInput, readSequence, writeBody } from "./inputs.js";
import { listenToKeys } from "./keyboard.js";
import { measuresOf, namesOf } from "./measures.js";
import { Predictions } from "./predictions.js";
import { writeCurl, writePython } from "./snippets.js";
import { fitsLink, readState, writeState } from "./state.js";
import { findSteps } from "./words.js";

const state = readState(location.hash);
/** What is being asked: another question ends it. */
let asking = new AbortController();
/** @type {Capture | null} */
let capture = null;
/** As `GET /v1/models/{model}` describes the one that is chosen, and the one that was asked; and what it was asked. */
let chosen = null, model = null, sequence = null;
/** Whose input stands there. */
let inputOf = null;
/** Of a link: asked for once, then it is the version that is served. */
let linked = state.version;

const head = new HeadView(state, { onlock: () => predictLocked(), onproblem: showProblem });
const atlas = new Atlas(find("atlas"), chooseHead);
const predictions = new Predictions(showProblem);

function showProblem(error) {
  if (error.name === "AbortError") return;
  if (error instanceof Problem && error.isAboutKey) find("access").hidden = false;
  const isOurs = !(error instanceof Problem);
  if (isOurs) console.error(error);
  find("problem").textContent = isOurs ? "This page failed; the browser's console says where." : error.message;
  find("problem").hidden = false;
}

function clearProblem() {
  find("problem").hidden = true;
}

function keepState() {
  history.replaceState(null, "", writeState(state));
}

async function listModels() {
  const { models } = await askJson("v1/models");
  const options = models.map(({ name, version, ready, reason }) =>
    create("option", {
      value: name, disabled: !ready, title: reason ?? "",
      textContent: ready ? `${name}, version ${version}` : `${name}: not served`,
    }));
  const current = inputOf ?? state.model;
  find("model").replaceChildren(...options);
  find("model").selectedIndex = -1;
  const served = models.filter(({ ready }) => ready).map(({ name }) => name);
  if (served.length === 0) throw new Problem(503, "No model answers yet: ask again in a moment.");
  if (current !== null && !served.includes(current)) {
    throw new Problem(404, `model: expected one of ${served.join(", ")}, got '${current}'`, "model");
  }
  await chooseModel(current ?? served[0]);
}

async function chooseModel(name) {
  find("model").value = name;
  const described = await askJson(`v1/models/${encodeURIComponent(name)}`);
  // Another has been chosen meanwhile.
  if (find("model").value !== name) return;
  chosen = described;
  const { task, num_layers: numLayers, num_heads: numHeads, variants } = chosen;
  const plural = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
  const counts = `${plural(numLayers, "layer")} of ${plural(numHeads, "head")}`;
  find("summary").textContent = `${counts}, ${variants.join(", ").replaceAll("_", "-")}; ${task.replaceAll("_", " ")}`;
  find("input-label").textContent = describeInput(chosen);
  // What somebody has typed stays, whatever has become of the version.
  if (inputOf === name) return;
  find("input").value = state.model === name && state.input !== null ? state.input : makeInput(chosen);
  inputOf = name;
}

async function ask() {
  asking.abort();
  const { signal } = (asking = new AbortController());
  clearProblem();
  find("submit").setAttribute("aria-busy", "true");
  try {
    // Again, as another version may be served by now.
    await (chosen === null ? listModels() : chooseModel(chosen.name));
    const input = find("input").value, asked = readSequence(chosen, input), { name } = chosen;
    const version = (state.model === name && linked) || chosen.version;
    linked = null;
    // What is shown stays, whatever becomes of the question: asked about again, the capture is taken again.
    await capture?.delete();
    const described = chosen, taken = await Capture.take(name, version, writeBody(chosen, asked, "last"), signal);
    if (signal.aborted) {
      taken.delete();
      return;
    }
    Object.assign(state, { model: name, version, input });
    [capture, model, sequence] = [taken, described, asked];
    show();
    await Promise.all([drawAtlas(signal), measureAtlas(signal)]);
  } catch (error) {
    showProblem(error);
  } finally {
    if (!signal.aborted) find("submit").removeAttribute("aria-busy");
  }
}

/** Everything but what takes longer than the forward pass. */
function show() {
  const measures = measuresOf(model), { document: taken } = capture;
  if (!taken.layers.includes(state.layer)) state.layer = taken.layers[0];
  if (state.head >= taken.num_heads) state.head = 0;
  for (const axis of ["query", "key"]) if (state[axis] >= taken.length) state[axis] = null;
  find("welcome").hidden = true;
  for (const id of ["heads", "map", "side", "sequence"]) find(id).hidden = false;
  const orders = measures.map(({ name, label }) => create("option", { value: name, textContent: label }));
  find("order").replaceChildren(create("option", { value: LAYER, textContent: "layer" }), ...orders);
  head.show(capture, model, measures);
  atlas.show(capture, model, measures);
  predictions.show(model, sequence, taken);
  chooseHead(state.layer, state.head);
  if (state.query !== null || state.key !== null) {
    head.reveal();
    predictLocked();
  }
  if (taken.warnings.length) showProblem(new Problem(0, taken.warnings.join(" ")));
}

async function drawAtlas(signal) {
  atlas.draw(await capture.thumbnails(signal), state);
}

async function measureAtlas(signal) {
  for await (const entries of capture.measures(namesOf(measuresOf(model)), signal)) {
    atlas.measure(entries);
    head.measure(atlas.entryOf(state.layer, state.head));
  }
}

function chooseHead(layer, number, isFollowed = false) {
  Object.assign(state, { layer, head: number });
  atlas.select(layer, number, isFollowed);
  head.choose(atlas.entryOf(layer, number));
  keepState();
}

/** The head so many further, and in the layer so many further. */
function moveHead(layers, heads) {
  if (!capture) return;
  const { layers: all, num_heads: numHeads } = capture.document;
  const layer = all[Math.min(all.length - 1, Math.max(0, all.indexOf(state.layer) + layers))];
  chooseHead(layer, Math.min(numHeads - 1, Math.max(0, state.head + heads)), true);
}

function predictLocked() {
  keepState();
  predictions.choose(state.query);
}

function paint(changes) {
  Object.assign(state, changes);
  showChoices();
  keepState();
  if (!capture) return;
  if ("isSigned" in changes) head.choose(atlas.entryOf(state.layer, state.head));
  else head.repaint();
  atlas.draw(null, state);
}

function chooseAxis(by) {
  state.by = by;
  showChoices();
  keepState();
  head.refresh();
}

function showChoices() {
  find("scale").value = state.scale;
  find("first").checked = state.hidesFirst;
  find("sign").checked = state.isSigned;
  for (const radio of document.getElementsByName("by")) radio.checked = radio.value === state.by;
}

/** The next token that has what is sought in it, after the one that is locked. */
function seek() {
  const sought = find("sought").value, steps = sought && capture ? findSteps(capture.document.tokens[0], sought) : [];
  const current = state[state.by] ?? -1, next = steps.find((step) => step > current) ?? steps[0];
  find("found").textContent = !sought ? "" : steps.length ? `${steps.indexOf(next) + 1} of ${steps.length}` : "none";
  if (next === undefined) return;
  const other = state.by === "query" ? "key" : "query";
  Object.assign(state, { [state.by]: next, [other]: null });
  head.reveal();
  head.refresh();
  predictLocked();
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    find("copied").textContent = `${what} copied.`;
  } catch {
    find("copied").textContent = "The browser does not let this page copy.";
  }
}

async function download(format) {
  const { layer, head: number } = state;
  try {
    const file = await capture.file(`rows/${layer}/${number}?queries=all&format=${format}`);
    const address = URL.createObjectURL(file);
    create("a", { href: address, download: `${model.name}-${layer}.${number}.${format}` }).click();
    // Not before the browser has begun to read it.
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  } catch (error) {
    showProblem(error);
  }
}

const describeShown = () => ({
  model: model.name, version: state.version, sequence, layer: state.layer, head: state.head, query: state.query,
  length: capture.length, hasKey: readKey() !== "",
});

function listen() {
  const on = (id, event, listener) => find(id).addEventListener(event, listener);
  on("ask", "submit", (event) => {
    event.preventDefault();
    ask();
  });
  on("access", "submit", (event) => {
    event.preventDefault();
    keepKey(find("key").value);
    find("key").value = "";
    find("access").hidden = true;
    ask();
  });
  on("model", "change", async () => {
    clearProblem();
    await chooseModel(find("model").value).catch(showProblem);
  });
  on("order", "change", () => {
    atlas.sort(find("order").value);
    atlas.select(state.layer, state.head);
  });
  on("scale", "change", () => paint({ scale: find("scale").value }));
  on("first", "change", () => paint({ hidesFirst: find("first").checked }));
  on("sign", "change", () => paint({ isSigned: find("sign").checked }));
  for (const radio of document.getElementsByName("by")) radio.addEventListener("change", () => chooseAxis(radio.value));
  on("in", "click", () => head.matrix.zoom(2));
  on("out", "click", () => head.matrix.zoom(1 / 2));
  on("fit", "click", () => head.matrix.fit());
  on("sought", "keydown", (event) => event.key === "Enter" && seek());
  on("sought", "input", () => (find("found").textContent = ""));
  on("png", "click", () => download("png"));
  on("tensors", "click", () => download("safetensors"));
  on("curl", "click", () => copy(writeCurl(describeShown()), "curl command"));
  on("python", "click", () => copy(writePython(describeShown()), "Python"));
  on("link", "click", () => {
    const what = fitsLink(state.input) ? "Link" : "The input is too long for a link. Link without it";
    copy(addressOf("") + writeState(state), what);
  });
  on("help", "click", () => find("shortcuts").showModal());
  listenToKeys({ ask, moveHead, head, paint, chooseAxis, state });
  addEventListener("pagehide", () => capture?.delete(true));
  addEventListener("hashchange", () => location.reload());
}

listen();
showChoices();
const isAsked = state.model !== null && state.input !== null;
listModels().then(() => isAsked && ask(), showProblem);
