// The decoder: x for latents from the map or sliders, the same style in every class, and the path between two rows.

// `kept` and `keptClass` are what the page returns to when the pointer leaves the map; `latents` and `y` what is shown.
const state = { row: -1, end: -1, kept: null, keptClass: 0, latents: null, y: 0, decoded: null };
const SLIDERS = 6; // shown at first
const STEPS = 9; // of a path

/** Decode latents at once, show the result, and move the cross and the sliders. */
const decodeNow = latest(async (latents, y) => {
  state.latents = latents;
  state.y = y;
  const values = await decode(latents, [y]);
  state.decoded = values;
  if (META.image) show(byId("decoded"), values, "decoded example");
  else showColumns(byId("decoded"), values, META.kind === "ddgm" || state.row < 0 ? null : rowValues(state.row));
  const how = META.kind === "ddgm" ? "G(z)" : HAS_CLASS ? `decoded as class ${className(y)}` : "decoded";
  byId("decoded-words").textContent = META.image || state.row < 0 || META.kind === "ddgm" ? how : `${how} · the kept example (black line)`;
  if (META.kind !== "ddgm") map.cross = placeOf(latents);
  else if (META.map.method === "plane") map.cross = [values[0], values[1]];
  drawTop();
  moveSliders();
});

const drawStrip = latest(async (latents, y) => {
  if (byId("strip-block").hidden) return;
  const values = await decode(await restyle(latents, y), classRange(CLASSES.length));
  byId("strip").querySelectorAll("button").forEach((button, k) => {
    button.setAttribute("aria-checked", String(k === y));
    button.tabIndex = k === y ? 0 : -1;
    const part = values.subarray(k * SIZE, (k + 1) * SIZE);
    if (META.image) drawPicture(button.querySelector("canvas"), part);
    else button.title = META.features.slice(0, 8).map((column, j) => `${column.name}: ${columnWords(column, part[j])}`).join("\n");
  });
  if (!META.image) drawClassTable(values);
});

/** Decode, and draw what takes longer. */
function decodeAll(latents, y) {
  decodeNow(latents, y);
  return drawStrip(latents, y);
}

function keepRow(i, u, v) {
  if (META.kind === "ddgm") return i < 0 ? null : showKept(i);
  if (i < 0) {
    state.row = -1;
    state.kept = latentsAt(u, v, state.kept);
    byId("kept").replaceChildren();
    byId("kept-words").textContent = "A place without an example is kept.";
  } else {
    state.kept = rowLatents(i);
    state.keptClass = Math.max(rowClass(i), 0);
    showKept(i);
  }
  drawPath();
  return decodeAll(state.kept, state.keptClass);
}

function showKept(i) {
  state.row = i;
  show(byId("kept"), rowValues(i), describeRow(i).join(", "));
  byId("kept-words").textContent = `kept: ${describeRow(i).join(", ")}`;
  announce(`Kept ${describeRow(i).join(", ")}`);
  drawTop();
}

/** Decode the points between the kept latents and those of the other row. */
async function drawPath() {
  if (state.end < 0 || META.kind === "ddgm") return;
  const ends = [state.kept, rowLatents(state.end)];
  const points = Array.from({ length: STEPS }, (_, n) => mix(...ends, n / (STEPS - 1)));
  const classes = points.map((_, n) => (2 * n < STEPS ? state.keptClass : Math.max(rowClass(state.end), 0)));
  const values = await decode(Float32Array.from(points.flatMap((point) => [...point])), classes);
  map.path = points.map(placeOf);
  showPath(values, classes);
}

function showPath(values, classes) {
  const parts = Array.from({ length: STEPS }, (_, n) => values.slice(n * SIZE, (n + 1) * SIZE));
  if (META.image) byId("path").replaceChildren(...parts.map((part, n) => thumbnail(part, pathWords(n, classes))));
  else if (META.map.method === "plane") byId("path").replaceChildren();
  else byId("path").replaceChildren(columnTable(["start", "", "", "", "middle", "", "", "", "end"], parts, 2));
  byId("path").classList.toggle("wide", !META.image);
  byId("path-label").hidden = false;
  drawTop();
}

const pathWords = (n, classes) => (n === 0 ? "start" : n === STEPS - 1 ? "end" : (CLASSES.length && NUM_CLASSES && META.kind === "m2" ? className(classes[n]) : String(n)));
const mix = (a, b, t) => Float32Array.from(a, (value, j) => value + t * (b[j] - value));

function endRow(i) {
  if (i < 0 || META.kind === "ddgm") return;
  state.end = i;
  byId("path-help").textContent = `From the kept place to ${describeRow(i).slice(0, 2).join(", ")}.${META.kind === "m2" ? " The class changes in the middle." : ""}`;
  announce(`End of the path: ${describeRow(i).join(", ")}`);
  drawPath();
}

// Tables of decoded columns, for data that are no images.

