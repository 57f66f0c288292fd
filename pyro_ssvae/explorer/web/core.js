// What the page holds, and helpers that every part uses.

const byId = (id) => document.getElementById(id);
const META = JSON.parse(byId("meta").textContent);
const SIZE = META.shape.reduce((product, side) => product * side, 1);
const CLASSES = META.classes;
const TYPES = { float32: Float32Array, int16: Int16Array, uint8: Uint8Array };
const ROWS = {}; // arrays by name; the number of rows is ROWS.count

/** Return the bytes of a part of the page, which was compressed by gzip and written in base 64. */
async function unpack(name) {
  const element = byId(`blob-${name}`);
  const text = atob(element.textContent);
  element.remove();
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function unpackRows() {
  for (const [name, [type, shape]] of Object.entries(META.arrays)) {
    ROWS[name] = new TYPES[type]((await unpack(`array-${name}`)).buffer);
    if (name === "latents") ROWS.width = shape[1];
  }
  ROWS.count = ROWS.label.length;
}

/** Return the values of a row as the model sees them. */
function rowValues(i) {
  if (ROWS.rows) return ROWS.rows.slice(i * SIZE, (i + 1) * SIZE);
  return Float32Array.from(ROWS.rows8.subarray(i * SIZE, (i + 1) * SIZE), (value) => value / META.rowScale);
}

/** Return what the map shows of a row: its z, z1 or features. */
function rowLatents(i) {
  const found = new Float32Array(ROWS.width);
  for (let j = 0; j < ROWS.width; j++) found[j] = ROWS.latents[i * ROWS.width + j] * ROWS.latent_unit[j];
  return found;
}

/** Return the class of a row, or that which the model predicts; -1 if there are no classes. */
const rowClass = (i) => (ROWS.label[i] >= 0 ? ROWS.label[i] : ROWS.predicted[i]);
const className = (k) => (k < 0 ? "unknown" : (CLASSES[k] ?? String(k)));

function describeRow(i) {
  const words = [`${ROWS.test[i] ? "test" : "training"} example ${i}`];
  if (CLASSES.length) words.push(ROWS.label[i] < 0 ? "class not given" : `class ${className(ROWS.label[i])}`);
  if (ROWS.predicted[i] >= 0) words.push(`predicted ${className(ROWS.predicted[i])}`);
  words.push(`${SCORE_NAME} ${number(ROWS.score[i])}${ROWS.score[i] < META.unknownBelow ? ", unknown" : ""}`);
  return words;
}
const SCORE_NAME = META.kind === "ddgm" ? "−E(x)" : "log p(x)";

const number = (value) => {
  if (!Number.isFinite(value)) return "missing";
  const size = Math.abs(value);
  if (size >= 1e6 || (size < 1e-3 && size > 0)) return value.toExponential(2);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
};
const percent = (share) => (share > 0.995 && share < 1 ? ">99 %" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`);

/** Return a value of a column in words: in the units of the table, with the word for which a code stands. */
function columnWords(column, value) {
  if (!Number.isFinite(value)) return "missing";
  if (column.words.length) return column.words[Math.min(Math.max(Math.round(value), 0), column.words.length - 1)];
  return number(value * META.scale);
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** Return a width for the longest of some names. */
const nameWidth = (names) => `--names:${Math.min(10, 1.2 + 0.55 * Math.max(...names.map((name) => name.length)))}em`;

const announce = (words) => (byId("live").textContent = words);
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function softmax(logits) {
  const most = Math.max(...logits);
  const parts = Array.from(logits, (logit) => Math.exp(logit - most));
  const total = parts.reduce((sum, part) => sum + part, 0);
  return parts.map((part) => part / total);
}

function logSumExp(values) {
  const most = Math.max(...values);
  return most + Math.log(values.reduce((sum, value) => sum + Math.exp(value - most), 0));
}

const argmax = (values) => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);

/** Return a function that runs an asynchronous one with its latest argument, and leaves out those in between. */
function latest(task) {
  let waiting = null;
  let busy = null;
  const run = async () => {
    while (waiting) {
      const args = waiting;
      waiting = null;
      await task(...args);
    }
    busy = null;
  };
  return (...args) => {
    waiting = args;
    busy ??= run();
    return busy;
  };
}

/** Draw values as an image in an element. */
function show(element, values, caption) {
  if (!META.image) return;
  let canvas = element.querySelector("canvas");
  if (!canvas) {
    canvas = make("canvas", { class: "picture", role: "img" });
    element.replaceChildren(canvas);
  }
  canvas.setAttribute("aria-label", caption);
  drawPicture(canvas, values);
}

function drawPicture(canvas, values) {
  const [channels, height, width] = META.image;
  const [low, high] = META.range;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const area = height * width;
  image.data.fill(255);
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < Math.max(3, channels); c++) { // the fourth channel is opacity
      image.data[4 * i + c] = Math.round((255 * (values[(channels > 1 ? c : 0) * area + i] - low)) / (high - low));
    }
  }
  context.putImageData(image, 0, 0);
}

const SHOWN_COLUMNS = 30;

/** Show decoded columns in an element as bars, with a line at the values of an example that is kept. */
function showColumns(element, values, kept) {
  const share = (column, value) => 100 * Math.min(Math.max((value - column.low) / (column.high - column.low || 1), 0), 1);
  const rows = META.features.slice(0, SHOWN_COLUMNS).map((column, j) => {
    const track = make("span", { class: "both start", "aria-hidden": "true" }, make("i", { style: `left:0;width:${share(column, values[j])}%` }));
    if (kept && Number.isFinite(kept[j])) track.append(make("b", { style: `left:${share(column, kept[j])}%` }));
    const words = [columnWords(column, values[j]), ...(kept ? [columnWords(column, kept[j])] : [])];
    return make("div", { class: "bar" }, make("span", { title: column.name }, column.name), track, make("span", { class: "numbers" }, words.join(" · ")));
  });
  element.style = nameWidth(META.features.map((column) => column.name));
  element.replaceChildren(make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "decoded columns" }, ...rows));
}

/** Return a small picture, or name, with words below it. */
function thumbnail(values, words) {
  if (!META.image) return make("figure", {}, make("figcaption", {}, words));
  const canvas = make("canvas", { class: "picture", role: "img", "aria-label": words });
  drawPicture(canvas, values);
  return make("figure", {}, canvas, make("figcaption", {}, words));
}
