// What only a DDGM has: samples of its generator, the energy in the plane, and a path in z.

const FIELD = 140; // points along each side
const FIELD_DEPTH = 8; // nats below the highest -E(x) in view that are told apart
const SHOWN_SAMPLES = 20;

/** Draw -E(x) over the visible part of the plane. */
const drawField = latest(async () => {
  const [u0, v0] = toPlane(0, map.height);
  const [u1, v1] = toPlane(map.width, 0);
  const points = new Float32Array(2 * FIELD * FIELD);
  for (let i = 0; i < FIELD; i++) {
    for (let j = 0; j < FIELD; j++) {
      points[2 * (i * FIELD + j)] = u0 + ((j + 0.5) / FIELD) * (u1 - u0);
      points[2 * (i * FIELD + j) + 1] = v1 + ((i + 0.5) / FIELD) * (v0 - v1);
    }
  }
  const { energy } = await run("energy", { x: points }, FIELD * FIELD);
  const least = energy.reduce((found, value) => Math.min(found, value), Infinity);
  const image = make("canvas", { width: FIELD, height: FIELD });
  const context = image.getContext("2d");
  const pixels = context.createImageData(FIELD, FIELD);
  const colour = style("--field").split(",").map(Number);
  energy.forEach((value, i) => {
    const depth = Math.max(0, 1 - (value - least) / FIELD_DEPTH);
    pixels.data.set([...colour, Math.round(200 * (Math.round(depth * 10) / 10))], 4 * i); // in steps, as contours
  });
  context.putImageData(pixels, 0, 0);
  map.field = { image, u0, u1, v0, v1 };
  drawMap();
});

async function drawSampleGrid() {
  const start = Math.floor(Math.random() * (ROWS.prior.length / META.latentDim - SHOWN_SAMPLES));
  const z = ROWS.prior.slice(start * META.latentDim, (start + SHOWN_SAMPLES) * META.latentDim);
  const values = await decode(z, classRange(SHOWN_SAMPLES));
  const { energy } = await run("energy", { x: values }, SHOWN_SAMPLES);
  const parts = classRange(SHOWN_SAMPLES).map((i) => thumbnail(values.subarray(i * SIZE, (i + 1) * SIZE), number(-energy[i])));
  byId("samples").replaceChildren(...parts);
}

async function drawEnergyPath() {
  if (!state.from || !state.to) return;
  const points = Array.from({ length: STEPS }, (_, n) => mix(state.from, state.to, n / (STEPS - 1)));
  const fine = Array.from({ length: 60 }, (_, n) => mix(state.from, state.to, n / 59));
  const values = await decode(Float32Array.from(points.flatMap((point) => [...point])), classRange(STEPS));
  if (META.map.method === "plane") {
    const line = await decode(Float32Array.from(fine.flatMap((point) => [...point])), classRange(60));
    map.path = classRange(60).map((n) => [line[2 * n], line[2 * n + 1]]);
  }
  showPath(values, []);
  const { energy } = await run("energy", { x: values }, STEPS);
  byId("path-help").textContent = `${META.map.method === "plane" ? "The black line leads from G of one z to that of another. " : ""}−E(x) along the path: ${Array.from(energy, (value) => number(-value)).join(", ")}. Good is: no value far below the others, so that the path does not leave the data. For another one choose a start, move z, and choose an end.`;
}

function keepPoint(row, u, v) {
  if (META.map.method === "plane") setRow([u, v]);
  else if (row >= 0) showKept(row);
}

async function startDdgm() {
  const plane = META.map.method === "plane";
  byId("decode-title").textContent = "The generator";
  byId("decode-help").textContent = `G(z) turns latents z into ${plane ? "a point: the cross on the map" : "an image"}, at once. Draw z at random or move its sliders.`;
  byId("map-title").textContent = plane ? "Data and energy in the plane" : "Map of the examples by their features";
  byId("map-help").textContent = plane
    ? "Dark blue is where the model finds points likely (low energy E). Good is: blue where the points lie, and nowhere else. Orange points are samples of the generator, and should lie among the others."
    : "Examples with similar features lie together. Hover to see one, click to keep it.";
  byId("path-help").textContent = "Choose a start, move z, and choose an end: the path between them is decoded.";
  byId("path-buttons").hidden = false;
  byId("path-title").textContent = "Path in z";
  state.from = ROWS.prior.slice(0, META.latentDim);
  state.to = ROWS.prior.slice(META.latentDim, 2 * META.latentDim);
  for (const [id, name] of [["path-start", "from"], ["path-end", "to"]]) {
    byId(id).addEventListener("click", () => {
      state[name] = state.latents;
      drawEnergyPath();
    });
  }
  byId("reset-latents").hidden = true;
  if (plane) {
    byId("kept").parentElement.hidden = true;
    for (const id of ["field-label", "samples-label"]) byId(id).hidden = false;
    for (const id of ["field", "show-samples"]) byId(id).addEventListener("change", drawMap);
    map.samples = await decode(ROWS.prior, classRange(ROWS.prior.length / META.latentDim));
    byId("show-samples").checked = true;
    listeners.moved = drawField;
    for (const id of ["zoom-in", "zoom-out", "zoom-reset"]) byId(id).addEventListener("click", () => drawField());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawField());
    await drawField();
    await drawEnergyPath();
  } else {
    byId("samples-block").hidden = false;
    byId("samples-block").append(make("div", { class: "buttons" }, make("button", { type: "button", onclick: drawSampleGrid }, "Other samples")));
    await drawSampleGrid();
    await drawEnergyPath();
  }
}