function columnTable(names, parts, step = 1) {
  const shown = names.map((_, n) => n).filter((n) => n % step === 0);
  const head = make("tr", {}, make("th", {}, "column"), ...shown.map((n) => make("th", { scope: "col" }, names[n])));
  const rows = META.features.slice(0, SHOWN_COLUMNS).map((column, j) => {
    const cells = shown.map((n) => make("td", {}, columnWords(column, parts[n][j])));
    return make("tr", {}, make("th", { scope: "row", style: "text-align:left" }, column.name), ...cells);
  });
  return make("div", { class: "scroll", tabindex: "0" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function drawClassTable(values) {
  const parts = CLASSES.map((_, k) => values.subarray(k * SIZE, (k + 1) * SIZE));
  byId("strip-table").replaceChildren(columnTable(CLASSES, parts));
}

// Sliders of the latents, most variable first.

function sliderOrder() {
  if (META.kind === "ddgm") return Array.from({ length: META.latentDim }, (_, j) => j);
  return META.map.sd.map((sd, j) => [sd, j]).sort((a, b) => b[0] - a[0]).map(([, j]) => j);
}

function sliderRange(j) {
  if (META.kind !== "ddgm") return [META.map.mean[j] - 4 * META.map.sd[j], META.map.mean[j] + 4 * META.map.sd[j]];
  const draws = Array.from({ length: ROWS.prior.length / META.latentDim }, (_, i) => ROWS.prior[i * META.latentDim + j]);
  return [Math.min(...draws), Math.max(...draws)];
}

function makeSliders(count) {
  const name = META.kind === "ddgm" ? "z" : META.space;
  const parts = sliderOrder().slice(0, count).map((j) => {
    const [low, high] = sliderRange(j);
    const input = make("input", { type: "range", min: low, max: high, step: (high - low) / 400 || 1, "data-latent": j, "aria-label": `latent ${name} ${j}` });
    input.addEventListener("input", () => {
      const latents = Float32Array.from(state.latents);
      latents[j] = Number(input.value);
      moveTo(latents);
    });
    return make("label", { class: "slider" }, make("span", {}, `${name}[${j}]`), input, make("output", {}));
  });
  byId("sliders").style = nameWidth([`${name}[99]`]);
  byId("sliders").replaceChildren(...parts);
  moveSliders();
}

function moveSliders() {
  for (const input of byId("sliders").querySelectorAll("input")) {
    const value = state.latents[input.dataset.latent];
    if (document.activeElement !== input) input.value = value;
    input.nextElementSibling.textContent = value.toFixed(2);
  }
}

/** Show other latents of the same class, from a slider or a draw. */
function moveTo(latents) {
  state.kept = latents;
  return decodeAll(latents, state.keptClass);
}

async function drawFromPrior() {
  const i = Math.floor((Math.random() * ROWS.prior.length) / META.latentDim);
  const z = ROWS.prior.slice(i * META.latentDim, (i + 1) * META.latentDim);
  moveTo(META.kind === "m1m2" ? await decodeUpper(z, [state.keptClass]) : z);
}

function makeStrip() {
  byId("strip-block").hidden = META.kind === "m1" || META.kind === "ddgm";
  const choose = async (k) => {
    if (META.kind === "m1m2") {
      state.kept = (await restyle(state.kept, state.keptClass)).slice(k * ROWS.width, (k + 1) * ROWS.width);
    }
    state.keptClass = k;
    await decodeAll(state.kept, k);
    byId("strip").children[k].focus();
  };
  const buttons = CLASSES.map((name, k) => {
    const button = make("button", { type: "button", role: "radio", "aria-label": `class ${name}`, onclick: () => choose(k) });
    if (META.image) button.append(make("canvas", { class: "picture", "aria-hidden": "true" }));
    button.append(name);
    button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      choose((k + step + CLASSES.length) % CLASSES.length);
    });
    return button;
  });
  byId("strip").replaceChildren(...buttons);
  byId("strip").classList.toggle("words", !META.image);
  if (!META.image) byId("strip").after(make("div", { id: "strip-table" }));
}

function startDecoder() {
  makeStrip();
  state.latents = META.kind === "ddgm" ? ROWS.prior.slice(0, META.latentDim) : Float32Array.from(META.map.mean);
  state.kept = state.latents;
  if (!META.image) byId("kept").hidden = true;
  byId("decoded").parentElement.parentElement.classList.toggle("stacked", !META.image);
  const all = sliderOrder().length;
  makeSliders(Math.min(SLIDERS, all));
  byId("all-latents").hidden = all <= SLIDERS;
  byId("all-latents").addEventListener("click", (event) => {
    const open = event.target.getAttribute("aria-expanded") !== "true";
    event.target.setAttribute("aria-expanded", String(open));
    event.target.textContent = open ? "Fewer latents" : "All latents";
    makeSliders(open ? all : SLIDERS);
  });
  byId("draw-prior").addEventListener("click", drawFromPrior);
  byId("reset-latents").addEventListener("click", () => state.row >= 0 && keepRow(state.row));
  byId("path-at").addEventListener("input", (event) => pathPoint(Number(event.target.value)));
}

/** Decode a point of the path, at a fraction between 0 and 1 of its length. */
function pathPoint(t) {
  const [start, end] = META.kind === "ddgm" ? [state.from, state.to] : [state.kept, rowLatents(state.end)];
  return decodeNow(mix(start, end, t), t < 0.5 || META.kind === "ddgm" ? state.keptClass : Math.max(rowClass(state.end), 0));
}
