// The map: rows as points on a canvas, with zoom, pan and a cross, and what follows from a place on it.

const map = { base: byId("map-base"), top: byId("map"), k: 1, x: 0, y: 0, cross: null, path: [], samples: null, field: null };
const listeners = { preview: () => {}, keep: () => {}, end: () => {}, leave: () => {} };
const REACH = 14; // pixels within which a row counts as pointed at
const RAMP = ["#30123b", "#3e5cc9", "#2aa8e0", "#32c88e", "#a5d936", "#f9ba38", "#e5530f"];

function mapBounds() {
  const bounds = [Infinity, -Infinity, Infinity, -Infinity];
  for (let i = 0; i < ROWS.count; i++) {
    const [u, v] = [ROWS.map[2 * i], ROWS.map[2 * i + 1]];
    bounds[0] = Math.min(bounds[0], u);
    bounds[1] = Math.max(bounds[1], u);
    bounds[2] = Math.min(bounds[2], v);
    bounds[3] = Math.max(bounds[3], v);
  }
  return bounds;
}

function fitMap() {
  const [low, high, bottom, up] = map.bounds;
  map.k = 0.92 * Math.min(map.width / (high - low || 1), map.height / (up - bottom || 1));
  map.x = map.width / 2 - (map.k * (low + high)) / 2;
  map.y = map.height / 2 + (map.k * (bottom + up)) / 2;
}

const toScreen = (u, v) => [map.x + map.k * u, map.y - map.k * v];
const toPlane = (px, py) => [(px - map.x) / map.k, (map.y - py) / map.k];

function zoomMap(factor, px = map.width / 2, py = map.height / 2) {
  map.x = px + (map.x - px) * factor;
  map.y = py + (map.y - py) * factor;
  map.k *= factor;
  drawMap();
}

function resizeMap() {
  const box = byId("map-frame").getBoundingClientRect();
  const fresh = !map.width;
  const scale = window.devicePixelRatio || 1;
  const change = [(box.width - (map.width ?? 0)) / 2, (box.height - (map.height ?? 0)) / 2];
  [map.width, map.height] = [box.width, box.height];
  for (const canvas of [map.base, map.top]) {
    [canvas.width, canvas.height] = [box.width * scale, box.height * scale];
    canvas.getContext("2d").setTransform(scale, 0, 0, scale, 0, 0);
  }
  if (fresh) fitMap();
  else [map.x, map.y] = [map.x + change[0], map.y + change[1]];
  drawMap();
}

const isShown = (i) => map.which === "all" || (map.which === "test") === Boolean(ROWS.test[i]);

/** Return the colour of every row, as an index into a list of colours. */
function colourRows() {
  const by = byId("colour-by").value;
  const grey = style("--point");
  const pick = { label: (i) => ROWS.label[i], predicted: (i) => ROWS.predicted[i] }[by];
  if (pick) return { colours: [...META.colours, grey], index: (i) => (pick(i) < 0 ? META.colours.length : pick(i)) };
  if (by === "unknown") return { colours: [grey, style("--alarm")], index: (i) => Number(ROWS.score[i] < META.unknownBelow) };
  if (by === "wrong") {
    const wrong = (i) => (ROWS.label[i] < 0 ? 2 : Number(ROWS.label[i] !== ROWS.predicted[i]));
    return { colours: [style("--accent"), style("--alarm"), grey], index: wrong };
  }
  const [low, high] = SCORES.ramp;
  const last = RAMP.length - 1;
  return { colours: RAMP, index: (i) => Math.round(last * Math.min(Math.max((ROWS.score[i] - low) / (high - low || 1), 0), 1)) };
}

function drawMap() {
  if (!map.width) return;
  const context = map.base.getContext("2d");
  context.clearRect(0, 0, map.width, map.height);
  if (map.field && byId("field").checked) {
    const [left, top] = toScreen(map.field.u0, map.field.v1);
    const [right, bottom] = toScreen(map.field.u1, map.field.v0);
    context.imageSmoothingEnabled = true;
    context.drawImage(map.field.image, left, top, right - left, bottom - top);
  }
  const { colours, index } = colourRows();
  const size = Math.min(7, Math.max(2, 260 / Math.sqrt(ROWS.count)) * Math.sqrt(map.k / map.k0));
  drawPoints(context, colours, index, size);
  drawRings(context, colours, index, size);
  if (map.samples && byId("show-samples").checked) drawSamples(context);
  drawTop();
}

