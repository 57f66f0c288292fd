// Puts the parts together, and offers what tests need.

function describePage() {
  const labelled = META.numLabelled ? `, ${META.numLabelled.toLocaleString("en")} of them labelled` : "";
  const about = [`${META.numTraining.toLocaleString("en")} training examples${labelled}`, `${ROWS.count.toLocaleString("en")} training and test examples on the map`];
  if (META.kind !== "ddgm") about.push(`${META.space} has ${ROWS.width} dimensions`);
  byId("about").textContent = `${about.join("; ")}.`;
  const style = { m2: "z describes what the class leaves open, the style. Good is: classes lie mixed, because the class says the rest.", m1: "z describes everything. Good is: what looks alike lies together.", m1m2: "z1 describes everything. Good is: classes form groups." }[META.kind];
  byId("map-help").textContent = `Every point is an example, at the mean of its ${META.space}${META.map.method === "umap" ? ", by UMAP, which keeps neighbours but not distances" : ", seen from the side where it varies most (PCA)"}. ${style}`;
  byId("decode-help").textContent = "Move over the map or pull a slider: the decoder shows what belongs there. Click an example to keep it, and to start from there.";
  byId("slider-help").textContent = META.kind === "ddgm" ? "" : "Most variable first. Sliders that change nothing belong to latents that the model does not use.";
  map.top.setAttribute("aria-label", `Map of ${ROWS.count} examples`);
}

/** Decode for a place under the cursor, which is not kept. */
function preview(u, v) {
  if (META.kind === "ddgm") {
    if (META.map.method === "plane") previewEnergy(u, v);
    return;
  }
  map.cross = [u, v];
  decodeAll(latentsAt(u, v, state.kept), state.keptClass);
}

const previewEnergy = latest(async (u, v) => {
  const { energy } = await run("energy", { x: Float32Array.of(u, v) }, 1);
  byId("map-axes").textContent = `at (${u.toFixed(2)}, ${v.toFixed(2)}): E(x) = ${number(energy[0])}`;
});

/** Return how many decodes the page does in a second, one after the other, with their pictures. */
async function measureDecodes(count = 100) {
  const start = performance.now();
  for (let n = 0; n < count; n++) {
    const latents = Float32Array.from(state.kept ?? state.latents, (value, j) => value + 0.01 * n * (j % 2));
    await decodeNow(latents, state.y);
  }
  return (1000 * count) / (performance.now() - start);
}

async function start() {
  await unpackRows();
  await loadModel();
  byId("main").hidden = false;
  byId("loading").hidden = true;
  startAnswer();
  startDecoder();
  startMap();
  describePage();
  listeners.preview = preview;
  listeners.keep = META.kind === "ddgm" ? keepPoint : keepRow;
  listeners.end = endRow;
  listeners.leave = () => META.kind !== "ddgm" && decodeAll(state.kept, state.keptClass);
  if (META.image) startImage();
  else startRow();
  await decodeAll(state.kept, state.keptClass);
  const first = Math.max(0, ROWS.label.findIndex((k, i) => k >= 0 && !ROWS.test[i]));
  if (META.map.method === "plane") byId("kept").parentElement.hidden = true;
  else if (META.kind === "ddgm") showKept(first);
  else {
    await keepRow(first);
    const other = ROWS.label.findIndex((k, i) => i !== first && !ROWS.test[i] && k >= 0 && k !== ROWS.label[first]);
    endRow(other >= 0 ? other : Math.min(1, ROWS.count - 1));
  }
  if (META.image) await useRow(first);
  else await setRow(rowValues(first));
  if (META.kind === "ddgm") await startDdgm();
}

window.explorer = { META, ROWS, state, map, pad, own, SCORES, decode, encode, assess, drawMap, keepRow, endRow, toScreen, rowValues, openImage, setRow, measureDecodes };
start().then(
  () => (document.documentElement.dataset.ready = "true"),
  (error) => {
    byId("loading").hidden = false;
    byId("loading").textContent = `The model could not be started: ${error.message}. A recent Firefox, Chrome, Edge or Safari is needed.`;
    throw error;
  },
);