/** Draw the examples as squares, pixel by pixel, which stays fluid with tens of thousands of them. */
function drawPoints(context, colours, index, size) {
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [map.base.width, map.base.height];
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const side = Math.max(1, Math.round(size * scale));
  const codes = colours.map((colour) => {
    const value = parseInt(colour.slice(1), 16);
    return ((0xd8 << 24) | ((value & 255) << 16) | (value & 0xff00) | (value >> 16)) >>> 0; // bytes are red, green, blue, opacity
  });
  const grey = colours.indexOf(style("--point"));
  for (const background of [true, false]) { // grey first, so that it does not cover what was asked for
    for (let i = 0; i < ROWS.count; i++) {
      const colour = index(i);
      if ((colour === grey) !== background || !isShown(i)) continue;
      const left = Math.round(scale * (map.x + map.k * ROWS.map[2 * i]) - side / 2);
      const top = Math.round(scale * (map.y - map.k * ROWS.map[2 * i + 1]) - side / 2);
      if (left < 0 || top < 0 || left + side > width || top + side > height) continue;
      for (let row = top; row < top + side; row++) pixels.fill(codes[colour], row * width + left, row * width + left + side);
    }
  }
  map.pixels ??= make("canvas");
  [map.pixels.width, map.pixels.height] = [width, height];
  map.pixels.getContext("2d").putImageData(image, 0, 0);
  context.drawImage(map.pixels, 0, 0, map.width, map.height);
}

function drawRings(context, colours, index, size) {
  context.strokeStyle = style("--ink");
  context.lineWidth = 1.5;
  for (let i = 0; i < ROWS.count; i++) {
    if (ROWS.label[i] < 0 || ROWS.test[i] || !isShown(i) || !map.ringed) continue;
    const [px, py] = toScreen(ROWS.map[2 * i], ROWS.map[2 * i + 1]);
    context.fillStyle = colours[index(i)];
    context.beginPath();
    context.arc(px, py, size / 2 + 3, 0, 7);
    context.fill();
    context.stroke();
  }
}

function drawSamples(context) {
  context.fillStyle = style("--second");
  for (let i = 0; i < map.samples.length / 2; i++) {
    const [px, py] = toScreen(map.samples[2 * i], map.samples[2 * i + 1]);
    context.fillRect(px - 1.5, py - 1.5, 3, 3);
  }
}

function drawTop() {
  const context = map.top.getContext("2d");
  context.clearRect(0, 0, map.width, map.height);
  const ink = style("--ink");
  const strokeWithEdge = () => {
    for (const [colour, width] of [[style("--card"), 5], [ink, 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.stroke();
    }
  };
  if (map.path.length) {
    context.beginPath();
    for (const [u, v] of map.path) context.lineTo(...toScreen(u, v));
    strokeWithEdge();
  }
  const mark = (u, v, word) => {
    const [px, py] = toScreen(u, v);
    context.beginPath();
    context.arc(px, py, 9, 0, 7);
    strokeWithEdge();
    context.font = "bold 14px system-ui, sans-serif";
    context.lineWidth = 4;
    context.strokeStyle = style("--card");
    context.strokeText(word, px + 11, py - 9);
    context.fillStyle = ink;
    context.fillText(word, px + 11, py - 9);
  };
  if (META.map.method === "plane") {
    if (own.values) mark(own.values[0], own.values[1], "your point");
  } else {
    if (state.row >= 0) mark(ROWS.map[2 * state.row], ROWS.map[2 * state.row + 1], "kept");
    if (state.end >= 0) mark(ROWS.map[2 * state.end], ROWS.map[2 * state.end + 1], "end");
  }
  if (!map.cross) return;
  const [px, py] = toScreen(...map.cross);
  for (const [colour, width] of [[style("--card"), 4], [ink, 1.6]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(px + 4 * dx, py + 4 * dy);
      context.lineTo(px + 13 * dx, py + 13 * dy);
    }
    context.stroke();
  }
}

/** Return the row nearest to a place on the screen, within a distance in pixels; -1 if there is none. */
function rowAt(px, py, reach = REACH) {
  const [u, v] = toPlane(px, py);
  let [best, least] = [-1, (reach / map.k) ** 2];
  for (let i = 0; i < ROWS.count; i++) {
    const [du, dv] = [ROWS.map[2 * i] - u, ROWS.map[2 * i + 1] - v];
    const distance = du * du + dv * dv;
    if (distance < least && isShown(i)) [best, least] = [i, distance];
  }
  return best;
}

const dot = (a, b) => a.reduce((sum, value, j) => sum + value * b[j], 0);

/** Return latents for a place on the map: those kept, moved within the plane of PCA; or the mean of near rows (UMAP). */
function latentsAt(u, v, base) {
  if (META.map.method === "pca") {
    const [bu, bv] = placeOf(base);
    const [first, second] = META.map.directions;
    return Float32Array.from(base, (value, j) => value + (u - bu) * first[j] + (v - bv) * (second?.[j] ?? 0));
  }
  const near = nearestOnMap(u, v, 6);
  const weights = near.map(([distance]) => 1 / (distance + 1e-6));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const found = new Float32Array(ROWS.width);
  near.forEach(([, i], n) => rowLatents(i).forEach((value, j) => (found[j] += (value * weights[n]) / total)));
  return found;
}

function nearestOnMap(u, v, most) {
  const distances = Float32Array.from({ length: ROWS.count }, (_, i) => Math.hypot(ROWS.map[2 * i] - u, ROWS.map[2 * i + 1] - v));
  return smallest(distances, most).map((i) => [distances[i], i]);
}

/** Return the place of latents on the map. */
function placeOf(latents) {
  if (META.map.method === "plane") return [latents[0], latents[1]];
  if (META.map.method === "pca") {
    const centred = Array.from(latents, (value, j) => value - META.map.centre[j]);
    return META.map.directions.map((direction) => dot(direction, centred)).concat(0).slice(0, 2);
  }
  const [i] = nearestRows(latents, 1);
  return [ROWS.map[2 * i], ROWS.map[2 * i + 1]];
}

function showTip(i, px, py) {
  const tip = byId("tip");
  tip.hidden = i < 0;
  if (i < 0) return;
  const parts = describeRow(i).map((words) => make("div", {}, words));
  if (META.image) {
    const canvas = make("canvas");
    drawPicture(canvas, rowValues(i));
    tip.replaceChildren(canvas, make("div", {}, ...parts));
  } else {
    const values = rowValues(i);
    const columns = META.features.slice(0, 8).map((column, j) => make("div", {}, `${column.name}: ${columnWords(column, values[j])}`));
    tip.replaceChildren(make("div", {}, ...parts, ...columns));
  }
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  tip.style.left = `${px + 16 + width > map.width ? Math.max(0, px - width - 16) : px + 16}px`;
  tip.style.top = `${Math.max(4, Math.min(py + 12, map.height - height - 4))}px`;
}

function pointerPlace(event) {
  const box = map.top.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function listenToMap() {
  let drag = null;
  map.top.addEventListener("pointerdown", (event) => {
    const [px, py] = pointerPlace(event);
    drag = { px, py, x: map.x, y: map.y, moved: false };
    map.top.setPointerCapture(event.pointerId);
  });
  map.top.addEventListener("pointermove", (event) => {
    const [px, py] = pointerPlace(event);
    if (drag && (drag.moved || Math.hypot(px - drag.px, py - drag.py) > 4)) {
      drag.moved = true;
      [map.x, map.y] = [drag.x + px - drag.px, drag.y + py - drag.py];
      requestAnimationFrame(drawMap);
      return;
    }
    showTip(rowAt(px, py), px, py);
    listeners.preview(...toPlane(px, py));
  });
  map.top.addEventListener("pointerup", (event) => {
    const [px, py] = pointerPlace(event);
    if (drag && !drag.moved) {
      const row = rowAt(px, py);
      if (event.shiftKey) listeners.end(row);
      else listeners.keep(row, ...toPlane(px, py));
    } else listeners.moved?.();
    drag = null;
  });
  map.top.addEventListener("pointerleave", () => {
    showTip(-1);
    listeners.leave();
  });
  map.top.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomMap(Math.exp(-event.deltaY / 400), ...pointerPlace(event));
    listeners.moved?.();
  }, { passive: false });
  map.top.addEventListener("keydown", onMapKey);
  byId("zoom-in").addEventListener("click", () => zoomMap(1.5));
  byId("zoom-out").addEventListener("click", () => zoomMap(1 / 1.5));
  byId("zoom-reset").addEventListener("click", () => {
    fitMap();
    drawMap();
  });
  new ResizeObserver(resizeMap).observe(byId("map-frame"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
}

function onMapKey(event) {
  const step = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, -10], ArrowDown: [0, 10] }[event.key];
  const [px, py] = toScreen(...(map.cross ?? toPlane(map.width / 2, map.height / 2)));
  const done = {
    "+": () => zoomMap(1.5, px, py),
    "-": () => zoomMap(1 / 1.5, px, py),
    0: () => byId("zoom-reset").click(),
    Enter: () => listeners.keep(rowAt(px, py, Infinity), ...toPlane(px, py)),
    b: () => listeners.end(rowAt(px, py, Infinity)),
    B: () => listeners.end(rowAt(px, py, Infinity)),
  }[event.key];
  if (!step && !done) return;
  event.preventDefault();
  if (done) return done();
  const place = toPlane(px + step[0], py + step[1]);
  const row = rowAt(px + step[0], py + step[1]);
  showTip(row, px + step[0], py + step[1]);
  listeners.preview(...place);
  announce(row < 0 ? `cross at ${place.map(number).join(", ")}` : describeRow(row).join(", "));
}

function startMap() {
  const options = [];
  if (CLASSES.length) options.push(["label", "class"]);
  if (ROWS.predicted.some((k) => k >= 0)) options.push(["predicted", "predicted class"]);
  options.push(["score", SCORE_NAME], ["unknown", "unknown"]);
  if (NUM_CLASSES && ROWS.label.some((k) => k >= 0)) options.push(["wrong", "right or wrong"]);
  byId("colour-by").append(...options.map(([value, words]) => make("option", { value }, words)));
  if (META.map.method === "plane") byId("colour-by").value = "unknown"; // so that only samples have a colour
  else if (NUM_CLASSES) byId("colour-by").value = "predicted";
  const tested = ROWS.test.some(Boolean);
  const which = tested ? [["all", "all"], ["training", "training"], ["test", "test"]] : [["all", "training"]];
  byId("which-rows").append(...which.map(([value, words]) => make("option", { value }, words)));
  map.which = "all";
  map.ringed = META.numLabelled > 0 && META.numLabelled < META.numTraining;
  map.bounds = mapBounds();
  byId("map-axes").textContent = META.map.axes.join("  ·  ");
  listenToMap();
  resizeMap();
  map.k0 = map.k;
  byId("colour-by").addEventListener("change", () => drawLegend());
  byId("which-rows").addEventListener("change", (event) => {
    map.which = event.target.value;
    drawMap();
  });
  drawLegend();
}

function drawLegend() {
  const by = byId("colour-by").value;
  const entry = (colour, words) => make("span", {}, make("i", { style: `background:${colour}` }), words);
  const { colours } = colourRows();
  let parts = [];
  if (by === "label" || by === "predicted") {
    parts = CLASSES.slice(0, 24).map((name, k) => entry(colours[k], name));
    if (by === "label") parts.push(entry(colours.at(-1), "not given"));
  } else if (by === "unknown") parts = [entry(colours[1], `unknown: ${SCORE_NAME} below ${number(META.unknownBelow)}`), entry(colours[0], "others")];
  else if (by === "wrong") parts = ["right", "wrong", "class not given"].map((words, g) => entry(colours[g], words));
  else {
    const ramp = make("i", { class: "ramp", style: `background:linear-gradient(90deg, ${RAMP.join(",")})` });
    parts = [make("span", {}, `${SCORE_NAME}: ${number(SCORES.ramp[0])} `, ramp, ` ${number(SCORES.ramp[1])} nats`)];
  }
  if (map.ringed) parts.push(make("span", {}, make("i", { class: "ring" }), "labelled in training"));
  byId("legend").replaceChildren(...parts);
  drawMap();
}
